"""Measures heads on the test episodes, with everything that is to be chosen chosen on the validation episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eosjax.bench.feeds import Split
from eosjax.ends.baselines import CHANCE, baseline_scores
from eosjax.ends.bootstrap import Measured, bootstrap
from eosjax.ends.calibration import Calibration
from eosjax.ends.events import MAIN_COLLAR, Decisions, ScoredEpisode
from eosjax.ends.frame import FrameTable, merge_chunks
from eosjax.ends.measure import DecisionTable, ScoreTables
from eosjax.ends.protocols import Rule
from eosjax.ends.sweeps import dense_sweep, deployed_sweep, pick, replay_at
from eosjax.flag_values import OperatingRule
from eosjax.runs.hidden import Columns

REPLICATES = 300  # of the bootstrap; each measures all seeds
RULE = OperatingRule("f1", MAIN_COLLAR)
Figures = Callable[[np.ndarray], dict[str, float]]  # of weights i64 [e], how often each test episode counts


class Judged(NamedTuple):
    """One head, measured."""

    calibration: Calibration
    threshold: float  # of the dense protocol
    deployed_threshold: float
    figures: Figures


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Measures on the episodes of a cache.

    Attributes:
      columns: of the cache.
      split: its episodes.
      chunk: k.
    """

    columns: Columns
    split: Split
    chunk: int

    @property
    def numbers(self) -> np.ndarray:
        """i64: the rows whose logits `head` asks for: all chunks of the validation episodes, then those of the test episodes."""
        frames = np.concatenate([self.columns.frames_of(episodes) for episodes in (self.split.val, self.split.test)])
        return (frames[:, None] * self.chunk + np.arange(self.chunk)).reshape(-1)

    def head(self, logits: np.ndarray, exact: Calibration) -> Judged:
        """Measures a head in both protocols.

        Args:
          logits: f[m], raw, of `numbers`.
          exact: how they become probabilities, as far as the loss tells.
        """
        chunks = self._chunks(logits)
        merged = [self._merged(*part) for part in zip((self.split.val, self.split.test), chunks, strict=True)]
        calibration = exact.fit(merged[0], self._ends(self.split.val))
        val, test = (
            self._episodes(part, calibration.probabilities(each))
            for part, each in zip((self.split.val, self.split.test), merged, strict=True)
        )
        threshold = pick(dense_sweep(val, MAIN_COLLAR), RULE).threshold
        tables = ScoreTables.of(test, threshold)
        uncalibrated = self._frames(self.split.test, exact.probabilities(merged[1]))
        deployed_threshold, decisions = self._deployed(*(calibration.probabilities(each) for each in chunks))

        def figures(weights: np.ndarray) -> dict[str, float]:
            before = uncalibrated.metrics(weights)
            return {
                **tables.decisions.metrics(weights),
                **tables.events.metrics(weights),
                **tables.frames.metrics(weights),
                **{f"exact/{name}": before[name] for name in ("frame/nll", "frame/brier", "frame/ece")},
                **{f"deployed/{name}": value for name, value in decisions.metrics(weights).items()},
            }

        return Judged(calibration, threshold, deployed_threshold, figures)

    def baselines(self) -> dict[str, Figures]:
        """The figures of the baselines and of chance, by name: dense protocol."""
        train = np.isin(self.columns.episode_of, self.split.train)
        scores = dict(baseline_scores(self.columns.baseline_inputs, train))
        scores[CHANCE] = np.random.default_rng(0).random(train.size)
        return {name: self._baseline(values) for name, values in scores.items()}

    def _baseline(self, scores: np.ndarray) -> Figures:
        val, test = (self._episodes(part, scores[self.columns.frames_of(part)]) for part in (self.split.val, self.split.test))
        tables = ScoreTables.of(test, pick(dense_sweep(val, MAIN_COLLAR), RULE).threshold)
        return lambda weights: {**tables.decisions.metrics(weights), **tables.events.metrics(weights), **tables.frames.metrics(weights)}

    def _chunks(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f[n, k] of the validation and of the test episodes."""
        chunks = logits.reshape(-1, self.chunk)
        frames = self.columns.frames_of(self.split.val).size
        return chunks[:frames], chunks[frames:]

    def _merged(self, episodes: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        """f64 [n]: the mean logit of each frame."""
        frames = self.columns.frames_of(episodes)
        return merge_chunks(frames, chunks, self.columns.valid(self.chunk)[frames], self.columns.ends).logits

    def _ends(self, episodes: np.ndarray) -> np.ndarray:
        return self.columns.ends[self.columns.frames_of(episodes)]

    def _episodes(self, episodes: np.ndarray, probabilities: np.ndarray) -> list[ScoredEpisode]:
        """`probabilities` f64 [n] of all frames of some episodes, episode by episode."""
        parts = zip(self._split(episodes, probabilities), self._split(episodes, self._ends(episodes)), strict=True)
        return [ScoredEpisode(f"episode {number}", each, ends) for number, (each, ends) in zip(episodes, parts, strict=True)]

    def _frames(self, episodes: np.ndarray, probabilities: np.ndarray) -> FrameTable:
        return FrameTable.of(probabilities, self._ends(episodes), np.diff(self.columns.episode_starts)[episodes])

    def _split(self, episodes: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
        return np.split(values, np.cumsum(np.diff(self.columns.episode_starts)[episodes])[:-1])

    def _deployed(self, val: np.ndarray, test: np.ndarray) -> tuple[float, DecisionTable]:
        """The threshold that the validation episodes ask for, and what it fires in the test episodes; probabilities f64 [n, k]."""
        parts = [
            (self._split(part, each), self._split(part, self._ends(part)))
            for part, each in ((self.split.val, val), (self.split.test, test))
        ]
        threshold = pick(deployed_sweep(*parts[0], MAIN_COLLAR), RULE).threshold
        decisions = [
            Decisions(np.flatnonzero(replay_at(scores, np.array([threshold]), Rule(threshold))[0]), np.flatnonzero(ends), ends.size)
            for scores, ends in zip(*parts[1], strict=True)
        ]
        return threshold, DecisionTable.of(decisions)


def pooled(figures: Sequence[Figures], episodes: int, replicates: int = REPLICATES) -> Measured:
    """The mean over several heads (the seeds) of each figure, with 95 % intervals over test episodes.

    Each draw of episodes serves all heads.

    Args:
      figures: of each head.
      episodes: e.
      replicates: of the bootstrap.
    """

    def mean(weights: np.ndarray) -> dict[str, float]:
        return mean_figures([each(weights) for each in figures])

    return bootstrap([mean], episodes, replicates)


def mean_figures(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over those rows in which it is defined; NaN if it is in none."""
    columns = {name: [row[name] for row in rows if not np.isnan(row[name])] for name in rows[0]}
    return {name: float(np.mean(values)) if values else float("nan") for name, values in columns.items()}


def spread(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The standard deviation (n - 1) of each figure over those rows in which it is defined; NaN for fewer than two."""
    columns = {name: [row[name] for row in rows if not np.isnan(row[name])] for name in rows[0]}
    return {name: float(np.std(values, ddof=1)) if len(values) > 1 else float("nan") for name, values in columns.items()}
