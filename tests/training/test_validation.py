"""Predictions along a split, put together by key, and the figures of both protocols."""

from types import SimpleNamespace

import numpy as np
import pytest

from eosjax.ends.calibration import Calibration, prior_shift
from eosjax.ends.measure import measure_decisions, measure_scores
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import ChunkedEpisode, Rule
from eosjax.training.validation import figures, predict_split
from eosjax.types import Batch


def batch(keys, slots=2):
    shape = len(keys), slots
    empty = np.zeros((shape[0], 0))
    return Batch(empty, empty, empty, empty, empty, np.zeros(shape), np.ones(shape, bool), np.array(keys))


def predictions(logits, l1_sum, l1_count):
    return SimpleNamespace(eos_logits=np.array([logits]), l1_sum=np.array([l1_sum]), l1_count=np.array([l1_count]))


def test_rows_go_by_key_and_fillers_are_left_out():
    batches = [batch([2, 0]), batch([1, -1])]
    answers = iter([predictions([[-4.0, 9.0], [3.0, -1.0]], 6.0, 4.0), predictions([[5.0, 8.0], [7.0, 7.0]], 2.0, 4.0)])
    ends = np.zeros(10, bool)
    ends[4] = True
    found = predict_split(lambda _: next(answers), batches, np.array([4, 5, 8]), ends, np.repeat([0, 1], [8, 2]))
    assert found.action_loss == 1.0
    assert [each.name for each in found.episodes] == ["episode 0", "episode 1"]
    assert [each.ends.tolist() for each in found.episodes] == [[True, False], [False]]
    assert [each.logits.tolist() for each in found.episodes] == [[[3.0, -1.0], [5.0, 8.0]], [[-4.0, 9.0]]]


def test_votes_are_what_does_not_lie_past_the_episode():
    logits, ends = ChunkedEpisode("", np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([False, True])).votes
    assert (logits.tolist(), ends.tolist()) == ([1.0, 2.0, 3.0], [False, True, True])


EPISODE = ChunkedEpisode("", np.full((9, 2), -8.0), np.arange(9) == 4)
EPISODE.logits[3] = -8.0, 2.5
EPISODE.logits[4] = 2.5, -8.0


def test_both_protocols_have_their_own_threshold_and_names():
    point = OperatingPoint(Calibration(), Rule(0.5), 0.3, 0.5)
    found = figures([EPISODE], point)
    assert found["event/recall@1"] == 1  # the mean of both votes
    assert "deployed/event/precision@1" in found
    assert found["deployed/event/recall@1"] == 1  # planned at 0, 2 and 4
    dense = measure_scores([point.dense(EPISODE)], 0.5, replicates=0).values
    deployed = measure_decisions([point.deployed(EPISODE)], replicates=0).values
    assert found == dense | {f"deployed/{name}": value for name, value in deployed.items()}

    apart = figures([EPISODE], OperatingPoint(Calibration(), Rule(0.99), 0.5, 0.5))
    assert (apart["event/recall@1"], apart["deployed/event/recall@1"]) == (1, 0)
    assert "deployed/event/precision@1" not in apart  # nothing fired: not defined


@pytest.mark.parametrize(("true_prior", "recall"), [(0.5, 1.0), (0.08, 1.0), (0.07, 0.0)])
def test_thresholds_are_calibrated_probabilities(true_prior, recall):
    # At a true share of 8 % a raw logit must exceed log 11.5 = 2.44 to mean one half, at 7 % log 13.3 = 2.59.
    point = OperatingPoint.unseen(Calibration(shift=prior_shift(0.5, true_prior)), 0.5)
    found = figures([EPISODE], point)
    assert (found["event/recall@1"], found["deployed/event/recall@1"]) == (recall, recall)
