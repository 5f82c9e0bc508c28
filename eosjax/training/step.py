"""One update, as a pure function of (state, frozen weights, batch). Knows no pmap: only the name of an axis to reduce over.

    total = action loss + lambda_eos * BCE(eos_head(hidden states drawn from the buffer), labels)
                       (+ lambda_eos_policy * BCE(eos_head(hidden states of this batch), labels), with `--eos_loss buffer_fresh`)

The action loss is that of the policy (`eosjax.models.policies`): L1 by default. The EOS loss is that of `eosjax.training.objectives`.
The drawn rows are *inputs* (stop-gradient on their way into the buffer) and the head runs on them inside the differentiated function:
that is what gives the head its gradient, and the policy none from this term. What the policy learns about ends comes from the rows of the
batch, if the flags let it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from eosjax import losses
from eosjax.buffer import BalancedBufferState
from eosjax.models.policies import Observation, Params
from eosjax.training import metrics
from eosjax.training.collectives import pmean, psum
from eosjax.training.keys import ForwardKeys, evaluation_keys, sample_keys, step_keys
from eosjax.training.objectives import EosRows
from eosjax.training.state import Learner, TrainState, sum_names
from eosjax.types import Batch


class Predictions(NamedTuple):
    """Outputs of the policy on a batch that it is not trained on."""

    l1_sum: jax.Array  # f32 []
    l1_count: jax.Array  # f32 []
    eos_logits: jax.Array  # f32 [b k], raw (on the scale of the balanced draws); zeros without an EOS head


class _Scales(NamedTuple):
    """What makes sums over a micro-batch on one device add up, averaged over both, to the mean over the update; f32 [] each."""

    numbers: jax.Array  # for sums over what the action loss counts
    rows: jax.Array  # for sums over valid slots


def train_step(
    learner: Learner, state: TrainState, frozen: Params, batch: Batch, *, axis_name: str | None = None
) -> tuple[TrainState, metrics.Metrics]:
    """One update of the trainable parts, the optimizer and the buffer.

    Under an axis, `batch` is this device's share and everything else is replicated: rows for the buffer are gathered over the axis and
    gradients averaged, so that every device returns the same state, and the same one as a single device with the whole batch.

    Args:
      learner: static parts of the run.
      state: replaced by the returned one.
      frozen: parts that are not trained.
      batch: leading axis `micro_batches * b`.
      axis_name: name of the mapped axis to reduce over, or None.
    """
    with_eos = learner.eos_head is not None
    micro_size = batch.valid.shape[0] // learner.micro_batches
    micro_batches = jax.tree.map(lambda x: x.reshape(learner.micro_batches, micro_size, *x.shape[1:]), batch)
    shares = learner.micro_batches * (lax.axis_size(axis_name) if axis_name else 1)
    counts = (learner.policy.count(batch.valid), jnp.sum(batch.valid, dtype=jnp.float32))
    scales = _Scales(*(shares / jnp.maximum(psum(count, axis_name), 1.0) for count in counts))
    differentiate = jax.value_and_grad(_total_loss, argnums=1, has_aux=True)

    def accumulate(carry, inputs):
        buffer, grads, sums = carry
        (_, (buffer, new_sums)), new_grads = differentiate(learner, state.trainable, frozen, buffer, *inputs, scales, axis_name)
        return (buffer, *jax.tree.map(jnp.add, (grads, sums), (new_grads, new_sums))), None

    keys = step_keys(state.rng, state.step, learner.micro_batches)
    start = (state.buffer, jax.tree.map(jnp.zeros_like, state.trainable), metrics.zero_sums(sum_names(learner)))
    (buffer, grads, sums), _ = lax.scan(accumulate, start, (micro_batches, keys))
    grads = pmean(jax.tree.map(lambda g: g / learner.micro_batches, grads), axis_name)
    sums |= {name: psum(sums[name], axis_name) for name in (*metrics.ACTION_SUMS, *learner.policy.extra_sums)}

    eos_ready = sums["eos_updates"] > 0 if with_eos else jnp.zeros((), bool)
    updates, opt_state = learner.optimizer.update(grads, state.opt_state, state.trainable, eos_ready=eos_ready)
    last = metrics.last_values(grads, sums, jnp.asarray(learner.schedule(state.step)))
    if buffer is not None:
        last |= metrics.buffer_values(buffer)
    window = _add_to_window(state, sums, learner.log_freq)
    new_state = TrainState(
        step=state.step + 1,
        trainable=_updated(state.trainable, updates),
        opt_state=opt_state,
        buffer=buffer,
        rng=state.rng,
        window=window,
    )
    return new_state, metrics.Metrics(window, last)


def predict(learner: Learner, trainable: Params, frozen: Params, batch: Batch) -> Predictions:
    """Action error and EOS logits of a batch, without dropout; rows that only fill the batch (`valid` False) count nothing."""
    done = learner.policy.act({**frozen, **trainable}, _seen(batch), evaluation_keys(batch.key))
    logits = jnp.zeros(batch.eos.shape)
    if learner.eos_head is not None:
        logits = _apply(learner.eos_head, {"params": trainable["eos_head"]}, done.hidden)
    return Predictions(*losses.masked_l1(done.actions, batch.actions, batch.valid), logits)


def _total_loss(
    learner: Learner,
    trainable: Params,
    frozen: Params,
    buffer: BalancedBufferState | None,
    batch: Batch,
    keys: ForwardKeys,
    scales: _Scales,
    axis_name: str | None,
) -> tuple[jax.Array, tuple[BalancedBufferState | None, dict[str, jax.Array]]]:
    """Loss of one micro-batch on one device; beside it the buffer with that micro-batch in it, and the sums to log."""
    adapter_key = keys.adapter_dropout
    if axis_name:  # each device drops its own adapter inputs, while the draw and the head must be the same everywhere
        adapter_key = jax.random.fold_in(adapter_key, lax.axis_index(axis_name))
    params, noise_keys = {**frozen, **trainable}, sample_keys(keys.noise, batch.key)
    hidden, sums = learner.policy.loss(params, _seen(batch), batch.actions, batch.valid, noise_keys, adapter_key)
    action_loss = sums["action_sum"] * scales.numbers
    head, objective = learner.eos_head, learner.objective
    if head is None or objective is None:
        return action_loss, (buffer, sums)

    if not learner.eos_reaches_policy:
        hidden = lax.stop_gradient(hidden)
    columns = (x.reshape(-1, *x.shape[2:]) for x in (hidden, batch.eos, batch.valid))
    rows = EosRows(*columns, scale=scales.rows)

    def logits_of(hidden: jax.Array) -> jax.Array:
        return _apply(head, {"params": trainable["eos_head"]}, hidden, deterministic=False, rngs={"dropout": keys.head_dropout})

    term = objective.loss(logits_of, buffer, rows, keys, axis_name)
    return action_loss + learner.lambda_eos * term.loss, (term.state, sums | term.sums)


def _seen(batch: Batch) -> Observation:
    return Observation(batch.images, batch.input_ids, batch.attn_mask, batch.proprio)


def _add_to_window(state: TrainState, sums: dict[str, jax.Array], log_freq: int) -> dict[str, jax.Array]:
    """Adds one update to the window, which starts anew after each log line."""
    starts = state.step % log_freq == 0
    return jax.tree.map(lambda old, new: jnp.where(starts, new, old + new), state.window, {"steps": jnp.ones(()), **sums})


def _apply(module: nn.Module, variables: Params, *args: Any, **kwargs: Any) -> jax.Array:
    return module.apply(variables, *args, **kwargs)  # pyright: ignore[reportReturnType]  # a tuple only with `mutable`


def _updated(params: Params, updates: optax.Updates) -> Params:
    return optax.apply_updates(params, updates)  # pyright: ignore[reportReturnType]  # the same tree as `params`
