"""The optimizer: AdamW as torch computes it, one learning rate for all parts, and an EOS head that waits for its first update."""

from __future__ import annotations

import functools
from typing import Any

import optax

from eosjax.config import TrainConfig

WEIGHT_DECAY = 0.01  # torch's default, which the original trains with


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up from 10 % of `learning_rate`, then constant, then a tenth from `num_steps_before_decay` on.

    The schedule maps the number of updates made (i32 []) to the learning rate of the next one (f32 []). Equal flags give the same object.
    """
    return _schedule(config.learning_rate, config.lr_warmup_steps, config.num_steps_before_decay)


@functools.cache
def _schedule(peak: float, warmup_steps: int, steps_before_decay: int) -> optax.Schedule:
    constant = optax.piecewise_constant_schedule(peak, {steps_before_decay: 0.1})
    if warmup_steps == 0:
        return constant
    warmup = optax.linear_schedule(0.1 * peak, peak, warmup_steps)
    return lambda step: constant(step) * warmup(step) / peak


def _direction() -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8), optax.add_decayed_weights(WEIGHT_DECAY))


@functools.cache
def make_optimizer(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """One optax chain over a dict of parts (see `training.state`), with torch's AdamW defaults; the same object for the same schedule.

    `update(grads, state, params, eos_ready=bool[])` leaves the part `eos_head` alone while `eos_ready` is False: neither its
    parameters nor its Adam moments nor their step count move, as in torch for parameters that have no gradient. Without that, the
    head would decay towards zero, and its bias correction run out, long before it sees its first end.
    """

    def label(params: dict[str, Any]) -> dict[str, str]:
        return {part: "eos_head" if part == "eos_head" else "rest" for part in params}

    when_ready = optax.conditionally_mask(_direction(), lambda step, *, eos_ready, **_: eos_ready, forward_extra_args=True)
    return optax.chain(
        optax.partition({"rest": _direction(), "eos_head": when_ready}, label),
        optax.scale_by_learning_rate(schedule),
    )
