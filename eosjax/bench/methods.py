"""The methods that are compared, by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from eosjax.bench.compared_objectives import CrossBatchMemory, DetachedLogits, EmptiedBuffer
from eosjax.buffer import BalancedBuffer
from eosjax.config import FOCAL_GAMMA, TrainConfig
from eosjax.ends.calibration import Calibration, adjustment_shift, prior_shift, weight_shift
from eosjax.training.objectives import BufferAndFreshObjective, BufferObjective, EosObjective, FreshObjective
from eosjax.types import UserError

THRESHOLD = 0.5  # of the confusion counts that an objective sums up; nothing here depends on it
POSITIVE, NEGATIVE = 15, 20  # rows of a draw: the original's defaults
CAPACITY = 50
WARMUP = 100  # updates without the memory in `xbm`
REFERENCE = "buffer_50"


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train the EOS head.

    Attributes:
      name: short, for flags and files.
      title: for tables.
      objective: the loss.
      calibration: the exact part of it: what makes probabilities of the raw logits.
      balanced_feed: the rows of an update are drawn from all training rows in fixed shares of the classes, not taken from the stream of
        batches that all other methods see.
    """

    name: str
    title: str
    objective: EosObjective
    calibration: Calibration
    balanced_feed: bool = False


def all_methods(share_of_ends: float) -> dict[str, Method]:
    """All methods by name.

    Args:
      share_of_ends: in the training data, between 0 and 1.
    """
    prior = functools.partial(_trained_on, share_of_ends=share_of_ends)
    share = POSITIVE / (POSITIVE + NEGATIVE)
    memory = CrossBatchMemory(THRESHOLD, BufferObjective(THRESHOLD, _buffer()), warmup=WARMUP)
    methods = [
        Method("detached", "detached logits (mistake)", DetachedLogits(THRESHOLD, _buffer()), prior(share)),
        Method("emptied", "emptied buffer 5 + 10 (mistake)", EmptiedBuffer(THRESHOLD, _buffer(CAPACITY, 5, 10)), prior(5 / 15)),
        *_fresh_methods(share_of_ends),
        Method(
            "balanced_sampler",
            "balanced sampler",
            FreshObjective(THRESHOLD, "bce", share_of_ends),
            prior(share),
            balanced_feed=True,
        ),
        *(Method(f"buffer_{n}", f"balanced buffer, {n:,}", BufferObjective(THRESHOLD, _buffer(n)), prior(share)) for n in (50, 500, 5000)),
        Method("buffer_fresh", "balanced buffer, 50, and fresh rows", _buffer_and_fresh(share_of_ends), prior(share)),
        Method("xbm", "buffer + fresh batch (XBM)", memory, prior(memory.prior(share_of_ends))),
        Method("buffer_age_match", "buffer, ages matched", BufferObjective(THRESHOLD, _buffer(), age_match=True), prior(share)),
        *(Method(f"draw_{n}", f"buffer, draws of {n} + {NEGATIVE}", _drawing(n), prior(n / (n + NEGATIVE))) for n in (10, 20)),
    ]
    return {method.name: method for method in methods}


def choose(names: str | None, share_of_ends: float) -> list[Method]:
    """The methods of a flag `a,b`, in order; None for all.

    Raises:
      UserError: a name that is none of a method, or is repeated.
    """
    methods = all_methods(share_of_ends)
    if names is None:
        return list(methods.values())
    chosen = [name.strip() for name in names.split(",")]
    unknown = [name for name in chosen if name not in methods]
    if unknown or len(set(chosen)) < len(chosen):
        what = f"no method {unknown[0]!r}" if unknown else "a method is named twice"
        raise UserError(f"--methods {names}: {what}; there are {', '.join(methods)}")
    return [methods[name] for name in chosen]


def with_and_without_memory(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Results of `sweep.run_method` in two groups by title, for plots: methods that keep rows, and the others with the reference."""
    keeps = [each["method"].startswith(("buffer", "draw", "emptied", "detached", "xbm")) for each in results]
    return {
        "without a memory": [each for each, kept in zip(results, keeps, strict=True) if not kept or each["method"] == REFERENCE],
        "with a memory": [each for each, kept in zip(results, keeps, strict=True) if kept],
    }


def _fresh_methods(share_of_ends: float) -> list[Method]:
    odds_against = (1 - share_of_ends) / share_of_ends
    kinds: Mapping[str, tuple[str, Calibration]] = {
        "bce": ("plain BCE", Calibration()),
        "pos_weight": ("pos_weight", Calibration(weight_shift(odds_against))),
        "focal": ("focal loss", Calibration(gamma=FOCAL_GAMMA)),
        "logit_adjust": ("logit adjustment", Calibration(adjustment_shift(share_of_ends))),
    }
    return [Method(kind, title, FreshObjective(THRESHOLD, kind, share_of_ends), exact) for kind, (title, exact) in kinds.items()]


def _buffer(capacity: int = CAPACITY, positive: int = POSITIVE, negative: int = NEGATIVE) -> BalancedBuffer:
    return BalancedBuffer(capacity, positive, negative, positive, negative)


def _buffer_and_fresh(share_of_ends: float) -> BufferAndFreshObjective:
    """At the weights of the flags; on a policy that stands still the fresh rows teach the head alone."""
    weight = TrainConfig.lambda_eos_policy / TrainConfig.lambda_eos
    return BufferAndFreshObjective(THRESHOLD, _buffer(), fresh_weight=weight, share_of_ends=share_of_ends)


def _drawing(positive: int) -> BufferObjective:
    return BufferObjective(THRESHOLD, _buffer(positive=positive))


def _trained_on(prior: float, share_of_ends: float) -> Calibration:
    return Calibration(prior_shift(prior, share_of_ends))
