"""What a training run is made of: the static `Learner` and the `TrainState` that each update replaces."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from eosjax.buffer import BalancedBuffer, BalancedBufferState
from eosjax.config import BUFFER_FRESH, TrainConfig
from eosjax.models.heads import EosHead
from eosjax.models.openvla import VLAConfig
from eosjax.models.parts import make_eos_head
from eosjax.models.policies import Params, Policy, make_policy
from eosjax.training.metrics import ACTION_SUMS, zero_window
from eosjax.training.objectives import BufferAndFreshObjective, BufferObjective, EosObjective, FreshObjective
from eosjax.training.optim import learning_rate_schedule, make_optimizer


@dataclasses.dataclass(frozen=True)
class Learner:
    """Everything about a run that does not change from update to update.

    Hashable, so that a jitted step can close over it. Learners of equal flags and shapes are equal, so that they share a compiled step.
    """

    policy: Policy
    eos_head: EosHead | None
    objective: EosObjective | None
    optimizer: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    lambda_eos: float
    eos_reaches_policy: bool
    micro_batches: int
    log_freq: int


@struct.dataclass
class TrainState:
    """What an update reads and replaces, and all that a checkpoint needs of the devices."""

    step: jax.Array  # i32 []: updates made
    trainable: Params
    opt_state: optax.OptState
    buffer: BalancedBufferState | None  # None where the EOS head learns from fresh rows, or there is none
    rng: jax.Array  # the run's key; never advanced (see `training.keys`)
    window: dict[str, jax.Array]  # sums of the metrics since the last log line


def make_learner(config: TrainConfig, vla_config: VLAConfig, share_of_ends: float | None = None) -> Learner:
    """Builds modules, objective and optimizer of a run from its configuration; allocates nothing.

    Args:
      config: the run.
      vla_config: the model.
      share_of_ends: in the training data, between 0 and 1; a learner without it cannot be trained with an `eos_loss` on fresh rows.
    """
    with_eos = config.use_eos_classification
    schedule = learning_rate_schedule(config)
    return Learner(
        policy=make_policy(vla_config),
        eos_head=make_eos_head(config),
        objective=make_objective(config, share_of_ends) if with_eos else None,
        optimizer=make_optimizer(schedule),
        schedule=schedule,
        lambda_eos=config.lambda_eos,
        eos_reaches_policy=config.eos_reaches_policy,
        micro_batches=config.grad_accumulation_steps,
        log_freq=config.log_freq,
    )


def make_objective(config: TrainConfig, share_of_ends: float | None) -> EosObjective:
    """How the `eos_*` flags have the EOS head trained; arguments as in `make_learner`."""
    if config.eos_loss == BUFFER_FRESH:
        weight = config.lambda_eos_policy / config.lambda_eos  # of the step's term, which counts lambda_eos times
        return BufferAndFreshObjective(config.eos_threshold, make_buffer(config), config.eos_age_match, weight, share_of_ends)
    if config.uses_buffer:
        return BufferObjective(config.eos_threshold, make_buffer(config), config.eos_age_match)
    return FreshObjective(config.eos_threshold, config.eos_loss, share_of_ends)


def make_buffer(config: TrainConfig) -> BalancedBuffer:
    """The class-balanced buffer that the `eos_*` flags describe."""
    return BalancedBuffer(
        capacity=config.eos_buffer_capacity,
        sample_positive=config.eos_sample_positive,
        sample_negative=config.eos_sample_negative,
        min_positive=config.eos_min_positive,
        min_negative=config.eos_min_negative,
    )


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """bool []: no number of the tree is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def init_state(learner: Learner, trainable: Params, rng: jax.Array) -> TrainState:
    """The state before the first update: an empty buffer, fresh Adam moments, step 0."""
    config = learner.policy.vla.config
    hidden = jax.ShapeDtypeStruct((config.action_dim, config.llama.width), config.dtype)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=learner.optimizer.init(trainable),
        buffer=learner.objective.init(hidden) if learner.objective is not None else None,
        rng=rng,
        window=zero_window(sum_names(learner)),
    )


def sum_names(learner: Learner) -> tuple[str, ...]:
    """What an update of this learner sums up for the log."""
    return (*ACTION_SUMS, *learner.policy.extra_sums, *(learner.objective.sums if learner.objective is not None else ()))
