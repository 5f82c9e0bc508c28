"""The terms of the training loss, as sums or weighted means over masked rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from eosjax.config import FOCAL_GAMMA


def masked_l1(predicted: jax.Array, target: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of |predicted - target| over the valid actions, and the number of summed values.

    Two values instead of a mean: sums over devices and micro-batches with different counts then give the overall mean.

    Args:
      predicted: f32 or bf16 [b, k, a], normalised actions.
      target: f32 [b, k, a], normalised actions.
      valid: bool [b, k], False past the end of the episode.

    Returns:
      f32 [] sum and f32 [] count.
    """
    error = jnp.abs(predicted.astype(jnp.float32) - target)
    total = jnp.sum(jnp.where(valid[..., None], error, 0.0))
    return total, jnp.sum(valid, dtype=jnp.float32) * target.shape[-1]


def masked_mse(predicted: jax.Array, target: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of (predicted - target)² over the valid actions, and the number of summed values: the diffusion policy's loss on noise.

    Arguments and results as in `masked_l1`; the target is the noise, f32 [b, k, a].
    """
    error = jnp.square(predicted.astype(jnp.float32) - target)
    total = jnp.sum(jnp.where(valid[..., None], error, 0.0))
    return total, jnp.sum(valid, dtype=jnp.float32) * target.shape[-1]


def token_cross_entropy(logits: jax.Array, ids: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of -log softmax(logits)[id] in float32, and the sum of the weights.

    Their quotient is torch's `CrossEntropyLoss` (mean) when the tokens of weight 0 carry its `ignore_index`.

    Args:
      logits: [b, t, vocab], any float dtype; position t predicts `ids[:, t]`.
      ids: i32 [b, t].
      weights: f32 [b, t], 0 for tokens that do not count.

    Returns:
      f32 [] sum and f32 [] count.
    """
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), ids)
    return jnp.sum(jnp.where(weights > 0, losses * weights, 0.0)), jnp.sum(weights)


def balanced_bce(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean of the binary cross-entropy with logits, in float32; exactly 0 (with zero gradient) if no row has a weight.

    Equals torch's `BCEWithLogitsLoss` (mean) on the rows of weight 1.

    Args:
      logits: [n], any float dtype.
      labels: f32 [n], 1 for an end.
      weights: f32 [n], 0 for rows that only fill the static shape.

    Returns:
      f32 [].
    """
    losses = optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32))
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def bce(logits: jax.Array, labels: jax.Array, prior: float) -> jax.Array:
    """Binary cross-entropy of each row, f32 [n], in float32. This and the losses below take:

    Args:
      logits: [n], any float dtype.
      labels: f32 [n], 1 for an end.
      prior: log-odds of an end in the training data.
    """
    del prior
    return optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32))


def pos_weight_bce(logits: jax.Array, labels: jax.Array, prior: float) -> jax.Array:
    """Cross-entropy in which all ends together weigh as much as all other steps: torch's `pos_weight` at the odds against an end."""
    weights = jnp.where(labels > 0.5, jnp.exp(-prior), 1.0)
    return weights * bce(logits, labels, prior)


def focal(logits: jax.Array, labels: jax.Array, prior: float) -> jax.Array:
    """(1 - p)^2 times the cross-entropy, p the probability of the right answer (Lin et al. 2017, arXiv:1708.02002, without alpha)."""
    loss = bce(logits, labels, prior)
    return (-jnp.expm1(-loss)) ** FOCAL_GAMMA * loss


def logit_adjusted_bce(logits: jax.Array, labels: jax.Array, prior: float) -> jax.Array:
    """Cross-entropy of logits to which the log-odds of the data are added (Menon et al. 2021, arXiv:2007.07314, of two classes)."""
    return bce(logits.astype(jnp.float32) + prior, labels, prior)


FRESH_LOSSES: Mapping[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "bce": bce,
    "pos_weight": pos_weight_bce,
    "focal": focal,
    "logit_adjust": logit_adjusted_bce,
}
