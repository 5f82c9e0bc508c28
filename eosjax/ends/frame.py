"""Frame-level scores: one probability a control step, judged by its rank and as a probability.

*Dense* protocol: the policy is asked at every step, and each step gets the mean logit of all chunks that cover it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from eosjax.ends.ranking import Curve, Ranking

BINS = 15  # of the calibration error


class FrameScores(NamedTuple):
    """Scores and truth of the steps of some episodes, in order."""

    frames: np.ndarray  # i64 [n]: index of the step in the frame store
    logits: np.ndarray  # f64 [n], raw
    ends: np.ndarray  # bool [n]


class Reliability(NamedTuple):
    """What was said and what came, in bins of about as many steps each."""

    said: np.ndarray  # f64 [b], mean probability, ascending
    came: np.ndarray  # f64 [b], share of ends
    steps: np.ndarray  # [b]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, each step counting the same."""
        return float(np.average(np.abs(self.said - self.came), weights=self.steps)) if self.steps.size else float("nan")


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
    return frame_curve(ends, scores).average_precision(interpolated=False)


def frame_curve(ends: np.ndarray, scores: np.ndarray) -> Curve:
    """Counts of single steps at every threshold.

    Args:
      ends: bool [n].
      scores: f64 [n], higher means more likely an end.
    """
    return Ranking.of(scores, ends, np.zeros(ends.size, np.int64), np.array([ends.sum()])).curve(np.ones(1, np.int64))


@dataclasses.dataclass(frozen=True)
class FrameTable:
    """All steps of some episodes, ready to be measured with any weights of the episodes.

    Attributes:
      ranking: the steps; a hit is an end.
      steps: i64 [e], of each episode.
      nll, brier: f64 [e], sums over the steps of each episode.
    """

    ranking: Ranking
    steps: np.ndarray
    nll: np.ndarray
    brier: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, ends: np.ndarray, steps: np.ndarray) -> FrameTable:
        """From the steps of all episodes in a row.

        Args:
          probabilities: f64 [n], of an end.
          ends: bool [n].
          steps: i64 [e], how many of the n each episode has.
        """
        episodes = np.repeat(np.arange(steps.size), steps)

        def sums(values: np.ndarray) -> np.ndarray:
            return np.bincount(episodes, weights=values, minlength=steps.size)

        tiny = np.finfo(np.float64).eps  # a wrong 0 or 1 costs 36 nats instead of infinitely many
        right = np.clip(np.where(ends, probabilities, 1 - probabilities), tiny, 1)
        ranking = Ranking.of(probabilities, ends, episodes, sums(ends).astype(np.int64))
        return cls(ranking, steps, sums(-np.log(right)), sums((probabilities - ends) ** 2))

    def metrics(self, weights: np.ndarray) -> dict[str, float]:
        """Average precision, the share of ends (which chance would have), negative log likelihood (nats), Brier score, calibration error.

        Args:
          weights: i64 [e], how often each episode counts.
        """
        curve, steps = self.ranking.curve(weights), float(weights @ self.steps)
        return {
            "frame/average_precision": curve.average_precision(interpolated=False),
            "frame/share_of_ends": curve.positives / steps,
            "frame/nll": float(weights @ self.nll) / steps,
            "frame/brier": float(weights @ self.brier) / steps,
            "frame/ece": self.reliability(weights).error,
        }

    def reliability(self, weights: np.ndarray, bins: int = BINS) -> Reliability:
        """Mean probability against share of ends in bins of equal mass.

        Ends are rare, so that bins of equal width would leave nearly all steps in the first one. Bins hold as many steps each as equal
        probabilities allow, which are never torn apart (Nguyen, O'Connor 2015, Posterior calibration and exploratory analysis, EMNLP).

        Args:
          weights: i64 [e], how often each episode counts.
          bins: at most so many.
        """
        said, ends = self.ranking.scores[::-1], self.ranking.hits[::-1]
        each = weights[self.ranking.episodes[::-1]]
        before = np.cumsum(each) - each  # steps below, in order
        number = before[self._first_of_equals] * bins // each.sum()
        mass, total, came = (np.bincount(number, weights=values, minlength=bins) for values in (each, each * said, each * ends))
        used = mass > 0
        return Reliability(total[used] / mass[used], came[used] / mass[used], mass[used])

    @functools.cached_property
    def _first_of_equals(self) -> np.ndarray:
        """i64 [n], in ascending order of probability: the place of the first step with the same probability."""
        said = self.ranking.scores[::-1]
        return np.searchsorted(said, said, side="left")
