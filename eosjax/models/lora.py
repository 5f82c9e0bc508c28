"""Linear layers with an optional low-rank branch.

The base weights live in the Flax collection `params` under the names of the checkpoint; the branch lives in a collection
of its own, `lora`, so that a training step can freeze one and differentiate the other without matching names.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from eosjax.models.shards import SHARDED, gather

LORA = "lora"  # the collection of the low-rank branches


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """What all linear layers of a model share."""

    dtype: str = "float32"  # of the computation
    param_dtype: str = "float32"  # of the base weights; the low-rank branch is trained, so it is always float32
    lora_rank: int = 0  # 0: no branch
    lora_scaling: float = 1.0  # factor of the branch
    lora_dropout: float = 0.0  # on the input of the branch

    def __post_init__(self):
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank: expected 0 (no LoRA) or more, got {self.lora_rank}")
        if not math.isfinite(self.lora_scaling):
            raise ValueError(f"lora_scaling: expected a finite factor, got {self.lora_scaling}")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"lora_dropout: expected a rate in [0, 1), got {self.lora_dropout}")


def openvla_scaling(rank: int) -> float:
    """The factor alpha / rank of a new branch, with alpha = min(rank, 16) as in OpenVLA's fine-tuning."""
    return min(rank, 16) / rank


def precision_of(dtype: Any) -> jax.lax.Precision | None:
    """The precision of products of this type: float32 on a GPU means float32, not TF32, whose 10 bits are JAX's default there."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


class LoRADense(nn.Module):
    """y = x W + b + scaling · dropout(x) A B, scaling = alpha / r (Hu et al. 2021, arXiv:2106.09685).

    A is drawn from a normal of standard deviation 1/r and B is zero, so a new branch changes no output bit.
    Collections: `params` {kernel [in out], bias [out]}; `lora` {a [in r], b [r out]} when the rank is positive. A kernel in `sharded`
    is this device's share of the rows (`eosjax.models.shards`).
    """

    features: int
    linear: LinearConfig
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """[... in] -> [... features] in the compute dtype. `deterministic=False` needs a `dropout` rng."""
        param_dtype = jnp.dtype(self.linear.param_dtype)
        if self.has_variable(SHARDED, "kernel"):
            kernel = gather(self.get_variable(SHARDED, "kernel"))
        else:
            kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features), param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), param_dtype) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=jnp.dtype(self.linear.dtype))
        y = jnp.matmul(x, kernel, precision=precision_of(x.dtype))
        if bias is not None:
            y = y + bias
        if self.linear.lora_rank:
            y = y + self._branch(x, deterministic)
        return y

    def _branch(self, x: jax.Array, deterministic: bool) -> jax.Array:
        rank = self.linear.lora_rank
        gaussian = nn.initializers.normal(1.0 / rank)
        a = self.variable(LORA, "a", lambda: gaussian(self.make_rng("params"), (x.shape[-1], rank), jnp.float32))
        b = self.variable(LORA, "b", lambda: jnp.zeros((rank, self.features), jnp.float32))
        x = nn.Dropout(self.linear.lora_dropout)(x, deterministic=deterministic)
        precision = precision_of(x.dtype)
        # Scaled where it is narrow, so that the backward pass does not scale the gradients of all features.
        narrow = jnp.matmul(x, a.value.astype(x.dtype), precision=precision) * self.linear.lora_scaling
        return _widen(narrow, b.value.astype(x.dtype))


@jax.custom_vjp
def _widen(x: jax.Array, b: jax.Array) -> jax.Array:
    """[... r], [r out] -> x b, [... out]."""
    return jnp.matmul(x, b, precision=precision_of(x.dtype))


def _widen_forward(x: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _widen(x, b), (x, b)


def _widen_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, b = saved
    precision = precision_of(x.dtype)
    # The narrow array stands first: JAX's own rule puts `g` there, and XLA then transposes it by a copy on CPUs.
    return jnp.matmul(g, b.T, precision=precision), jnp.einsum("...r,...f->rf", x, g, precision=precision)


_widen.defvjp(_widen_forward, _widen_backward)
