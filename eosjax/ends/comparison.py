"""The EOS head and baselines without images, on the same held-out episodes and by the same figures (dense protocol)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from eosjax.ends.bootstrap import REPLICATES, Measured, bootstrap
from eosjax.ends.events import MAIN_COLLAR, NMS_WINDOW, ScoredEpisode
from eosjax.ends.frame import FrameTable
from eosjax.ends.measure import DecisionTable, EventTable
from eosjax.ends.operating_points import FOLDS
from eosjax.ends.sweeps import dense_sweep, pick
from eosjax.flag_values import OperatingRule

HEAD = "EOS head"
FIGURES = ("frame/average_precision", f"event/ap@{MAIN_COLLAR}", f"event/f1@{MAIN_COLLAR}")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Figures of several methods, best event average precision first.

    Attributes:
      measured: of each method by name, the figures `FIGURES` with their intervals.
    """

    measured: Mapping[str, Measured]


def compare(methods: Mapping[str, Sequence[ScoredEpisode]], window: int = NMS_WINDOW, replicates: int = REPLICATES) -> Comparison:
    """Measures methods on the same episodes.

    Args:
      methods: by name, the probabilities of each.
      window: of the non-maximum suppression, in steps.
      replicates: draws of the bootstrap.
    """
    measured = {name: measure(episodes, window, replicates) for name, episodes in methods.items()}
    order = sorted(measured, key=lambda name: -np.nan_to_num(measured[name].values[FIGURES[1]]))
    return Comparison({name: measured[name] for name in order})


def measure(episodes: Sequence[ScoredEpisode], window: int = NMS_WINDOW, replicates: int = REPLICATES) -> Measured:
    """The figures `FIGURES` of one method.

    F1 needs a threshold. Each episode gets the one that is best for F1 on those of the other folds, so that no method profits from seeing
    what it is measured on, and none is held to a threshold that was chosen for another purpose.
    """
    scores, ends = np.concatenate([each.scores for each in episodes]), np.concatenate([each.ends for each in episodes])
    frames = FrameTable.of(scores, ends, np.array([each.scores.size for each in episodes]))
    events = EventTable.of(episodes, window).rankings[MAIN_COLLAR]
    thresholds = _cross_fitted_thresholds(episodes, window)
    decisions = DecisionTable.of([each.decisions(at, window) for each, at in zip(episodes, thresholds, strict=True)])

    def figures(weights: np.ndarray) -> dict[str, float]:
        values = (
            frames.ranking.curve(weights).average_precision(interpolated=False),
            events.curve(weights).average_precision(interpolated=True),
            decisions.metrics(weights)[FIGURES[2]],
        )
        return dict(zip(FIGURES, values, strict=True))

    return bootstrap([figures], len(episodes), replicates)


def _cross_fitted_thresholds(episodes: Sequence[ScoredEpisode], window: int) -> list[float]:
    fold_of = np.arange(len(episodes)) % FOLDS
    rule = OperatingRule("f1", MAIN_COLLAR)
    sweep = dense_sweep(episodes, MAIN_COLLAR, window)
    thresholds = []
    for fold in range(FOLDS):
        others = fold_of != fold if len(episodes) > 1 else np.ones(1, bool)
        kept = sweep._replace(hits=sweep.hits[others], fired=sweep.fired[others], true=sweep.true[others])
        thresholds.append(pick(kept, rule).threshold)
    return [thresholds[fold] for fold in fold_of.tolist()]
