"""A policy on all steps of a split: its action error, and how well its EOS head tells the ends (dense protocol)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from eosjax.evaluation.calibration import corrected_probability
from eosjax.evaluation.frame import FrameScores, merge_chunks
from eosjax.evaluation.measure import ScoredEpisode, measure_scores
from eosjax.types import Batch


class Validation(NamedTuple):
    """Result of one validation."""

    row: dict[str, float]  # the `val/…` columns of the metrics: `val/action_loss`, and the figures of `evaluation.measure` that are defined
    scores: FrameScores | None  # None without an EOS head


class EosSetting(NamedTuple):
    """What turns raw logits into decisions."""

    trained_prior: float  # share of ends in the draws
    true_prior: float  # share of ends in the training data
    threshold: float  # corrected probability from which a step counts as an end

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """f64 of the shape of `logits`: at the true share of ends."""
        return corrected_probability(logits, self.trained_prior, self.true_prior)


def validate(
    predict: Callable[[Batch], Any],
    batches: Iterable[Batch],
    anchors: np.ndarray,
    ends: np.ndarray,
    episode_of: np.ndarray,
    eos: EosSetting | None,
) -> Validation:
    """Runs the policy over a split and measures it.

    Args:
      predict: maps a host batch to something with `l1_sum`, `l1_count` and `eos_logits` (device axis first).
      batches: the split, each sample once; rows of key -1 are ignored.
      anchors: i64 [n], the frame of each sample, by key.
      ends: bool [N], truth for all frames of the store.
      episode_of: i64 [N], the episode of each frame.
      eos: None if there is no EOS head.
    """
    total = count = 0.0
    parts = []
    for batch in batches:
        predictions = predict(batch)
        total += float(np.sum(predictions.l1_sum))
        count += float(np.sum(predictions.l1_count))
        real = batch.key >= 0
        logits = np.asarray(predictions.eos_logits, np.float32).reshape(batch.eos.shape)
        parts.append((anchors[batch.key[real]], logits[real], batch.valid[real]))
    row = {"val/action_loss": total / max(count, 1.0)}
    if eos is None:
        return Validation(row, None)
    frames, logits, valid = (np.concatenate(column) for column in zip(*parts, strict=True))
    scores = merge_chunks(frames, logits, valid, ends)
    figures = measure_scores(by_episode(scores, episode_of, eos), eos.threshold, replicates=0).values
    return Validation(row | {f"val/{name}": value for name, value in figures.items() if np.isfinite(value)}, scores)


def by_episode(scores: FrameScores, episode_of: np.ndarray, eos: EosSetting) -> list[ScoredEpisode]:
    """The corrected probabilities, episode by episode.

    Args:
      scores: of all frames of some episodes.
      episode_of: i64 [N], the episode of each frame of the store.
      eos: the priors.
    """
    numbers = episode_of[scores.frames]
    starts = np.flatnonzero(np.diff(numbers)) + 1
    columns = (np.split(column, starts) for column in (numbers, eos.probabilities(scores.logits), scores.ends))
    return [ScoredEpisode(f"episode {number[0]}", probabilities, ends) for number, probabilities, ends in zip(*columns, strict=True)]
