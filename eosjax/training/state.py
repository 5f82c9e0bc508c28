"""What a training run is made of: the static `Learner` and the `TrainState` that each update replaces.

Parameters are a dict of *parts*, which is what optimizer, metrics and checkpoints speak of:

  vla                     base weights of the policy: trained with `use_lora=False`, otherwise frozen
  vision_backbone         the encoders, frozen, with `freeze_vision=True` and `use_lora=False`; otherwise in `vla`
  lora                    adapters of the policy, with `use_lora=True`
  film                    layers that modulate the encoders, with `use_film=True`; always trained
  proprio_projector       with `use_proprio=True`; always trained
  noisy_action_projector  with `use_diffusion=True`; always trained
  action_head             always trained; a policy whose actions are tokens has none
  eos_head                with `use_eos_classification=True`; trained from the buffer alone
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from eosjax.buffer import BalancedBuffer, BalancedBufferState
from eosjax.config import BALANCED_BUFFER, TrainConfig
from eosjax.models.film import split_film
from eosjax.models.heads import EosHead
from eosjax.models.openvla import VLAConfig
from eosjax.models.policies import MODULES, Params, Policy, make_policy
from eosjax.training.metrics import ACTION_SUMS, EOS_SUMS, zero_window
from eosjax.training.objectives import BufferObjective, EosObjective, FreshObjective
from eosjax.training.optim import learning_rate_schedule, make_optimizer
from eosjax.types import Batch


@dataclasses.dataclass(frozen=True)
class Learner:
    """Everything about a run that does not change from update to update; hashable, so that a jitted step can close over it."""

    policy: Policy
    eos_head: EosHead | None
    objective: EosObjective | None
    optimizer: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    lambda_eos: float
    eos_backbone_grad: bool
    micro_batches: int
    log_freq: int


@struct.dataclass
class TrainState:
    """What an update reads and replaces, and all that a checkpoint needs of the devices."""

    step: jax.Array  # i32 []: updates made
    trainable: Params
    opt_state: optax.OptState
    buffer: BalancedBufferState | None  # None where the EOS head learns from fresh rows, or there is none
    rng: jax.Array  # the run's key; never advanced, folded with `step` at each use
    window: dict[str, jax.Array]  # sums of the metrics since the last log line


def make_learner(config: TrainConfig, vla_config: VLAConfig, share_of_ends: float | None = None) -> Learner:
    """Builds modules, objective and optimizer of a run from its configuration; allocates nothing.

    Args:
      config: the run.
      vla_config: the model.
      share_of_ends: in the training data, between 0 and 1; a learner without it cannot be trained with an `eos_loss` on fresh rows.
    """
    with_eos = config.use_eos_classification
    return Learner(
        policy=make_policy(vla_config),
        eos_head=EosHead(hidden_dim=config.eos_hidden_dim, dropout=config.eos_dropout) if with_eos else None,
        objective=make_objective(config, share_of_ends) if with_eos else None,
        optimizer=make_optimizer(config),
        schedule=learning_rate_schedule(config),
        lambda_eos=config.lambda_eos,
        eos_backbone_grad=config.eos_backbone_grad,
        micro_batches=config.grad_accumulation_steps,
        log_freq=config.log_freq,
    )


def make_objective(config: TrainConfig, share_of_ends: float | None) -> EosObjective:
    """How the `eos_*` flags have the EOS head trained; arguments as in `make_learner`."""
    if config.eos_loss == BALANCED_BUFFER:
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


def init_params(learner: Learner, batch: Batch, rng: jax.Array, *, with_base: bool = True) -> Params:
    """Random parameters of all parts, in the dtypes that the modules ask for; without those of `base_parts` unless `with_base`.

    To be jitted: what is not returned is then not computed either.

    Args:
      learner: the modules.
      batch: a batch of the right shapes; its values do not matter.
      rng: key.
    """
    keys = dict(zip(("vla", "lora", "action_head", "eos_head"), jax.random.split(rng, 4), strict=True))
    vla = learner.policy.vla
    variables = vla.init({"params": keys["vla"], "lora": keys["lora"]}, batch.images, batch.input_ids, batch.attn_mask, batch.proprio)
    base = dict(variables["params"])
    params: Params = {part: base.pop(part) for part in MODULES if part in base and part != "vision_backbone"}
    if vla.config.film:
        base, params["film"] = split_film(base)
    if with_base:
        params |= base_parts(base, vla.config)
    if "lora" in variables:
        params["lora"] = variables["lora"]
    if (head := learner.policy.init_head(keys["action_head"])) is not None:
        params["action_head"] = head
    if learner.eos_head is not None:
        hidden = jnp.zeros((vla.config.action_dim, vla.config.llama.width))
        params["eos_head"] = learner.eos_head.init(keys["eos_head"], hidden)["params"]
    return params


def base_parts(base: Params, config: VLAConfig) -> Params:
    """The parts that the base weights of `OpenVLA` make up: `vla`, or `vla` and the frozen `vision_backbone`."""
    if not config.freeze_vision or config.lora_rank:
        return {"vla": base}
    rest = dict(base)
    return {"vision_backbone": rest.pop("vision_backbone"), "vla": rest}


def split_params(params: Params) -> tuple[Params, Params]:
    """Splits the parts into (trainable, frozen): with adapters the base is frozen, without them all but encoders that stand apart."""
    frozen = {"vla"} if "lora" in params else {"vision_backbone"}
    return (
        {part: tree for part, tree in params.items() if part not in frozen},
        {part: tree for part, tree in params.items() if part in frozen},
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
    return (*ACTION_SUMS, *learner.policy.extra_sums, *(EOS_SUMS if learner.eos_head is not None else ()))
