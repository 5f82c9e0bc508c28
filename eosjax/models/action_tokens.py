"""Actions as tokens, on the device: what the discrete policy is trained to predict, and how far off its predictions are.

The bins are those of OpenVLA's `ActionTokenizer`: 256 edges over [-1, 1], from the last id of the text vocabulary downwards.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_BINS = 256
_EDGES = np.linspace(-1.0, 1.0, NUM_BINS)
_CENTRES = ((_EDGES[:-1] + _EDGES[1:]) / 2).astype(np.float32)


class Targets(NamedTuple):
    """What the text continues with after each position from the empty token on."""

    ids: jax.Array  # i32 [b k·a+1]: the action tokens and the stop token
    weights: jax.Array  # f32 [b k·a+1]: 0 past the end of the episode, and in all of a row that only fills the batch


class TokenErrors(NamedTuple):
    """Sums over the valid actions at each place of the chunk; [0] is the current action, [1:] are the next ones."""

    correct: jax.Array  # f32 [k]: tokens predicted exactly
    l1: jax.Array  # f32 [k]: |decoded prediction - decoded target|, on normalised actions
    count: jax.Array  # f32 [k]: tokens


def _edges_in_float32() -> np.ndarray:
    # The original compares float32 actions with float64 edges. A float32 is at or above an edge exactly when it is at or above the
    # smallest float32 that is, so with edges rounded up the device needs no float64.
    rounded = _EDGES.astype(np.float32)
    return np.where(rounded < _EDGES, np.nextafter(rounded, np.float32(np.inf)), rounded)


def encode(actions: jax.Array, vocab_size: int) -> jax.Array:
    """Ids i32 of the shape of `actions` (f32, clipped to [-1, 1]).

    `vocab_size`: of the text vocabulary, without padding rows and added tokens (32,000 for Llama 2).
    """
    bins = jnp.searchsorted(_edges_in_float32(), jnp.clip(actions.astype(jnp.float32), -1, 1), side="right")
    return (vocab_size - bins).astype(jnp.int32)


def decode(ids: jax.Array, vocab_size: int) -> jax.Array:
    """Centres of bins f32 of the shape of `ids`; an id that is no action token takes the nearest bin."""
    return jnp.asarray(_CENTRES)[jnp.clip(vocab_size - ids - 1, 0, len(_CENTRES) - 1)]


def make_targets(actions: jax.Array, valid: jax.Array, stop_ids: jax.Array, vocab_size: int) -> Targets:
    """The tokens of a chunk and the stop token, for `eosjax.losses.token_cross_entropy`.

    Args:
      actions: f32 [b k a], normalised.
      valid: bool [b k], False past the end of the episode.
      stop_ids: i32 [b], the last id of each text.
      vocab_size: as in `encode`.
    """
    batch, _, action_dim = actions.shape
    ids = encode(actions, vocab_size).reshape(batch, -1)
    weights = jnp.repeat(valid, action_dim, axis=1)
    has_stop = valid.any(axis=1, keepdims=True)
    return Targets(
        jnp.concatenate([ids, stop_ids[:, None].astype(jnp.int32)], axis=1),
        jnp.concatenate([weights, has_stop], axis=1).astype(jnp.float32),
    )


def token_errors(logits: jax.Array, actions: jax.Array, valid: jax.Array, vocab_size: int) -> TokenErrors:
    """How the likeliest tokens compare with those of the actions; the stop token does not count.

    As OpenVLA-OFT does, all of the vocabulary competes, and the L1 is between two decoded actions.

    Args:
      logits: [b k·a+1 vocab], at the positions of `Targets.ids`.
      actions, valid, vocab_size: as in `make_targets`.
    """
    target = encode(actions, vocab_size)
    predicted = jnp.argmax(logits[:, :-1], axis=-1).reshape(target.shape)
    error = jnp.abs(decode(predicted, vocab_size) - decode(target, vocab_size))

    def sums(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(valid[..., None], x, 0.0), axis=(0, 2), dtype=jnp.float32)

    return TokenErrors(sums(predicted == target), sums(error), sums(jnp.ones_like(error)))


def predict_actions(logits: jax.Array, shape: tuple[int, int], vocab_size: int) -> jax.Array:
    """Normalised actions f32 [b *shape] of the likeliest tokens; `shape`: (k, a), `logits` as in `token_errors`."""
    ids = jnp.argmax(logits[:, :-1], axis=-1)
    return decode(ids, vocab_size).reshape(len(logits), *shape)
