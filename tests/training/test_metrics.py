"""Rows of the log from sums."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.training.logging import MetricWriter, eos_line, waiting_line
from eosjax.training.metrics import ACTION_SUMS, EOS_SUMS, Metrics, eos_sums, to_row, zero_window
from eosjax.types import EosSample


@pytest.fixture
def sample():
    return EosSample(
        items=None,
        labels=jnp.array([1.0, 1, 0, 0, 0]),
        weights=jnp.array([1.0, 1, 1, 1, 0]),
        ages=jnp.array([4, 6, 1, 2, 9], jnp.int32),
    )


def test_sums_of_a_draw(sample):
    logits = jnp.array([2.0, -2.0, 3.0, -1.0, 5.0])
    sums = eos_sums(logits, sample, jnp.float32(0.5), jnp.array(True), threshold=0.5)
    assert {name: float(value) for name, value in sums.items()} == {
        "eos_loss": 0.5, "eos_updates": 1, "true_positive": 1, "false_negative": 1, "false_positive": 1, "true_negative": 1,
        "age_positive": 10, "age_negative": 3,
    }  # fmt: skip


def metrics(**values):
    window = {**dict.fromkeys(zero_window((*ACTION_SUMS, *EOS_SUMS)), 0.0), **values}
    last = dict.fromkeys(
        "eos_loss eos_updates buffer_positive buffer_negative seen_positive seen_negative total_updates learning_rate".split(), 0.0
    )
    last |= {"eos_head_grad_norm": 0.0, "vla_grad_norm": 1.5}
    return Metrics(window, {**last, "seen_positive": 10.0, "seen_negative": 60.0, "total_updates": 2.0})


def row(micro_batches=1, **values):
    return to_row(metrics(**values), lambda_eos=2.0, lambda_eos_policy=0.2, micro_batches=micro_batches)


def test_row_of_a_window():
    result = row(
        steps=4.0, action_sum=6.0, action_count=12.0, eos_loss=1.2, eos_updates=2.0, true_positive=3.0, false_positive=1.0,
        false_negative=1.0, true_negative=5.0, age_positive=8.0, age_negative=3.0,
    )  # fmt: skip
    expected = {
        "train/action_loss": 0.5,
        "train/eos_loss": 0.6,
        "train/eos_updated": 0.5,
        "train/total_loss": 0.5 + 2.0 * 1.2 / 4,
        "train/eos_accuracy": 0.8,
        "train/eos_precision": 0.75,
        "train/eos_recall": 0.75,
        "train/eos_f1": 0.75,
        "train/eos_age_positive": 2.0,
        "train/eos_age_negative": 0.5,
        "train/eos_utilisation": 2.0 * 5.0 / 70,
        "train/eos_rows_positive": 2.0,
        "train/eos_rows_negative": 3.0,
        "train/vla_grad_norm": 1.5,
        "train/eos_grad_norm": 0.0,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_columns_count_updates_where_an_update_has_several_micro_batches():
    """Ages come in additions to the buffer, of which an update makes one for each micro-batch."""
    result = row(2, steps=4.0, eos_loss=1.2, eos_updates=4.0, true_positive=4.0, true_negative=6.0, age_positive=8.0, age_negative=3.0)
    expected = {"age_positive": 1.0, "age_negative": 0.25, "updated": 0.5, "loss": 0.3}
    assert {name: result[f"train/eos_{name}"] for name in expected} == pytest.approx(expected)
    assert result["train/total_loss"] == pytest.approx(2.0 * 1.2 / 8)


def test_fresh_rows_beside_draws_have_their_column_and_their_weight():
    result = row(2, steps=4.0, eos_loss=1.2, eos_updates=4.0, eos_fresh_loss=0.8)
    assert result["train/eos_fresh_loss"] == pytest.approx(0.2)
    assert result["train/total_loss"] == pytest.approx((2.0 * 1.2 + 0.2 * 0.8) / 8)
    assert "train/eos_fresh_loss" not in row(2, steps=4.0)


def test_row_while_waiting_is_all_numbers():
    result = row(steps=3.0, action_sum=1.0, action_count=2.0)
    assert result["train/eos_loss"] == result["train/eos_updated"] == result["train/eos_f1"] == 0.0
    assert np.isfinite(list(result.values())).all()


def test_the_verdict_of_the_console_line_is_measured():
    values = {"train/eos_loss": 0.62341, "train/eos_grad_norm": 0.1, "train/eos_rows_positive": 15.0, "train/eos_rows_negative": 20.0}
    expected = "[EOS UPDATE] eos_loss = 0.6234, batch = 35, pos = 15, neg = 20, ✓ HAS GRAD"
    assert eos_line(values) == expected
    assert eos_line({**values, "train/eos_grad_norm": 0.0}).endswith("✗ NO GRAD")


def test_waiting_says_what_is_there_and_how_long_it_takes():
    values = {"train/eos_buffer_positive": 5.0, "train/eos_seen_positive": 5.0}
    values |= {"train/eos_buffer_negative": 50.0, "train/eos_seen_negative": 99.0}
    text = "[EOS WAIT] positive 5/15, negative 50/20, about 20 steps to go"
    assert waiting_line(values, TrainConfig(), steps_made=10) == text
    values |= {"train/eos_buffer_positive": 0.0, "train/eos_seen_positive": 0.0}
    assert waiting_line(values, TrainConfig(), steps_made=10).endswith("no estimate yet")


def test_rows_behind_the_checkpoint_are_dropped_and_a_cut_line_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 4, "a"')
    config = dataclasses.replace(TrainConfig(), use_tensorboard=False)
    writer = MetricWriter(config, tmp_path, 2, enabled=True)
    writer.write(3, {"a": 5.0})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 5.0}\n'


def test_tensorboard_gets_the_same_numbers(tmp_path):
    writer = MetricWriter(TrainConfig(), tmp_path, 0, enabled=True)
    writer.write(3, {"train/a": 5.0})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/a" in events.read_bytes()


def test_row_of_a_policy_that_predicts_tokens():
    counted = {"curr_action_correct": 2.0, "curr_action_l1": 0.5, "curr_action_tokens": 4.0}
    counted |= {"next_actions_correct": 3.0, "next_actions_l1": 6.0, "next_actions_tokens": 12.0}
    result = row(steps=1.0, action_sum=3.0, action_count=17.0, **counted)
    assert result["train/action_loss"] == 3 / 17
    assert result["train/curr_action_accuracy"] == 0.5
    assert result["train/curr_action_l1_loss"] == 0.125
    assert result["train/next_actions_accuracy"] == 0.25
    assert result["train/next_actions_l1_loss"] == 0.5
    assert not [name for name in row(steps=1.0) if "curr" in name or "next" in name]
