"""What a report about ends tells, as numbers and rows of tables: for the terminal, a JSON file and a page alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eosjax.ends.events import MAIN_COLLAR, match
from eosjax.ends.measure import NMS_WINDOW, REPLICATES, Decisions, Measured, ScoredEpisode, ScoreTables
from eosjax.ends.ranking import Curve
from eosjax.reports.tables import named


class Shown(NamedTuple):
    """An episode to look at."""

    rank: str  # best, median, worst
    number: int  # in the order of the episodes
    episode: ScoredEpisode
    fired: np.ndarray  # i64 [n], steps
    pairs: np.ndarray  # i64 [p, 2], of a firing and its true end, at the main collar

    @property
    def misses(self) -> np.ndarray:
        """i64: true ends that nothing answers."""
        return np.setdiff1d(self.episode.true, self.pairs[:, 1])

    @property
    def false_alarms(self) -> np.ndarray:
        """i64: firings that answer nothing."""
        return np.setdiff1d(self.fired, self.pairs[:, 0])

    @property
    def f1(self) -> float:
        """Of this episode alone; 1 where nothing should fire and nothing does."""
        total = self.fired.size + self.episode.ends.sum()
        return 2 * len(self.pairs) / total if total else 1.0


@dataclasses.dataclass(frozen=True)
class EventReport:
    """Scores of some episodes, measured in the dense protocol.

    Attributes:
      title: what the scores are of.
      threshold, window: see `eosjax.ends.measure.ScoreTables.of`.
      tables: what is measured.
      measured: the figures.
      shown: the best, the median and the worst episode, by their own F1 at the main collar, then by their Brier score.
    """

    title: str
    threshold: float
    window: int
    tables: ScoreTables
    measured: Measured
    shown: list[Shown]

    @classmethod
    def of(
        cls, title: str, episodes: Sequence[ScoredEpisode], threshold: float, window: int = NMS_WINDOW, replicates: int = REPLICATES
    ) -> EventReport:
        """Measures.

        Args:
          title: of the report.
          episodes: at least one.
          threshold: probability from which a candidate fires.
          window: of the non-maximum suppression, in steps.
          replicates: draws of the bootstrap.
        """
        tables = ScoreTables.of(episodes, threshold, window)
        shown = _telling_episodes(episodes, [each.decisions(threshold, window) for each in episodes])
        return cls(title, threshold, window, tables, tables.measure(replicates), shown)

    @property
    def counts(self) -> dict[str, int]:
        """Episodes, their steps, their true ends, and what fired."""
        decisions = self.tables.decisions
        sums = {
            name: int(values.sum()) for name, values in (("steps", decisions.steps), ("ends", decisions.true), ("fired", decisions.fired))
        }
        return {"episodes": decisions.steps.size, **sums}

    def curve(self, collar: int) -> Curve:
        """Counts at every threshold."""
        return self.tables.events.rankings[collar].curve(np.ones(self.tables.decisions.steps.size, np.int64))

    def to_json(self) -> dict[str, Any]:
        """The figures by name (None where not defined), `intervals_95` by the same names, and under `about` how they were made."""
        values, intervals = named(self.measured)
        about = {"title": self.title, "protocol": "dense", "threshold": self.threshold, "nms": self.window, **self.counts}
        return {**values, "intervals_95": intervals, "about": about}

    def sentence(self) -> str:
        """What was measured, and how."""
        counts = self.counts
        return (
            f"{counts['episodes']:,} episodes, {counts['steps']:,} steps, {counts['ends']:,} true ends; {counts['fired']:,} fired at "
            f"threshold {self.threshold:.4g} (non-maximum suppression within {self.window} steps, dense protocol)"
        )


def _telling_episodes(episodes: Sequence[ScoredEpisode], decisions: Sequence[Decisions]) -> list[Shown]:
    all_of_them = [
        Shown("", number, episode, each.fired, match(each.fired, each.true, MAIN_COLLAR))
        for number, (episode, each) in enumerate(zip(episodes, decisions, strict=True))
    ]
    ordered = sorted(all_of_them, key=lambda each: (-each.f1, np.mean((each.episode.scores - each.episode.ends) ** 2)))
    places = {"median": len(ordered) // 2, "worst": len(ordered) - 1, "best": 0}
    chosen = {place: rank for rank, place in places.items()}  # of one or two episodes none is shown twice
    return [ordered[place]._replace(rank=rank) for place, rank in sorted(chosen.items())]
