"""What there is to tell of a policy's EOS head on one split: both protocols, its probabilities, and the rules that do not look."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eosjax.ends.calibration import Calibration
from eosjax.ends.comparison import HEAD, Comparison, compare
from eosjax.ends.events import MAIN_COLLAR
from eosjax.ends.frame import FrameTable
from eosjax.ends.measure import DEPLOYED, NMS_WINDOW, REPLICATES, Measured, ScoredEpisode, measure_decisions
from eosjax.ends.operating_points import FOLDS, OperatingPoint
from eosjax.ends.protocols import ChunkedEpisode
from eosjax.reports.scores import EventReport
from eosjax.reports.tables import Row, comparison_json, figure, named

CROSS_FITTED = "deployed_cross_fitted/"  # in front of the figures at points that were chosen without the episode


@dataclasses.dataclass(frozen=True)
class PolicyReport:
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
    dense: EventReport
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
    ) -> PolicyReport:
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
            EventReport.of(title, head, point.dense_threshold, window, replicates),
            measure_decisions([point.deployed(each) for each in episodes], replicates),
            measure_decisions(unseen, replicates) if unseen else None,
            reliability(episodes, point.calibration),
            compare({HEAD: head, **baselines}, window, replicates),
        )

    def to_json(self) -> dict[str, Any]:
        """As `EventReport.to_json`; with the figures of the deployed protocol behind their prefixes, and what else there is."""
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
