"""Counts chosen from the share of ends, and what is said about it."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from eosjax.config import ConfigError, TrainConfig
from eosjax.training.parallel import choose_devices
from eosjax.training.setup import check_ends, check_model, explain_share, tune_counts
from eosjax.types import UserError

AUTO = dataclasses.replace(TrainConfig(), eos_tune="auto")


@pytest.mark.parametrize(("share", "count"), [(0.012, 10), (0.0499, 10), (0.05, 15), (0.1, 15), (0.11, 20)])
def test_counts_follow_the_share_of_ends(share, count):
    tuned, why = tune_counts(AUTO, share)
    assert (tuned.eos_sample_positive, tuned.eos_min_positive) == (count, count)
    assert (tuned.eos_sample_negative, tuned.eos_min_negative) == (20, 20)
    assert f"{share:.2%}" in why
    assert f"= {count}" in why


def test_counts_stay_as_they_are_unless_asked():
    assert tune_counts(TrainConfig(), 0.01) == (TrainConfig(), "")


def test_a_buffer_too_small_for_the_chosen_counts_is_refused():
    small = {"eos_buffer_capacity": 18, "eos_sample_negative": 5, "eos_min_negative": 5}
    with pytest.raises(ConfigError, match=r"--eos_buffer_capacity \(18\) is less than --eos_min_positive \(20\)"):
        tune_counts(dataclasses.replace(AUTO, **small), 0.2)


def test_what_the_share_means_is_said_in_steps():
    text = explain_share(TrainConfig(), 0.03, rows_per_step=64)
    assert text.startswith("3.00% of the training steps are ends: about 1.9 of the 64 rows of a step;")
    assert "first EOS update after about 8 step(s)" in text  # 15 / 1.92
    assert "for about 26 step(s)" in text  # 50 / 1.92


@pytest.mark.parametrize(("train", "val", "named"), [([0, 0], [1], "training"), ([0, 1], [0], "validation")])
def test_a_split_without_ends_is_refused(train, val, named):
    ends = np.array([*train, *val], bool)
    split = lambda anchors: SimpleNamespace(anchors=anchors, labels=SimpleNamespace(ends=ends), episodes=[0])
    data = SimpleNamespace(train=split(np.arange(2)), val=split(np.array([2])))
    with pytest.raises(ConfigError, match=f"the {named} split .* has no end of a sub-step"):
        check_ends(data)
    check_ends(SimpleNamespace(train=split(np.flatnonzero(ends)), val=None))


def test_weights_that_cannot_be_loaded_are_refused_at_once():
    with pytest.raises(ConfigError, match="openvla/openvla-7b: pretrained weights cannot be loaded yet"):
        check_model(TrainConfig())


def test_devices():
    assert choose_devices(0) == jax.devices()
    assert choose_devices(2) == jax.devices()[:2]
    with pytest.raises(UserError, match="--num_devices 9: JAX sees 4 cpu"):
        choose_devices(9)
