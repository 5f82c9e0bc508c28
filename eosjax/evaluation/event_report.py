"""What a report about ends tells, as numbers and rows of tables: for the terminal, a JSON file and a page alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eosjax.evaluation.events import COLLARS, MAIN_COLLAR, match
from eosjax.evaluation.measure import NMS_WINDOW, REPLICATES, Decisions, Measured, ScoredEpisode, ScoreTables
from eosjax.evaluation.ranking import Curve

Row = tuple[str, ...]


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
      threshold, window: see `eosjax.evaluation.measure.ScoreTables.of`.
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


def named(measured: Measured, prefix: str = "") -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
    """Figures and intervals by name, for a JSON file: None where not defined.

    Args:
      measured: the figures.
      prefix: in front of the names.
    """
    values = {f"{prefix}{name}": _defined(value) for name, value in measured.values.items()}
    return values, {f"{prefix}{name}": [_defined(low), _defined(high)] for name, (low, high) in measured.intervals.items()}


def event_rows(measured: Measured) -> list[Row]:
    """A table of the collars, the header first; average precision only if it was measured (dense protocol)."""
    names = ["precision", "recall", "f1", "ap", "misses_per_episode", "false_alarms_per_episode", "false_alarms_per_1000_steps"]
    heads = ["precision", "recall", "F1", "AP", "misses/episode", "false alarms/episode", "/1,000 steps"]
    ranked = f"event/ap@{MAIN_COLLAR}" in measured.values
    columns = [(name, head) for name, head in zip(names, heads, strict=True) if ranked or name != "ap"]
    digits = {"misses_per_episode": 2, "false_alarms_per_episode": 2, "false_alarms_per_1000_steps": 1}
    rows = [("collar", *(head for _, head in columns))]
    for collar in COLLARS:
        rows.append((f"±{collar}", *(figure(measured, f"event/{name}@{collar}", digits.get(name, 3)) for name, _ in columns)))
    if ranked:
        rows.append(("mean", *(figure(measured, "event/ap_mean") if name == "ap" else "" for name, _ in columns)))
    return rows


def delay_row(measured: Measured) -> Row:
    """Name and figures of the signed delays of the pairs at the largest collar."""
    low, high = (_number(measured.values[f"event/delay_{name}"], 1, sign=True) for name in ("p10", "p90"))
    median, early = figure(measured, "event/delay_median", 1, sign=True), figure(measured, "event/early_share", 2)
    return "delay", f"median {median} steps, 10 % {low}, 90 % {high}; share early {early} (pairs at ±{COLLARS[-1]}; + is late)"


def frame_rows(measured: Measured) -> list[Row]:
    """Names and figures of the frames."""
    return [
        (
            "frame average precision",
            f"{figure(measured, 'frame/average_precision')} (share of ends {figure(measured, 'frame/share_of_ends')})",
        ),
        ("negative log likelihood", figure(measured, "frame/nll")),
        ("Brier score", figure(measured, "frame/brier", 4)),
        ("calibration error", figure(measured, "frame/ece", 4)),
    ]


def figure(measured: Measured, name: str, digits: int = 3, sign: bool = False) -> str:
    """A figure with its interval in brackets if there is one."""
    value = measured.values[name]
    if np.isnan(value) or name not in measured.intervals:
        return _number(value, digits, sign)
    low, high = measured.intervals[name]
    return f"{_number(value, digits, sign)} [{_number(low, digits, sign)}, {_number(high, digits, sign)}]"


def _telling_episodes(episodes: Sequence[ScoredEpisode], decisions: Sequence[Decisions]) -> list[Shown]:
    all_of_them = [
        Shown("", number, episode, each.fired, match(each.fired, each.true, MAIN_COLLAR))
        for number, (episode, each) in enumerate(zip(episodes, decisions, strict=True))
    ]
    ordered = sorted(all_of_them, key=lambda each: (-each.f1, np.mean((each.episode.scores - each.episode.ends) ** 2)))
    places = {"median": len(ordered) // 2, "worst": len(ordered) - 1, "best": 0}
    chosen = {place: rank for rank, place in places.items()}  # of one or two episodes none is shown twice
    return [ordered[place]._replace(rank=rank) for place, rank in sorted(chosen.items())]


def _number(value: float, digits: int, sign: bool = False) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
