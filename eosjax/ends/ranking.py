"""Precision and recall at every threshold, of things with scores that come from several episodes.

Everything here takes *weights*, how often each episode counts: all 1 for the figures themselves, and other whole numbers for a bootstrap,
which draws episodes again and again. A weight of 2 gives exactly what a second copy of the episode would.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """Counts at each distinct score, from the highest down: what would be fired with that score as the threshold."""

    thresholds: np.ndarray  # f64 [n]
    hits: np.ndarray  # [n]
    fired: np.ndarray  # [n]
    positives: float  # what there is to find

    @property
    def precision(self) -> np.ndarray:
        """f64 [n]: share of hits among the fired."""
        return np.divide(self.hits, self.fired, out=np.zeros(self.hits.size), where=self.fired > 0)

    @property
    def recall(self) -> np.ndarray:
        """f64 [n]: share of the positives that are hit; NaN if there are none."""
        return self.hits / self.positives if self.positives else np.full(self.hits.size, np.nan)

    @property
    def f1(self) -> np.ndarray:
        """f64 [n]: harmonic mean of the two."""
        return 2 * self.hits / np.maximum(self.fired + self.positives, 1)

    def average_precision(self, interpolated: bool) -> float:
        """Mean of the precision over all positives, 0 for those never hit; NaN without any positive.

        Args:
          interpolated: at each recall take the best precision at that recall or a higher one, as is the custom with events (Everingham et
            al. 2010, The Pascal VOC Challenge, IJCV 88(2), since VOC 2010; ActivityNet); else as scikit-learn's `average_precision_score`.
        """
        if not self.positives:
            return float("nan")
        precision = self.precision
        if interpolated:
            precision = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(self.recall, prepend=0.0) * precision))


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Things with scores, by descending score.

    Attributes:
      scores: f64 [n].
      hits: bool [n], whether each is what is looked for.
      episodes: i64 [n], which episode each is of.
      positives: i64 [e], what there is to find in each episode, among these things or not.
    """

    scores: np.ndarray
    hits: np.ndarray
    episodes: np.ndarray
    positives: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, hits: np.ndarray, episodes: np.ndarray, positives: np.ndarray) -> Ranking:
        """Sorts; arguments are the attributes, in any order.

        Raises:
          ValueError: a score is NaN, which has no rank.
        """
        if np.isnan(scores).any():
            raise ValueError("scores: expected numbers, got NaN")
        order = np.argsort(-scores, kind="stable")
        return cls(scores[order], hits[order], episodes[order], positives)

    def curve(self, weights: np.ndarray) -> Curve:
        """Pooled over episodes.

        Args:
          weights: i64 [e].
        """
        each = weights[self.episodes]
        fired, hits = np.cumsum(each), np.cumsum(each * self.hits)
        last = self._last_of_equals
        return Curve(self.scores[last], hits[last], fired[last], float(weights @ self.positives))

    @functools.cached_property
    def _last_of_equals(self) -> np.ndarray:
        """i64: where a threshold can be; none separates equal scores."""
        return np.flatnonzero(np.diff(self.scores, append=-np.inf))
