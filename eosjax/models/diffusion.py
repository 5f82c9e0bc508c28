"""Denoising diffusion of action chunks: the noise schedule, its deterministic sampler (DDIM), and the embedding of a diffusion step.

OpenVLA-OFT's diffusion policy: x_t = sqrt(ā_t) x_0 + sqrt(1 - ā_t) noise on normalised actions x_0; the policy sees x_t and t and predicts
the noise. The policy is passed in as a function.

Song, Meng, Ermon 2021, "Denoising Diffusion Implicit Models", arXiv:2010.02502. The numbers are those of diffusers' `DDIMScheduler` with
`squaredcos_cap_v2` betas and its other defaults (epsilon prediction, x_0 clipped to [-1, 1], ā = 1 before step 0, leading spacing, eta 0).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_MAX_BETA = 0.999
_MAX_PERIOD = 10_000.0

Aux = TypeVar("Aux")


@dataclasses.dataclass(frozen=True)
class DDIM:
    """A cosine noise schedule and its deterministic sampler; all methods are pure and compute in float32."""

    train_steps: int = 50

    def __post_init__(self):
        if self.train_steps < 1:
            raise ValueError(f"DDIM: train_steps: expected at least 1, got {self.train_steps}")

    @functools.cached_property
    def signal(self) -> np.ndarray:
        """ā f32 [train_steps]: the share of the signal's variance that is left at each step (Nichol, Dhariwal 2021, arXiv:2102.09672)."""
        edges = np.arange(self.train_steps + 1) / self.train_steps
        remaining = np.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - remaining[1:] / remaining[:-1], _MAX_BETA).astype(np.float32)
        # In float32 like torch, whose product accumulates in float64: 1 - 0.999 has few digits left.
        return np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)

    def draw(self, key: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What an update trains on: (noisy actions f32 [b k a], steps i32 [b] uniform over the schedule, noise f32 [b k a]).

        `actions`: [b k a], normalised.
        """
        step_key, noise_key = jax.random.split(key)
        steps = jax.random.randint(step_key, (len(actions),), 0, self.train_steps)
        noise = jax.random.normal(noise_key, actions.shape)
        return self.add_noise(actions, noise, steps), steps, noise

    def add_noise(self, actions: jax.Array, noise: jax.Array, steps: jax.Array) -> jax.Array:
        """x_t f32 [b k a] of clean `actions` and `noise` [b k a] at `steps` i32 [b]."""
        signal = jnp.asarray(self.signal)[steps][:, None, None]
        return jnp.sqrt(signal) * actions.astype(jnp.float32) + jnp.sqrt(1 - signal) * noise.astype(jnp.float32)

    def denoise(self, noisy: jax.Array, noise: jax.Array, step: jax.Array, stride: int) -> jax.Array:
        """x at `step - stride` (i32 []) from x at `step` and the noise predicted in it: eq. 12 of the paper with sigma = 0.

        The predicted x_0 is clipped to [-1, 1], the predicted noise is not.
        """
        signal = jnp.asarray(self.signal)[step]
        before = jnp.where(step >= stride, jnp.asarray(self.signal)[jnp.maximum(step - stride, 0)], 1.0)
        noisy, noise = noisy.astype(jnp.float32), noise.astype(jnp.float32)
        clean = jnp.clip((noisy - jnp.sqrt(1 - signal) * noise) / jnp.sqrt(signal), -1, 1)
        return jnp.sqrt(before) * clean + jnp.sqrt(1 - before) * noise

    def sample(
        self, predict: Callable[[jax.Array, jax.Array], tuple[jax.Array, Aux]], noise: jax.Array, steps: int | None = None
    ) -> tuple[jax.Array, Aux]:
        """Turns noise into actions by `steps` denoising steps, in one compiled loop.

        Args:
          predict: (noisy actions f32 [b k a], steps i32 [b]) -> (predicted noise [b k a], a pytree of further arrays).
          noise: f32 [b k a], standard normal.
          steps: how many of the `train_steps` to visit, evenly spaced; None for all.

        Returns:
          Actions f32 [b k a], and the further arrays of the last call of `predict`.

        Raises:
          ValueError: `steps` is not in 1..train_steps.
        """
        steps = self.train_steps if steps is None else steps
        if not 1 <= steps <= self.train_steps:
            raise ValueError(f"steps: expected 1 to {self.train_steps} (those of training), got {steps}")
        stride = self.train_steps // steps

        def body(carry, step):
            noisy, _ = carry
            predicted, aux = predict(noisy, jnp.broadcast_to(step, (len(noisy),)))
            return (self.denoise(noisy, predicted, step, stride), aux), None

        noise = noise.astype(jnp.float32)
        shapes = jax.eval_shape(predict, noise, jax.ShapeDtypeStruct((len(noise),), jnp.int32))[1]
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        visited = jnp.arange(steps - 1, -1, -1, dtype=jnp.int32) * stride
        (actions, aux), _ = lax.scan(body, (noise, start), visited)
        return actions, aux


def embed_steps(steps: jax.Array, width: int) -> jax.Array:
    """Sines and cosines f32 [b width] of diffusion steps [b], at frequencies from 1 down to 1/10,000 (both included).

    The original's form of Vaswani et al. 2017, arXiv:1706.03762: all sines first.
    """
    if width % 2 or width < 4:
        raise ValueError(f"width: expected an even number from 4 on, got {width}")
    half = width // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(_MAX_PERIOD) / (half - 1)))
    angles = steps[:, None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
