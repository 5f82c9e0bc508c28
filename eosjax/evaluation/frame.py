"""Frame-level scores: one probability a control step, judged by ranking.

*Dense* protocol: the policy is asked at every step, and each step gets the mean logit of all chunks that cover it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score


class FrameScores(NamedTuple):
    """Scores and truth of the steps of some episodes, in order."""

    frames: np.ndarray  # i64 [n]: index of the step in the frame store
    logits: np.ndarray  # f64 [n], raw
    ends: np.ndarray  # bool [n]


def merge_chunks(anchors: np.ndarray, logits: np.ndarray, valid: np.ndarray, ends: np.ndarray) -> FrameScores:
    """Merges the votes of overlapping chunks by their mean logit.

    Args:
      anchors: i64 [m], frame at which each chunk starts.
      logits: f32 [m, k], one vote for each of the frames `anchors + 0 … k-1`.
      valid: bool [m, k], False for votes past the end of the episode.
      ends: bool [N], truth for all frames of the store.

    Returns:
      The frames that got a vote, in ascending order.
    """
    frames = (anchors[:, None] + np.arange(logits.shape[1]))[valid]
    voted, where = np.unique(frames, return_inverse=True)
    total = np.bincount(where, weights=logits[valid].astype(np.float64), minlength=voted.size)
    votes = np.bincount(where, minlength=voted.size)
    return FrameScores(voted, total / votes, ends[voted].astype(bool))


def average_precision(ends: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as scikit-learn's `average_precision_score` defines it; NaN without an end.

    Args:
      ends: bool [n].
      scores: f64 [n], higher means more likely an end.
    """
    return float(average_precision_score(ends, scores)) if ends.any() else float("nan")
