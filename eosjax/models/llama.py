"""A Llama decoder on embeddings, whose tokens see each other in both directions."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from eosjax.models.attention import attend
from eosjax.models.lora import LinearConfig, LoRADense
from eosjax.models.stacks import stack_layers


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the language model; the defaults are Llama-2 7B with OpenVLA's padded vocabulary."""

    vocab_size: int = 32064  # rows of the embedding, padding included
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp_dim: int = 11008
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    lm_head: bool = False  # allocate the output projection; regression of actions does not need it

    def __post_init__(self):
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"LlamaConfig: width {self.width} must give an even size to each of {self.heads} heads")
        if self.heads % self.kv_heads:
            raise ValueError(f"LlamaConfig: heads {self.heads} is no multiple of kv_heads {self.kv_heads}")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


def rope_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine f32 [b t head_dim/2] of positions i32 [b t], angle = position · theta^(-2i/head_dim).

    Su et al. 2021, arXiv:2104.09864.
    """
    frequencies = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate x [b t heads head_dim], channel i with channel i + head_dim/2 (the layout of Hugging Face's Llama).

    Computed in float32, returned in the dtype of x. `cos`, `sin`: f32 [b t head_dim/2].
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention in both directions; the softmax is float32."""

    config: LlamaConfig
    linear: LinearConfig
    attention: str = "auto"

    @nn.compact
    def __call__(self, x, deterministic: bool, lengths, cos, sin) -> jax.Array:
        """x [b t width], lengths i32 [b] (the first ones of a row are seen by all) -> [b t width]."""
        config = self.config

        def heads(name: str, count: int) -> jax.Array:
            y = LoRADense(count * config.head_dim, self.linear, use_bias=False, name=name)(x, deterministic)
            return y.reshape(*x.shape[:-1], count, config.head_dim)

        q = apply_rope(heads("q_proj", config.heads), cos, sin)
        k = apply_rope(heads("k_proj", config.kv_heads), cos, sin)
        out = attend(q, k, heads("v_proj", config.kv_heads), lengths, self.attention)
        out = out.reshape(x.shape)
        return LoRADense(config.width, self.linear, use_bias=False, name="o_proj")(out, deterministic)


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    config: LlamaConfig
    linear: LinearConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """[b t width] -> [b t width]."""
        gate = LoRADense(self.config.mlp_dim, self.linear, use_bias=False, name="gate_proj")(x, deterministic)
        up = LoRADense(self.config.mlp_dim, self.linear, use_bias=False, name="up_proj")(x, deterministic)
        down = LoRADense(self.config.width, self.linear, use_bias=False, name="down_proj")
        return down(nn.silu(gate) * up, deterministic)


def _rms_norm(config: LlamaConfig, linear: LinearConfig, name: str | None = None) -> nn.RMSNorm:
    # Flax takes the mean square in float32 whatever the compute dtype.
    dtype, param_dtype = jnp.dtype(linear.dtype), jnp.dtype(linear.param_dtype)
    return nn.RMSNorm(epsilon=config.rms_norm_eps, dtype=dtype, param_dtype=param_dtype, name=name)


class DecoderLayer(nn.Module):
    """A pre-norm decoder layer, in the form `stack_layers` scans; sows its output as `output`."""

    config: LlamaConfig
    linear: LinearConfig
    attention: str = "auto"

    @nn.compact
    def __call__(self, x, deterministic: bool, lengths, cos, sin) -> tuple[jax.Array, None]:
        """[b t width] -> ([b t width], None); the other arguments as in `Attention`."""
        h = _rms_norm(self.config, self.linear, "input_layernorm")(x)
        x = x + Attention(self.config, self.linear, self.attention, name="self_attn")(h, deterministic, lengths, cos, sin)
        h = _rms_norm(self.config, self.linear, "post_attention_layernorm")(x)
        x = x + Mlp(self.config, self.linear, name="mlp")(h, deterministic)
        self.sow("intermediates", "output", x)
        return x, None


class LlamaModel(nn.Module):
    """Token embedding, decoder layers and final norm."""

    config: LlamaConfig
    linear: LinearConfig
    remat: str = "none"
    attention: str = "auto"
    unroll: bool = False

    def setup(self):
        """Declare the parts under the names of the checkpoint."""
        dtype, param_dtype = jnp.dtype(self.linear.dtype), jnp.dtype(self.linear.param_dtype)
        self.embed_tokens = nn.Embed(self.config.vocab_size, self.config.width, dtype=dtype, param_dtype=param_dtype)
        stack = stack_layers(DecoderLayer, self.config.depth, self.remat, self.unroll)
        self.layers = stack(self.config, self.linear, self.attention)
        self.norm = _rms_norm(self.config, self.linear)

    def __call__(self, x: jax.Array, lengths: jax.Array, positions: jax.Array, deterministic: bool = True) -> jax.Array:
        """Embeddings [b t width] -> hidden states [b t width] after the final norm.

        `lengths`: i32 [b], tokens of each row that are seen, which come first; `positions`: i32 [b t], in any order.
        """
        cos, sin = rope_tables(positions, self.config.head_dim, self.config.rope_theta)
        x, _ = self.layers(x, deterministic, lengths, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    """The language model with its optional output projection."""

    config: LlamaConfig
    linear: LinearConfig
    remat: str = "none"
    attention: str = "auto"
    unroll: bool = False

    def setup(self):
        """Declare the parts under the names of the checkpoint."""
        self.model = LlamaModel(self.config, self.linear, self.remat, self.attention, self.unroll)
        if self.config.lm_head:
            self.lm_head = LoRADense(self.config.vocab_size, self.linear, use_bias=False)

    def embed(self, input_ids: jax.Array) -> jax.Array:
        """Token ids i32 [b t] -> embeddings [b t width]."""
        return self.model.embed_tokens(input_ids)

    def __call__(self, x: jax.Array, lengths: jax.Array, positions: jax.Array, deterministic: bool = True) -> jax.Array:
        """Hidden states [b t width] after the final norm; arguments as in `LlamaModel`."""
        hidden = self.model(x, lengths, positions, deterministic)
        if self.is_initializing() and self.config.lm_head:
            self.lm_head(hidden)  # Flax allocates a part when it is first called
        return hidden

    def logits(self, hidden: jax.Array, deterministic: bool = True) -> jax.Array:
        """Hidden states [... width] -> token logits [... vocab_size]; needs `LlamaConfig.lm_head`."""
        if not self.config.lm_head:
            raise ValueError("LlamaConfig.lm_head: expected True to compute token logits, got False")
        return self.lm_head(hidden, deterministic)
