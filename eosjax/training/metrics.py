"""What an update measures: on the device as sums, on the host as a row of `metrics.jsonl`.

The *window* holds sums since the last log line. It is part of the training state, so that a resumed run writes the same rows as one that
was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from eosjax.buffer import BalancedBufferState
from eosjax.types import EosSample

ACTION_SUMS = ("action_sum", "action_count")
EOS_SUMS = ("eos_loss", "eos_updates", "true_positive", "false_positive", "true_negative", "false_negative", "age_positive", "age_negative")

FRESH_LOSS = "eos_fresh_loss"  # of the fresh rows beside a draw


class Metrics(NamedTuple):
    """What the host may fetch after an update; f32 [] each."""

    window: dict[str, jax.Array]  # sums since the last log line, this update included
    last: dict[str, jax.Array]  # values of this update


def zero_sums(names: Iterable[str]) -> dict[str, jax.Array]:
    """The sums of one forward pass before it has run."""
    return {name: jnp.zeros((), jnp.float32) for name in names}


def zero_window(names: Iterable[str]) -> dict[str, jax.Array]:
    """A window of these sums without any update in it."""
    return zero_sums(("steps", *names))


def eos_sums(logits: jax.Array, sample: EosSample, loss: jax.Array, ready: jax.Array, threshold: float) -> dict[str, jax.Array]:
    """Sums over one draw: loss, confusion counts and ages (in additions to the buffer); all 0 while the buffer is not ready.

    Args:
      logits: f32 [n] of the EOS head on the drawn rows.
      sample: the draw.
      loss: f32 [], its loss.
      ready: bool [], whether the draw counts.
      threshold: raw probability from which a row counts as an end. On a balanced draw the raw probability is the right one.
    """
    fired = (jax.nn.sigmoid(logits) >= threshold).astype(jnp.float32)
    positive, negative = sample.labels * sample.weights, (1 - sample.labels) * sample.weights
    ages = sample.ages.astype(jnp.float32)
    return {
        "eos_loss": loss,
        "eos_updates": ready.astype(jnp.float32),
        "true_positive": jnp.sum(positive * fired),
        "false_positive": jnp.sum(negative * fired),
        "true_negative": jnp.sum(negative * (1 - fired)),
        "false_negative": jnp.sum(positive * (1 - fired)),
        "age_positive": jnp.sum(positive * ages),
        "age_negative": jnp.sum(negative * ages),
    }


def last_values(grads: Mapping[str, object], sums: Mapping[str, jax.Array], learning_rate: jax.Array) -> dict[str, jax.Array]:
    """Gradient norm of each part, learning rate, and the EOS loss of this update."""
    norms = {f"{part}_grad_norm": optax.tree.norm(tree).astype(jnp.float32) for part, tree in grads.items()}
    last = {"learning_rate": learning_rate.astype(jnp.float32), **norms}
    if "eos_loss" in sums:
        last["eos_loss"] = sums["eos_loss"] / jnp.maximum(sums["eos_updates"], 1.0)
        last["eos_updates"] = sums["eos_updates"]
    return last


def buffer_values(buffer: BalancedBufferState) -> dict[str, jax.Array]:
    """Counts of the buffer after this update: rows held and seen of each class, draws made."""
    values = {
        "buffer_positive": buffer.positive.count,
        "buffer_negative": buffer.negative.count,
        "seen_positive": buffer.positive.seen,
        "seen_negative": buffer.negative.seen,
        "total_updates": buffer.updates,
    }
    return {name: value.astype(jnp.float32) for name, value in values.items()}


def to_row(metrics: Metrics, *, lambda_eos: float, lambda_eos_policy: float, micro_batches: int) -> dict[str, float]:
    """The `train/…` columns of a log row from fetched metrics (Python floats).

    Args:
      metrics: fetched to the host.
      lambda_eos: weight of the EOS loss in the total.
      lambda_eos_policy: weight of the fresh rows beside draws, where there are any.
      micro_batches: additions to the buffer per update; ages are reported in updates.
    """
    window = {name: float(value) for name, value in metrics.window.items()}
    last = {name: float(value) for name, value in metrics.last.items()}
    row = {"action_loss": _ratio(window["action_sum"], window["action_count"]), "learning_rate": last["learning_rate"]}
    row["total_loss"] = row["action_loss"]
    for which in ("curr_action", "next_actions"):
        if tokens := window.get(f"{which}_tokens"):
            row[f"{which}_accuracy"] = window[f"{which}_correct"] / tokens
            row[f"{which}_l1_loss"] = window[f"{which}_l1"] / tokens
    row |= {name: value for name, value in last.items() if name.endswith("_grad_norm")}
    if "eos_loss" in window:
        row |= _eos_columns(window, micro_batches)
        row |= _buffer_columns(window, last, micro_batches) if "total_updates" in last else {}
        passes = window["steps"] * micro_batches
        row["total_loss"] += lambda_eos * window["eos_loss"] / passes
        if FRESH_LOSS in window:
            row[FRESH_LOSS] = _ratio(window[FRESH_LOSS], window["eos_updates"])
            row["total_loss"] += lambda_eos_policy * window[FRESH_LOSS] / passes
    row = {("eos_grad_norm" if name == "eos_head_grad_norm" else name): value for name, value in row.items()}
    return {f"train/{name}": value for name, value in row.items()}


def _eos_columns(window: dict[str, float], micro_batches: int) -> dict[str, float]:
    tp, fp, tn, fn = (window[name] for name in ("true_positive", "false_positive", "true_negative", "false_negative"))
    return {
        "eos_loss": _ratio(window["eos_loss"], window["eos_updates"]),
        "eos_updated": window["eos_updates"] / (window["steps"] * micro_batches),
        "eos_rows_positive": _ratio(tp + fn, window["eos_updates"]),
        "eos_rows_negative": _ratio(fp + tn, window["eos_updates"]),
        "eos_accuracy": _ratio(tp + tn, tp + fp + tn + fn),
        "eos_precision": _ratio(tp, tp + fp),
        "eos_recall": _ratio(tp, tp + fn),
        "eos_f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }


def _buffer_columns(window: dict[str, float], last: dict[str, float], micro_batches: int) -> dict[str, float]:
    tp, fp, tn, fn = (window[name] for name in ("true_positive", "false_positive", "true_negative", "false_negative"))
    rows_per_draw = _ratio(tp + fp + tn + fn, window["eos_updates"])
    return {
        "eos_updates": last["total_updates"],
        "eos_age_positive": _ratio(window["age_positive"], tp + fn) / micro_batches,
        "eos_age_negative": _ratio(window["age_negative"], fp + tn) / micro_batches,
        "eos_buffer_positive": last["buffer_positive"],
        "eos_buffer_negative": last["buffer_negative"],
        "eos_seen_positive": last["seen_positive"],
        "eos_seen_negative": last["seen_negative"],
        "eos_utilisation": _ratio(last["total_updates"] * rows_per_draw, last["seen_positive"] + last["seen_negative"]),
    }


def _ratio(total: float, count: float) -> float:
    """0 where nothing was counted: the rows stay valid JSON, and their counts say why."""
    return total / count if count and math.isfinite(count) else 0.0
