"""Validation during training: the policy on all steps of the held-out episodes, against rules that do not look."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from eosjax.evaluation.calibration import corrected_probability
from eosjax.evaluation.frame import FrameScores, average_precision, merge_chunks
from eosjax.types import Batch


class Validation(NamedTuple):
    """Result of one validation."""

    row: dict[str, float]  # the `val/…` columns of the metrics
    scores: FrameScores | None  # None without an EOS head


class EosSetting(NamedTuple):
    """What turns raw logits into decisions."""

    trained_prior: float  # share of ends in the draws
    true_prior: float  # share of ends in the training data
    threshold: float  # corrected probability from which a step counts as an end


def validate(
    predict: Callable[[Batch], Any], batches: Iterable[Batch], anchors: np.ndarray, ends: np.ndarray, eos: EosSetting | None
) -> Validation:
    """Runs the policy over a split and scores it frame by frame (dense protocol).

    Args:
      predict: maps a host batch to something with `l1_sum`, `l1_count` and `eos_logits` (device axis first).
      batches: the split, each sample once; rows of key -1 are ignored.
      anchors: i64 [n], the frame of each sample, by key.
      ends: bool [N], truth for all frames of the store.
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
    return Validation(row | _eos_columns(scores, eos), scores)


def _eos_columns(scores: FrameScores, eos: EosSetting) -> dict[str, float]:
    fired = corrected_probability(scores.logits, eos.trained_prior, eos.true_prior) >= eos.threshold
    hits = float(np.sum(fired & scores.ends))
    return {
        "val/eos_average_precision": average_precision(scores.ends, scores.logits),
        "val/eos_prior": float(scores.ends.mean()),
        "val/eos_precision": hits / max(float(fired.sum()), 1.0),
        "val/eos_recall": hits / max(float(scores.ends.sum()), 1.0),
    }
