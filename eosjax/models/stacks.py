"""Equal layers as one stack: how they are compiled, what is kept of them for the backward pass, and the form of their weights.

scan     a loop over the layers. They are compiled once, whatever the depth. In each turn XLA copies the weights of a layer out of the
         array of all, and what the backward pass needs into one of all
unroll   every layer is compiled for itself, and nothing is copied if the weights of each layer are arrays of their own (`take_apart`)
auto     unroll on a GPU, where the copies cost much of an update (docs/gpu.md); else scan, which compiles sooner
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from eosjax.models.lora import LORA
from eosjax.models.shards import SHARDED, in_stack

REMAT = ("none", "dots", "full")
_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


def unrolls(layers: str = "auto", *, sharded: bool = False) -> bool:
    """Whether layers are unrolled on the default device.

    Args:
      layers: the flag `--layers`: `auto`, `scan` or `unroll`.
      sharded: kernels are gathered layer by layer, which takes a loop.
    """
    return layers == "unroll" or (layers == "auto" and jax.default_backend() == "gpu" and not sharded)


def stack_layers(layer: type[nn.Module], length: int, remat: str, unroll: bool) -> Any:
    """Turn a layer class into one that applies `length` of them, one after the other.

    The layer is called as `layer(x, deterministic, *rest) -> (x, None)`; `rest` is the same for all layers. Weights (and
    what the layer sows into `intermediates`) get a leading layer axis.

    What is kept of each layer for the backward pass, by `remat`: everything (`none`), the results of its linear layers (`dots`), or its
    input alone (`full`). The rest is computed again.

    Args:
      layer: a module.
      length: how many.
      remat: one of `REMAT`.
      unroll: compile every layer for itself.
    """
    if remat != "none":
        # Inside a loop XLA cannot merge the recomputation with the forward pass, so the costly barrier is not needed.
        layer = nn.remat(layer, prevent_cse=unroll, static_argnums=(2,), policy=_POLICIES[remat])
    return nn.scan(
        layer,
        variable_axes={"params": 0, LORA: 0, SHARDED: 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=length,
        unroll=length if unroll else 1,
    )


def take_apart(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with a tuple of the layers' arrays in the place of each array [layers ...] of a stack. NumPy arrays
    become views; what is apart stays so."""

    def apart(path: Any, leaf: Any) -> Any:
        return tuple(leaf) if in_stack(tuple(key.key for key in path)) else leaf

    return jax.tree.map_with_path(apart, dict(params), is_leaf=is_apart)


def put_together(params: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `take_apart`. In a compiled function XLA leaves out both this and the slices that unrolled layers take, within one loop."""
    return jax.tree.map(lambda leaf: jnp.stack(leaf) if is_apart(leaf) else leaf, dict(params), is_leaf=is_apart)


def is_apart(leaf: Any) -> bool:
    """Whether this is what `take_apart` puts in the place of an array."""
    return isinstance(leaf, tuple)
