"""Validation against hand-made predictions."""

from types import SimpleNamespace

import numpy as np
import pytest

from eosjax.evaluation.validate import EosSetting, validate
from eosjax.types import Batch


def batch(keys, valid):
    shape = np.shape(valid)
    empty = np.zeros((shape[0], 0))
    return Batch(empty, empty, empty, empty, empty, np.zeros(shape), np.array(valid, bool), np.array(keys))


def predictions(logits, l1_sum, l1_count):
    return SimpleNamespace(eos_logits=np.array([logits]), l1_sum=np.array([l1_sum]), l1_count=np.array([l1_count]))


BATCHES = [batch([0, 1], [[1, 1], [1, 0]]), batch([2, -1], [[1, 0], [0, 0]])]
ANSWERS = [predictions([[3.0, -1.0], [5.0, 9.0]], 6.0, 4.0), predictions([[-4.0, 9.0], [9.0, 9.0]], 2.0, 4.0)]


def run(eos, ends):
    answers = iter(ANSWERS)
    return validate(lambda _: next(answers), BATCHES, np.array([4, 5, 8]), ends, eos)


def test_rows_are_scored_by_key_and_fillers_are_left_out():
    ends = np.zeros(10, bool)
    ends[4] = True
    result = run(EosSetting(0.5, 0.5, 0.5), ends)
    assert result.scores.frames.tolist() == [4, 5, 8]
    assert result.scores.logits.tolist() == [3.0, 2.0, -4.0]  # frame 5: the mean of -1 and 5
    assert result.row["val/action_loss"] == 1.0
    assert result.row["val/eos_average_precision"] == 1.0
    assert result.row["val/eos_prior"] == pytest.approx(1 / 3)
    assert (result.row["val/eos_precision"], result.row["val/eos_recall"]) == (0.5, 1.0)


def test_the_threshold_applies_to_the_corrected_probability():
    ends = np.zeros(10, bool)
    ends[4] = True
    # At a true share of 10 % a raw logit must exceed log 9 = 2.2 to mean one half: frame 5 no longer fires.
    assert run(EosSetting(0.5, 0.1, 0.5), ends).row["val/eos_precision"] == 1.0


def test_without_an_eos_head_only_the_actions_are_judged():
    result = run(None, np.zeros(10, bool))
    assert result.scores is None
    assert set(result.row) == {"val/action_loss"}
