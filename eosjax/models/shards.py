"""Frozen kernels of which each device holds a share of the rows, and that a layer gathers when it runs.

They are a Flax collection of their own beside `params`, and a part of that name beside those of `eosjax.models.parts`: the kernels
[layers, rows, columns] of the stacked layers. What is small, biases, norms, embeddings, stays whole on every device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

SHARDED = "sharded"
DEVICES = "devices"  # name of the mapped axis that they are shared out over
STACKS = ("layers", "blocks")  # modules of `stacks.stack_layers`

Path = tuple[str, ...]


def in_stack(path: Path) -> bool:
    """Whether a parameter belongs to equal layers, so that its first axis is that of the layers."""
    return not {*path}.isdisjoint(STACKS)


def gather(kernel: jax.Array) -> jax.Array:
    """The whole kernel [rows, columns] from this device's share [rows / devices, columns], along the mapped axis."""
    return lax.all_gather(kernel, DEVICES, tiled=True)


def shared_kernels(frozen: Mapping[str, Any], devices: int) -> dict[Path, Any]:
    """The leaves that `devices` devices can share out, by path. A kernel whose rows they do not divide is none of them.

    Args:
      frozen: parts that are not trained, as arrays or shapes.
      devices: how many hold a share.
    """
    leaves: dict[Path, Any] = dict(flatten_dict(frozen))
    stacked = {path: leaf for path, leaf in leaves.items() if path[-1] == "kernel" and in_stack(path)}
    return {path: leaf for path, leaf in stacked.items() if leaf.shape[1] % devices == 0}


def take_out(frozen: Mapping[str, Any], paths: Iterable[Path]) -> dict[str, Any]:
    """The parts with the leaves at some paths as a part of their own."""
    flat: dict[Path, Any] = dict(flatten_dict(frozen))
    shared = {in_base(path): flat.pop(path) for path in paths}
    return {**unflatten_dict(flat), SHARDED: unflatten_dict(shared)}


def in_base(path: Path) -> Path:
    """The path in the variables of `OpenVLA` of a leaf of a part: modules that are parts go by their own name, the rest is `vla`."""
    return path[1:] if path[0] == "vla" else path
