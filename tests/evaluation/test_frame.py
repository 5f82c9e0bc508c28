"""Merged votes against a loop, average precision against worked numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.evaluation.frame import average_precision, merge_chunks


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
