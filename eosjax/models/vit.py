"""A timm-style vision transformer that serves as DINOv2 (with registers) and as SigLIP."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from eosjax.models.attention import attend
from eosjax.models.film import FiLM
from eosjax.models.lora import LinearConfig, LoRADense
from eosjax.models.stacks import stack_layers

LAYER_NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of one encoder, as its checkpoint has them."""

    image_size: int  # pixels a side
    patch_size: int
    width: int
    depth: int  # blocks in the checkpoint; the last one is neither allocated nor run
    heads: int
    mlp_dim: int
    class_token: bool = False
    register_tokens: int = 0
    layer_scale: float | None = None  # initial LayerScale; None: the blocks have none
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # RGB, of pixels in [0, 1]
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"ViTConfig: image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"ViTConfig: width {self.width} is no multiple of heads {self.heads}")
        if self.depth < 2:
            raise ValueError(f"ViTConfig: depth must be at least 2 (the last block is not run), got {self.depth}")

    @property
    def num_patches(self) -> int:
        """Patch tokens of one image."""
        return (self.image_size // self.patch_size) ** 2


class Attention(nn.Module):
    """Full self-attention with one fused qkv projection."""

    config: ViTConfig
    linear: LinearConfig
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """[n t width] -> [n t width]."""
        width, heads = self.config.width, self.config.heads
        qkv = LoRADense(3 * width, self.linear, name="qkv")(x, deterministic)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, heads, width // heads), -3, 0)
        out = attend(q, k, v, None, self.attention)
        return LoRADense(width, self.linear, name="proj")(out.reshape(x.shape), deterministic)


class Mlp(nn.Module):
    """Two linear layers round the exact (erf) GELU."""

    config: ViTConfig
    linear: LinearConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """[n t width] -> [n t width]."""
        x = LoRADense(self.config.mlp_dim, self.linear, name="fc1")(x, deterministic)
        return LoRADense(self.config.width, self.linear, name="fc2")(nn.gelu(x, approximate=False), deterministic)


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    initial: float
    linear: LinearConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[... width] -> [... width]."""
        init = nn.initializers.constant(self.initial)
        factor = self.param("scale_factor", init, (x.shape[-1],), jnp.dtype(self.linear.param_dtype))
        return x * factor.astype(x.dtype)


class Block(nn.Module):
    """A pre-norm transformer block, in the form `stack_layers` scans."""

    config: ViTConfig
    linear: LinearConfig
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool, words: jax.Array | None = None) -> tuple[jax.Array, None]:
        """[n t width] -> ([n t width], None); `words` [n d] modulate the tokens between attention and MLP (`FiLM`)."""
        norm = functools.partial(
            nn.LayerNorm,
            epsilon=LAYER_NORM_EPS,
            use_fast_variance=False,
            dtype=jnp.dtype(self.linear.dtype),
            param_dtype=jnp.dtype(self.linear.param_dtype),
        )
        branch = Attention(self.config, self.linear, self.attention, name="attn")(norm(name="norm1")(x), deterministic)
        x = x + self._scaled("ls1", branch)
        if words is not None:
            x = FiLM(self.linear.dtype, name="film")(x, words)
        branch = Mlp(self.config, self.linear, name="mlp")(norm(name="norm2")(x), deterministic)
        return x + self._scaled("ls2", branch), None

    def _scaled(self, name: str, branch: jax.Array) -> jax.Array:
        if self.config.layer_scale is None:
            return branch
        return LayerScale(self.config.layer_scale, self.linear, name=name)(branch)


class PatchEmbed(nn.Module):
    """The patch convolution, written as a linear layer on flattened patches so that LoRA treats it as any other."""

    config: ViTConfig
    linear: LinearConfig

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool) -> jax.Array:
        """[n h w 3] -> [n patches width], patches row by row; pixels of a patch in the order (row, column, channel)."""
        n, h, w, c = images.shape
        p = self.config.patch_size
        patches = images.reshape(n, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(n, -1, p * p * c)
        return LoRADense(self.config.width, self.linear, name="proj")(patches, deterministic)


class ViT(nn.Module):
    """Patch features of the second-to-last block, without the final norm and without class and register tokens."""

    config: ViTConfig
    linear: LinearConfig
    remat: str = "none"
    attention: str = "auto"
    unroll: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True, words: jax.Array | None = None) -> jax.Array:
        """Normalised images [n h w 3] -> features [n patches width] in the compute dtype; `words` as in `Block`."""
        config = self.config
        x = PatchEmbed(config, self.linear, name="patch_embed")(images, deterministic)
        x = x + self._token("pos_embed", config.num_patches).astype(x.dtype)
        prefix = []
        if config.class_token:
            prefix.append(self._token("cls_token", 1))
        if config.register_tokens:
            prefix.append(self._token("reg_token", config.register_tokens))
        rows = [jnp.broadcast_to(token.astype(x.dtype), (len(x), *token.shape[1:])) for token in prefix]
        x = jnp.concatenate([*rows, x], axis=1)
        stack = stack_layers(Block, config.depth - 1, self.remat, self.unroll)
        x, _ = stack(config, self.linear, self.attention, name="blocks")(x, deterministic, words)
        return x[:, -config.num_patches :]

    def _token(self, name: str, count: int) -> jax.Array:
        # A standard deviation of width^-1/2 instead of timm's 0.02: positions are visible from the first step on.
        init = nn.initializers.normal(self.config.width**-0.5)
        return self.param(name, init, (1, count, self.config.width), jnp.dtype(self.linear.param_dtype))
