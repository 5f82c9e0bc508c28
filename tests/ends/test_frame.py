"""Merged votes against a loop, average precision against worked numbers, calibration against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from eosjax.ends.frame import FrameTable, average_precision, merge_chunks


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 4))
def test_votes_are_averaged_frame_by_frame(seed, lengths, k):
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *lengths])
    ends = rng.random(starts[-1]) < 0.3
    anchors = np.arange(starts[-1])
    last = np.repeat(starts[1:] - 1, lengths)
    valid = anchors[:, None] + np.arange(k) <= last[:, None]
    logits = rng.normal(size=valid.shape).astype(np.float32)

    votes = {}
    for anchor in anchors:
        for slot in range(k):
            if valid[anchor, slot]:
                votes.setdefault(anchor + slot, []).append(logits[anchor, slot])
    shuffled = rng.permutation(anchors)
    merged = merge_chunks(anchors[shuffled], logits[shuffled], valid[shuffled], ends)
    assert merged.frames.tolist() == sorted(votes)
    np.testing.assert_allclose(merged.logits, [np.mean(votes[frame], dtype=np.float64) for frame in sorted(votes)], rtol=1e-6)
    np.testing.assert_array_equal(merged.ends, ends)


def test_no_vote_crosses_the_end_of_an_episode():
    # Two episodes of two frames; the chunk at frame 1 reaches into the second episode and must not vote there.
    valid = np.array([[True, True], [True, False], [True, True], [True, False]])
    logits = np.array([[0, 0], [0, 100], [0, 0], [0, 100]], np.float32)
    merged = merge_chunks(np.arange(4), logits, valid, np.zeros(4, bool))
    np.testing.assert_array_equal(merged.logits, np.zeros(4))


def test_average_precision_of_worked_cases():
    ends = np.array([1, 0, 1, 0, 0], bool)
    assert average_precision(ends, np.array([5.0, 4, 3, 2, 1])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(ends, np.zeros(5)) == pytest.approx(0.4)  # no ranking at all: the share of ends
    assert np.isnan(average_precision(np.zeros(3, bool), np.arange(3.0)))


def table(probabilities, ends):
    return FrameTable.of(np.array(probabilities, float), np.array(ends, bool), np.array([len(ends)]))


ONCE = np.ones(1, int)


def test_calibration_error_of_a_worked_case():
    reliability = table([0.1, 0.2, 0.3, 0.4, 0.9, 0.8], [0, 0, 1, 0, 1, 1]).reliability(ONCE, bins=3)
    np.testing.assert_allclose(reliability.said, [0.15, 0.35, 0.85])
    np.testing.assert_allclose(reliability.came, [0, 0.5, 1])
    assert reliability.steps.tolist() == [2, 2, 2]
    assert reliability.error == pytest.approx((0.15 + 0.15 + 0.15) / 3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_bins_of_equal_mass_are_scikit_learns(seed, per_bin):
    rng = np.random.default_rng(seed)
    said, ends = rng.permutation(5 * per_bin) / (5 * per_bin), rng.random(5 * per_bin) < 0.5
    came, mean = calibration_curve(ends, said, n_bins=5, strategy="quantile")
    reliability = table(said, ends).reliability(ONCE, bins=5)
    np.testing.assert_allclose(reliability.said, mean)
    np.testing.assert_allclose(reliability.came, came)


def test_equal_probabilities_are_never_torn_apart():
    reliability = table([0.2] * 7 + [0.6] * 3, [0] * 9 + [1]).reliability(ONCE, bins=5)
    np.testing.assert_allclose(reliability.said, [0.2, 0.6])
    assert reliability.steps.tolist() == [7, 3]
    assert reliability.error == pytest.approx(0.7 * 0.2 + 0.3 * (0.6 - 1 / 3))


def test_a_certain_mistake_has_a_finite_likelihood():
    values = table([1.0, 0.5], [0, 1]).metrics(ONCE)
    assert values["frame/nll"] == pytest.approx((-np.log(np.finfo(float).eps) + np.log(2)) / 2)
    assert values["frame/brier"] == pytest.approx((1 + 0.25) / 2)
