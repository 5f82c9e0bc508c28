"""Validation against hand-made predictions."""

from types import SimpleNamespace

import numpy as np
import pytest

from eosjax.evaluation.validate import EosSetting, by_episode, validate
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
    return validate(lambda _: next(answers), BATCHES, np.array([4, 5, 8]), ends, np.repeat([0, 1], [8, 2]), eos)


def test_rows_are_scored_by_key_and_fillers_are_left_out():
    ends = np.zeros(10, bool)
    ends[4] = True
    result = run(EosSetting(0.5, 0.5, 0.5), ends)
    assert result.scores.frames.tolist() == [4, 5, 8]
    assert result.scores.logits.tolist() == [3.0, 2.0, -4.0]  # frame 5: the mean of -1 and 5
    assert result.row["val/action_loss"] == 1.0
    assert result.row["val/frame/average_precision"] == 1.0
    assert result.row["val/frame/share_of_ends"] == pytest.approx(1 / 3)
    assert (result.row["val/event/precision@1"], result.row["val/event/recall@1"]) == (1.0, 1.0)  # frame 5 is too near to frame 4 to fire
    assert all(np.isfinite(list(result.row.values())))
    episodes = by_episode(result.scores, np.repeat([0, 1], [8, 2]), EosSetting(0.5, 0.5, 0.5))
    assert [(each.name, each.ends.tolist()) for each in episodes] == [("episode 0", [True, False]), ("episode 1", [False])]
    np.testing.assert_allclose(np.concatenate([each.scores for each in episodes]), 1 / (1 + np.exp([-3.0, -2.0, 4.0])))


def test_the_threshold_applies_to_the_corrected_probability():
    ends = np.zeros(10, bool)
    ends[4] = True
    assert run(EosSetting(0.5, 0.1, 0.5), ends).row["val/event/recall@1"] == 1.0
    # At a true share of 5 % a raw logit must exceed log 19 = 2.9 to mean one half, at 4 % log 24 = 3.2.
    assert run(EosSetting(0.5, 0.04, 0.5), ends).row["val/event/recall@1"] == 0.0


def test_without_an_eos_head_only_the_actions_are_judged():
    result = run(None, np.zeros(10, bool))
    assert result.scores is None
    assert set(result.row) == {"val/action_loss"}
