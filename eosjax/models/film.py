"""FiLM: the instruction scales and shifts the features of the vision encoders.

Perez et al. 2018, arXiv:1709.07871, as OpenVLA-OFT puts it into each block of both encoders (`use_film`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ENCODERS = ("featurizer", "fused_featurizer")


class FiLM(nn.Module):
    """x · (1 + scale(words)) + shift(words), the same for all tokens of an image.

    Trained in full, so its weights are float32 and carry no LoRA. They start at zero, so a new FiLM changes no bit. (Those of the original
    start like any linear layer of torch, small but not zero.)
    """

    dtype: str  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, words: jax.Array) -> jax.Array:
        """x [n t width], words [n d] (the mean embedding of the text) -> [n t width]."""

        def linear(name: str) -> jax.Array:
            dense = nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=jnp.dtype(self.dtype), name=name)
            return dense(words)[:, None]

        return x * (1 + linear("scale")) + linear("shift")


def mean_words(text: jax.Array, seen: jax.Array) -> jax.Array:
    """Mean [b d] of the embeddings `text` [b l d] where `seen` (bool [b l]) is True, taken in float32."""
    weights = seen[..., None].astype(jnp.float32)
    mean = jnp.sum(text.astype(jnp.float32) * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
    return mean.astype(text.dtype)


def split_film(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes the FiLM layers out of the params of an `OpenVLA`: (the params without them, {encoder: its FiLM layers})."""
    vision, film = dict(params["vision_backbone"]), {}
    for encoder in ENCODERS:
        blocks = dict(vision[encoder]["blocks"])
        film[encoder] = blocks.pop("film")
        vision[encoder] = {**vision[encoder], "blocks": blocks}
    return {**params, "vision_backbone": vision}, film


def join_film(params: Mapping[str, Any], film: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_film`."""
    vision = dict(params["vision_backbone"])
    for encoder in ENCODERS:
        vision[encoder] = {**vision[encoder], "blocks": {**vision[encoder]["blocks"], "film": film[encoder]}}
    return {**params, "vision_backbone": vision}
