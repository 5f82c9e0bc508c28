"""Figures of firings against true ends, pooled over episodes, with intervals. The names of all figures are made here.

Two protocols, which must not be compared with each other (see `eosjax.ends.protocols`): of a *deployed* one there are firings
(`measure_decisions`), of a *dense* one there is a probability for each step (`measure_scores`), which can be ranked as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from eosjax.ends.bootstrap import REPLICATES, Measured, bootstrap
from eosjax.ends.events import COLLARS, NMS_WINDOW, Decisions, ScoredEpisode, candidates, hits, match
from eosjax.ends.frame import FrameTable
from eosjax.ends.ranking import Ranking

DEPLOYED = "deployed/"  # in front of the names of figures of that protocol; those of the dense one have nothing there


@dataclasses.dataclass(frozen=True)
class DecisionTable:
    """Counts of each episode, ready to be pooled with any weights.

    Attributes:
      fired, true, steps: i64 [e].
      hits: i64 [e, collars], pairs.
      delays: i64 [d], fired minus true step of all pairs at the largest collar.
      delay_episodes: i64 [d], which episode each is of.
    """

    fired: np.ndarray
    true: np.ndarray
    steps: np.ndarray
    hits: np.ndarray
    delays: np.ndarray
    delay_episodes: np.ndarray

    @classmethod
    def of(cls, episodes: Sequence[Decisions]) -> DecisionTable:
        """Matches every episode at every collar."""
        pairs = [[match(each.fired, each.true, collar) for collar in COLLARS] for each in episodes]
        widest = [row[-1] for row in pairs]
        return cls(
            fired=np.array([each.fired.size for each in episodes]),
            true=np.array([each.true.size for each in episodes]),
            steps=np.array([each.steps for each in episodes]),
            hits=np.array([[len(found) for found in row] for row in pairs]),
            delays=np.concatenate([found[:, 0] - found[:, 1] for found in widest]),
            delay_episodes=np.repeat(np.arange(len(episodes)), [len(found) for found in widest]),
        )

    def metrics(self, weights: np.ndarray) -> dict[str, float]:
        """At each collar precision (NaN if nothing fired), recall, F1, misses and false alarms; delays of the pairs at the largest.

        Args:
          weights: i64 [e], how often each episode counts.
        """
        fired, true, steps = (float(weights @ counts) for counts in (self.fired, self.true, self.steps))
        row: dict[str, float] = {}
        for collar, found in zip(COLLARS, (weights @ self.hits).tolist(), strict=True):
            row |= {
                f"event/precision@{collar}": _share(found, fired),
                f"event/recall@{collar}": _share(found, true),
                f"event/f1@{collar}": _share(2 * found, fired + true),
                f"event/misses_per_episode@{collar}": (true - found) / float(weights.sum()),
                f"event/false_alarms_per_episode@{collar}": (fired - found) / float(weights.sum()),
                f"event/false_alarms_per_1000_steps@{collar}": 1000 * (fired - found) / steps,
            }
        delays = np.repeat(self.delays, weights[self.delay_episodes])
        low, median, high = np.percentile(delays, (10, 50, 90)).tolist() if delays.size else [float("nan")] * 3
        early = _share(float(np.sum(delays < 0)), delays.size)
        return row | {"event/delay_median": median, "event/delay_p10": low, "event/delay_p90": high, "event/early_share": early}


@dataclasses.dataclass(frozen=True)
class EventTable:
    """The candidates of all episodes, ranked by score, for each collar."""

    rankings: dict[int, Ranking]

    @classmethod
    def of(cls, episodes: Sequence[ScoredEpisode], window: int) -> EventTable:
        """Finds the candidates and what they hit."""
        steps = [candidates(each.scores, window) for each in episodes]
        scores = [each.scores[chosen] for each, chosen in zip(episodes, steps, strict=True)]
        numbers = np.repeat(np.arange(len(episodes)), [chosen.size for chosen in steps])
        true = np.array([each.true.size for each in episodes])
        rankings = {}
        for collar in COLLARS:
            found = [hits(chosen, score, each.true, collar) for each, chosen, score in zip(episodes, steps, scores, strict=True)]
            rankings[collar] = Ranking.of(np.concatenate(scores), np.concatenate(found), numbers, true)
        return cls(rankings)

    def metrics(self, weights: np.ndarray) -> dict[str, float]:
        """Event average precision at each collar, and its mean over the collars.

        Args:
          weights: i64 [e], how often each episode counts.
        """
        row = {f"event/ap@{c}": ranking.curve(weights).average_precision(interpolated=True) for c, ranking in self.rankings.items()}
        return row | {"event/ap_mean": float(np.mean(list(row.values())))}


@dataclasses.dataclass(frozen=True)
class ScoreTables:
    """What there is to measure when there is a probability for each step."""

    decisions: DecisionTable
    events: EventTable
    frames: FrameTable

    @classmethod
    def of(cls, episodes: Sequence[ScoredEpisode], threshold: float, window: int = NMS_WINDOW) -> ScoreTables:
        """Firings at the threshold, ranked events, and frames.

        Args:
          episodes: at least one.
          threshold: probability from which a candidate fires.
          window: of the non-maximum suppression, in steps.
        """
        scores, ends = np.concatenate([each.scores for each in episodes]), np.concatenate([each.ends for each in episodes])
        steps = np.array([each.scores.size for each in episodes])
        return cls(
            DecisionTable.of([each.decisions(threshold, window) for each in episodes]),
            EventTable.of(episodes, window),
            FrameTable.of(scores, ends, steps),
        )

    def measure(self, replicates: int = REPLICATES, seed: int = 0) -> Measured:
        """All figures; arguments as in `bootstrap`."""
        metrics = [self.decisions.metrics, self.events.metrics, self.frames.metrics]
        return bootstrap(metrics, self.frames.steps.size, replicates, seed)


def measure_scores(
    episodes: Sequence[ScoredEpisode], threshold: float, window: int = NMS_WINDOW, replicates: int = REPLICATES, seed: int = 0
) -> Measured:
    """Everything that a probability for each step can tell; arguments as in `ScoreTables.of` and `bootstrap`."""
    return ScoreTables.of(episodes, threshold, window).measure(replicates, seed)


def measure_decisions(episodes: Sequence[Decisions], replicates: int = REPLICATES, seed: int = 0) -> Measured:
    """Everything that firings alone can tell; arguments as in `bootstrap`."""
    return bootstrap([DecisionTable.of(episodes).metrics], len(episodes), replicates, seed)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
