"""Trains many heads at once from cached hidden states: one compiled scan over the updates, mapped over seeds and learning rates.

A row is known by its number: of the hidden states only those that a loss asks for are looked up, and a buffer of rows is a buffer of
numbers. While the policy does not change that is the same, at the cost of the heads alone.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from eosjax.config import TrainConfig
from eosjax.models.heads import EosHead
from eosjax.training.keys import forward_keys, run_keys
from eosjax.training.objectives import EosObjective, EosRows
from eosjax.training.optim import learning_rate_schedule, make_optimizer

BLOCK = 2048  # rows that a head looks at in one piece when it is measured
DECAY_AT = 2 / 3  # of the updates; after it a tenth of the learning rate, as in the demo's recipe
_PART = "eos_head"


class Rows(NamedTuple):
    """All rows of a cache on the device, by number: slot j of the chunk at frame i is row i * k + j."""

    hidden: jax.Array  # [n a d]
    labels: jax.Array  # f32 [n]
    valid: jax.Array  # bool [n]


class Runs(NamedTuple):
    """r heads in training; every array has that axis in front."""

    step: jax.Array  # i32 []
    params: Any
    opt_state: optax.OptState
    objective: Any  # state of the objective, whose rows are numbers
    learning_rate: jax.Array  # f32 []
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class HeadTrainer:
    """The static parts of a comparison: what all heads of one method have in common.

    Attributes:
      head: the module.
      objective: the loss.
      updates: of each run, which tell when the learning rate falls.
    """

    head: EosHead
    objective: EosObjective
    updates: int

    def init(self, rows: Rows, seeds: np.ndarray, learning_rates: np.ndarray) -> Runs:
        """Heads before the first update; those of one seed are equal, whatever the method and the learning rate.

        Args:
          rows: of the cache.
          seeds: u32 [r].
          learning_rates: f32 [r].
        """

        def init(seed: jax.Array, learning_rate: jax.Array) -> Runs:
            init_key, key = run_keys(seed)
            params = {_PART: self.head.init(init_key, rows.hidden[0])["params"]}
            state = self.objective.init(jax.ShapeDtypeStruct((), jnp.int32))
            return Runs(jnp.zeros((), jnp.int32), params, self._optimizer.init(params), state, learning_rate, key)

        return jax.vmap(init)(jnp.asarray(seeds, jnp.uint32), jnp.asarray(learning_rates, jnp.float32))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def advance(self, rows: Rows, runs: Runs, feed: jax.Array) -> tuple[Runs, dict[str, jax.Array]]:
        """Some updates of all runs.

        Args:
          rows: of the cache.
          runs: replaced by the returned ones; donated.
          feed: i32 [t, r, n], numbers of the rows that each update brings.

        Returns:
          The runs, and f32 [t, r] each: `training.metrics.EOS_SUMS` of every update.
        """

        def update(runs: Runs, feed: jax.Array) -> tuple[Runs, dict[str, jax.Array]]:
            return jax.vmap(self._update, in_axes=(None, 0, 0))(rows, runs, feed)

        return lax.scan(update, runs, feed)

    def _update(self, rows: Rows, run: Runs, feed: jax.Array) -> tuple[Runs, dict[str, jax.Array]]:
        keys = forward_keys(jax.random.fold_in(run.key, run.step))
        valid = rows.valid[feed]
        fresh = EosRows(feed, rows.labels[feed], valid, 1 / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0))

        def loss(params: Any) -> tuple[jax.Array, Any]:
            def head(numbers: jax.Array) -> jax.Array:
                return self._apply(params[_PART], rows.hidden[numbers], deterministic=False, rngs={"dropout": keys.head_dropout})

            term = self.objective.loss(head, run.objective, fresh, keys)
            return term.loss, term

        grads, term = jax.grad(loss, has_aux=True)(run.params)
        ready = term.sums["eos_updates"] > 0
        updates, opt_state = self._optimizer.update(grads, run.opt_state, run.params, eos_ready=ready)
        params = optax.apply_updates(run.params, jax.tree.map(lambda u: run.learning_rate * u, updates))
        return Runs(run.step + 1, params, opt_state, term.state, run.learning_rate, run.key), term.sums

    @functools.partial(jax.jit, static_argnums=0)
    def _logits(self, rows: Rows, params: Any, blocks: jax.Array) -> jax.Array:
        def of_block(numbers: jax.Array) -> jax.Array:
            return jax.vmap(lambda one: self._apply(one[_PART], rows.hidden[numbers]))(params)

        return lax.map(of_block, blocks)

    def logits(self, rows: Rows, params: Any, numbers: np.ndarray) -> np.ndarray:
        """f32 [r, m]: raw logits, without dropout, of the rows `numbers` i64 [m] by the heads `params` [r ...]."""
        blocks = np.zeros((-(-numbers.size // BLOCK), BLOCK), np.int32)
        blocks.flat[: numbers.size] = numbers
        found = np.asarray(self._logits(rows, params, jnp.asarray(blocks)))  # [blocks, r, BLOCK]
        return found.swapaxes(0, 1).reshape(found.shape[1], -1)[:, : numbers.size]

    def _apply(self, params: Any, hidden: jax.Array, **kwargs: Any) -> jax.Array:
        return self.head.apply({"params": params}, hidden, **kwargs)  # pyright: ignore[reportReturnType]  # a tuple only with `mutable`

    @property
    def _optimizer(self) -> optax.GradientTransformationExtraArgs:
        """That of training at a learning rate of 1; each run scales what comes out of it by its own."""
        return make_optimizer(
            learning_rate_schedule(TrainConfig(learning_rate=1.0, num_steps_before_decay=max(int(DECAY_AT * self.updates), 1)))
        )
