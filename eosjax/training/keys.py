"""The keys of all random numbers in training: which there are, and where each comes from.

    key(seed) ── split ──> init, run        run ── fold_in(step) ── split ──> one key a forward pass ── split ──> `ForwardKeys`

A key is either split once, or folded with distinct numbers, or drawn from once, and never two of these: with threefry
`fold_in(key, i)` equals `split(key, n)[i]`, so that a key which is both split and folded gives the same numbers twice.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax.typing import ArrayLike

_EVALUATION = 2**32 - 1  # a child of key(0) that neither the initialisation nor the updates of a run with seed 0 use (those are 0 and 1)


class ForwardKeys(NamedTuple):
    """The keys of one forward pass of an update, one a use. Scalars, or with a leading axis where there are several passes.

    All are the same on every device. Whoever uses `noise` folds it with the number of the sample, and `adapter_dropout` with the number of
    the device; the others are used as they are, so that the result does not depend on the number of devices.
    """

    noise: jax.Array  # diffusion noise and its level
    intake: jax.Array  # which negatives enter the buffer
    draw: jax.Array  # `BalancedBuffer.sample`: positives, negatives, order
    head_dropout: jax.Array
    adapter_dropout: jax.Array


def run_keys(seed: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The key of the initial weights, and the key of all updates of a run."""
    init, run = jax.random.split(jax.random.key(seed))
    return init, run


def step_keys(run: jax.Array, step: jax.Array, micro_batches: int) -> ForwardKeys:
    """The keys of one update, with an axis [micro_batches] in front.

    Args:
      run: from `run_keys`.
      step: i32 [], updates made before this one.
      micro_batches: forward passes of the update.
    """
    return jax.vmap(forward_keys)(jax.random.split(jax.random.fold_in(run, step), micro_batches))


def forward_keys(key: jax.Array) -> ForwardKeys:
    """Splits the key of one forward pass."""
    return ForwardKeys(*jax.random.split(key, len(ForwardKeys._fields)))


def sample_keys(key: jax.Array, samples: jax.Array) -> jax.Array:
    """A key [b] for each sample, wherever in a batch and on whichever device it is; `samples`: i32 [b], their numbers (`Batch.key`)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, samples)


def evaluation_keys(samples: jax.Array) -> jax.Array:
    """The noise keys [b] of samples that the policy is not trained on: the same in every run and at every step."""
    return sample_keys(jax.random.fold_in(jax.random.key(0), _EVALUATION), samples)
