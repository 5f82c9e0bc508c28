"""Arrays of a checkpoint to our parameter trees and back, with every tensor accounted for."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from eosjax.models.hf.table import ROTARY, Entry, part_table, unused_patterns, weight_table
from eosjax.models.openvla import OpenVLA, VLAConfig
from eosjax.types import UserError

Put = Callable[[tuple[str, ...], np.ndarray], Any]  # (path in the tree, array) -> leaf


class WeightsError(UserError):
    """Weights that cannot be read or do not fit the model."""


class NameReport(NamedTuple):
    """The tensors of a checkpoint compared with those that the model needs."""

    used: list[str]
    unused: list[str]  # ignored on purpose: named in `table.unused_patterns`
    missing: list[str]
    unexpected: list[str]

    def check(self, what: str) -> None:
        """Raises `WeightsError` with both lists if anything is missing or unexpected."""
        if self.missing or self.unexpected:
            raise WeightsError(
                f"{what}: the tensors do not fit the model.\n"
                + _listed("expected by the model, not in the checkpoint", self.missing)
                + "\n"
                + _listed("in the checkpoint, unknown to the model", self.unexpected)
            )

    def __str__(self) -> str:
        return f"{len(self.used)} tensors used, {len(self.unused)} left aside (parts that are not run)"


def _listed(title: str, names: list[str], limit: int = 20) -> str:
    shown = names[:limit] + [f"... and {len(names) - limit} more"] * (len(names) > limit)
    return f"{title} ({len(names)}):" + "".join(f"\n  {name}" for name in shown or ["none"])


def compare_names(table: Iterable[Entry], found: Iterable[str], unused: Iterable[str] = ()) -> NameReport:
    """Sorts the names `found` in a checkpoint by their use in the `table`; `unused`: regular expressions."""
    wanted, found = {name for entry in table for name in entry.names}, set(found)
    aside = {name for name in found - wanted if any(re.fullmatch(pattern, name) for pattern in unused)}
    return NameReport(sorted(wanted & found), sorted(aside), sorted(wanted - found), sorted(found - wanted - aside))


def abstract_variables(config: VLAConfig) -> dict[str, Any]:
    """The variables of `OpenVLA(config)` (`params`, and `lora` with adapters) as `jax.ShapeDtypeStruct`s; computes nothing."""
    return jax.tree.map(lambda leaf: leaf, _traced(config))  # new dicts, which the caller may change


@functools.lru_cache(maxsize=8)
def _traced(config: VLAConfig) -> dict[str, Any]:
    size, length = config.dino.image_size, config.action_tokens + 3
    inputs = (
        jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        jax.ShapeDtypeStruct((1, length), jnp.bool_),
        jax.ShapeDtypeStruct((1, config.proprio_dim), jnp.float32),
    )
    variables: Any = jax.eval_shape(OpenVLA(config).init, jax.random.key(0), *inputs)
    return variables


def import_weights(tensors: Mapping[str, np.ndarray], config: VLAConfig, put: Put = lambda path, array: array) -> dict[str, Any]:
    """The `params` tree of the base model in `config.param_dtype`, without the proprio projector.

    Args:
        tensors: name -> array of the checkpoint. Each is looked up once, so a lazy mapping keeps memory low.
        config: the model.
        put: moves each finished array to its final place; its result becomes the leaf of the tree.

    Raises:
        WeightsError: a tensor is missing, or neither used nor in `table.unused_patterns` (with both lists), or a shape does not fit; or
            stored rotary frequencies are not those of the model.
    """
    table = weight_table(config)
    compare_names(table, tensors, unused_patterns(config)).check("base weights")
    _check_rotary(tensors, config)
    return import_entries(table, tensors, abstract_variables(config)["params"], put)


def _check_rotary(tensors: Mapping[str, np.ndarray], config: VLAConfig) -> None:
    llama = config.llama
    expected = llama.rope_theta ** -(np.arange(0, llama.head_dim, 2) / llama.head_dim)
    for name in tensors:
        if not re.fullmatch(ROTARY, name):
            continue
        found = np.asarray(tensors[name])
        # Half precision rounds them, and makes the smallest of float16 subnormal.
        tolerance = (2.0**-8, 1e-7) if found.dtype.itemsize == 2 else (1e-5, 0.0)
        if found.shape != expected.shape or not np.allclose(found.astype(np.float64), expected, *tolerance):
            raise WeightsError(f"base weights: {name}: expected the rotary frequencies of rope_theta {llama.rope_theta:g}, got others")


def export_weights(params: Mapping[str, Any], config: VLAConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of each tensor that `import_weights` used: its inverse, bit for bit, a tensor at a time."""
    return export_entries(weight_table(config), params)


def import_part(part: str, tensors: Mapping[str, np.ndarray], source: object = None) -> dict[str, Any]:
    """The float32 params of a part (see `table.part_table`); its names may carry the `module.` that DDP puts in front.

    `source`: its file, for messages.

    Raises:
        WeightsError: the names are not exactly those of the part; with both lists.
    """
    tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    table = part_table(part)
    compare_names(table, tensors).check(f"{source}: {part}" if source else part)
    arrays = {entry.path: entry.op.to_ours(np.asarray(tensors[entry.names[0]]).astype(np.float32)) for entry in table}
    return unflatten_dict({path: np.ascontiguousarray(array) for path, array in arrays.items()})


def export_part(part: str, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `import_part`, without the `module.` prefix."""
    return dict(export_entries(part_table(part), params))


def import_entries(table: Iterable[Entry], tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any], put: Put) -> dict[str, Any]:
    """The tree of the arrays of a table; `expected` has the shape and dtype of each, the rest as in `import_weights`."""
    shapes: dict[Any, Any] = dict(flatten_dict(expected))
    return unflatten_dict({entry.path: put(entry.path, _read(entry, tensors, shapes[entry.path])) for entry in table})


def _read(entry: Entry, tensors: Mapping[str, np.ndarray], expected: jax.ShapeDtypeStruct) -> np.ndarray:
    """The array of one entry. Layers are copied one by one, so at most one layer is held twice."""
    out = np.empty(expected.shape, expected.dtype)
    rows = out if entry.stacked else out[None]
    for i, name in enumerate(entry.names):
        array = entry.op.to_ours(np.asarray(tensors[name]))
        if array.shape != rows.shape[1:]:
            raise WeightsError(
                f"{name}: expected the shape {rows.shape[1:]} of {'/'.join(entry.path)}, got {array.shape}, both in our layout"
            )
        rows[i] = array
    return out


def export_entries(table: Iterable[Entry], tree: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of each tensor of a table: the inverse of `import_entries`."""
    flat = flatten_dict(tree)
    for entry in table:
        array = np.asarray(flat[entry.path])
        for name, row in zip(entry.names, array if entry.stacked else array[None], strict=True):
            yield name, np.ascontiguousarray(entry.op.to_hf(row))
