"""The two heads on the hidden states of an action: one predicts the action, one whether the sub-step ends with it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from eosjax.models.lora import precision_of


def _flatten_action(hidden: jax.Array) -> jax.Array:
    if hidden.ndim < 2:
        raise ValueError(f"hidden: expected [... a d], got {hidden.shape}")
    return hidden.reshape(*hidden.shape[:-2], -1)


class MLPResNetBlock(nn.Module):
    """x + relu(linear(layer_norm(x)))."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[... h] -> [... h]."""
        h = _layer_norm("ffn_0", self.dtype)(x)
        return x + nn.relu(_dense(x.shape[-1], "ffn_1", self.dtype)(h))


def _dense(features: int, name: str, dtype: str = "float32") -> nn.Dense:
    return nn.Dense(features, dtype=jnp.dtype(dtype), precision=precision_of(dtype), name=name)


def _layer_norm(name: str, dtype: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=jnp.dtype(dtype), name=name)


class ActionHead(nn.Module):
    """L1 regression of an action from its hidden states: OpenVLA-OFT's residual MLP."""

    hidden_dim: int  # OpenVLA-OFT takes the width of the language model
    action_dim: int = 7
    num_blocks: int = 2
    dtype: str = "float32"  # of the computation; the weights are float32

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [... a d] of an action -> normalised action [... action_dim] in the compute dtype."""
        x = _layer_norm("layer_norm1", self.dtype)(_flatten_action(hidden))
        x = nn.relu(_dense(self.hidden_dim, "fc1", self.dtype)(x))
        for i in range(self.num_blocks):
            x = MLPResNetBlock(self.dtype, name=f"mlp_resnet_blocks_{i}")(x)
        x = _layer_norm("layer_norm2", self.dtype)(x)
        return _dense(self.action_dim, "fc2", self.dtype)(x)


class EosHead(nn.Module):
    """One logit from the hidden states of an action, in float32: whether the sub-step ends with this action."""

    hidden_dim: int = 1024
    dropout: float = 0.1

    @nn.compact
    def __call__(self, hidden: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Hidden states [... a d] of any dtype -> logits f32 [...]. `deterministic=False` needs a `dropout` rng."""
        x = _flatten_action(hidden).astype(jnp.float32)
        for name, width in (("fc1", self.hidden_dim), ("fc2", self.hidden_dim // 2)):
            x = nn.relu(_dense(width, name)(x))
            x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        return _dense(1, "fc3")(x)[..., 0]
