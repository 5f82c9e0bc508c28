"""What `eosjax score` and `eosjax evaluate` measure, as numbers: for the terminal, a JSON file and a page alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eosjax.ends.bootstrap import REPLICATES, Measured
from eosjax.ends.calibration import Calibration
from eosjax.ends.comparison import HEAD, Comparison, compare
from eosjax.ends.events import MAIN_COLLAR, NMS_WINDOW, Decisions, ScoredEpisode, match
from eosjax.ends.frame import FrameTable
from eosjax.ends.measure import DEPLOYED, ScoreTables, measure_decisions
from eosjax.ends.operating_points import FOLDS, OperatingPoint
from eosjax.ends.protocols import ChunkedEpisode
from eosjax.ends.ranking import Curve
from eosjax.reports.tables import Row, comparison_json, comparison_rows, delay_row, event_rows, figure, frame_rows, named, table
from eosjax.reports.texts import literal

CROSS_FITTED = "deployed_cross_fitted/"  # in front of the figures at points that were chosen without the episode


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
class ScoreEvaluation:
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
    ) -> ScoreEvaluation:
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

    def to_text(self) -> str:
        """The figures for the terminal."""
        intervals = "in brackets: 95 % intervals over episodes" if self.measured.intervals else "no intervals: there is one episode only"
        figures = [delay_row(self.measured), *frame_rows(self.measured)]
        return "\n\n".join([f"{literal(self.title)}: {self.sentence()}; {intervals}", table(event_rows(self.measured)), table(figures)])


def _telling_episodes(episodes: Sequence[ScoredEpisode], decisions: Sequence[Decisions]) -> list[Shown]:
    all_of_them = [
        Shown("", number, episode, each.fired, match(each.fired, each.true, MAIN_COLLAR))
        for number, (episode, each) in enumerate(zip(episodes, decisions, strict=True))
    ]
    ordered = sorted(all_of_them, key=lambda each: (-each.f1, np.mean((each.episode.scores - each.episode.ends) ** 2)))
    places = {"median": len(ordered) // 2, "worst": len(ordered) - 1, "best": 0}
    chosen = {place: rank for rank, place in places.items()}  # of one or two episodes none is shown twice
    return [ordered[place]._replace(rank=rank) for place, rank in sorted(chosen.items())]


@dataclasses.dataclass(frozen=True)
class PolicyEvaluation:
    """Measured at one operating point.

    Attributes:
      point: where.
      dense: the dense protocol.
      deployed: the deployed protocol.
      cross_fitted: the deployed protocol on the episodes that the point was chosen on, each at a point that was chosen without it: how much
        of the figures of `deployed` is due to having chosen. None on other episodes.
      reliability: of the raw, the exactly corrected and the calibrated probabilities, negative log likelihood and calibration error.
      comparison: with the baselines.
    """

    point: OperatingPoint
    dense: ScoreEvaluation
    deployed: Measured
    cross_fitted: Measured | None
    reliability: Mapping[str, tuple[float, float]]
    comparison: Comparison

    @classmethod
    def of(
        cls,
        title: str,
        episodes: Sequence[ChunkedEpisode],
        point: OperatingPoint,
        without: Sequence[OperatingPoint],
        baselines: Mapping[str, Sequence[ScoredEpisode]],
        window: int = NMS_WINDOW,
        replicates: int = REPLICATES,
    ) -> PolicyEvaluation:
        """Measures.

        Args:
          title: of the report.
          episodes: at least one.
          point: where.
          without: for each episode a point that was chosen without it; empty for none.
          baselines: by name, their probabilities of the same episodes.
          window: of the non-maximum suppression, in steps.
          replicates: draws of the bootstrap.
        """
        head = [point.dense(each) for each in episodes]
        unseen = [at.deployed(each) for at, each in zip(without, episodes, strict=True)] if without else []
        return cls(
            point,
            ScoreEvaluation.of(title, head, point.dense_threshold, window, replicates),
            measure_decisions([point.deployed(each) for each in episodes], replicates),
            measure_decisions(unseen, replicates) if unseen else None,
            reliability(episodes, point.calibration),
            compare({HEAD: head, **baselines}, window, replicates),
        )

    def to_json(self) -> dict[str, Any]:
        """As `ScoreEvaluation.to_json`; with the figures of the deployed protocol under their prefixes, and what else there is."""
        content = self.dense.to_json()
        intervals = content.pop("intervals_95")
        about = content.pop("about")
        for prefix, measured in ((DEPLOYED, self.deployed), (CROSS_FITTED, self.cross_fitted)):
            if measured is not None:
                values, bounds = named(measured, prefix)
                content |= values
                intervals |= bounds
        tables = {
            "reliability": {name: {"nll": nll, "ece": ece} for name, (nll, ece) in self.reliability.items()},
            "methods": comparison_json(self.comparison),
            "operating_point": self.point.to_json(),
        }
        return {**content, "intervals_95": intervals, **tables, "about": about}

    def to_text(self) -> str:
        """The figures for the terminal."""
        parts = [
            self.deployed_sentence(),
            table(event_rows(self.deployed)),
            table([delay_row(self.deployed)]),
            table(self.reliability_rows()),
            table(comparison_rows(self.comparison)),
        ]
        return "\n\n".join([self.dense.to_text(), *parts])

    def deployed_sentence(self) -> str:
        """Where the deployed protocol was measured, and on which episodes the point was chosen."""
        text = f"Deployed protocol (asked only where it plans): {self.point.sentence()}"
        if self.cross_fitted is None:
            return text
        names = {"precision": "precision", "recall": "recall", "f1": "F1", "false_alarms_per_episode": "false alarms/episode"}
        said = ", ".join(f"{head} {figure(self.cross_fitted, f'event/{name}@{MAIN_COLLAR}')}" for name, head in names.items())
        return (
            f"{text}. Those are the episodes measured here; at points chosen without the episode ({FOLDS} folds), at ±{MAIN_COLLAR}: {said}"
        )

    def reliability_rows(self) -> list[Row]:
        """A table, the header first."""
        rows = [("probability", "negative log likelihood", "calibration error")]
        return rows + [(name, f"{nll:.4f}", f"{ece:.4f}") for name, (nll, ece) in self.reliability.items()]


def reliability(episodes: Sequence[ChunkedEpisode], calibration: Calibration) -> dict[str, tuple[float, float]]:
    """Negative log likelihood and calibration error of what single chunks say about their steps, by kind of probability.

    Args:
      episodes: at least one.
      calibration: the one in use.
    """
    votes = [each.votes for each in episodes]
    logits, ends = (np.concatenate(column) for column in zip(*votes, strict=True))
    sizes = np.array([each.size for each, _ in votes])
    kinds = {"raw": Calibration(), "exactly corrected": calibration.exact, "calibrated": calibration}
    rows = {}
    for name, kind in kinds.items():
        found = FrameTable.of(kind.probabilities(logits), ends, sizes).metrics(np.ones(sizes.size, np.int64))
        rows[name] = found["frame/nll"], found["frame/ece"]
    return rows
