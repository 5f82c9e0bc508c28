"""The vision backbone with FiLM, which OpenVLA-OFT keeps whole in a file of its own beside the base weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from eosjax.models.film import split_film
from eosjax.models.hf import weights
from eosjax.models.hf.table import film_table, in_film, unused_patterns, weight_table, with_base_layer
from eosjax.models.lora import openvla_scaling
from eosjax.models.openvla import VLAConfig

_BFLOAT16_STEP = 2.0**-7  # between neighbouring numbers, relative: what is left of a weight that was stored in bfloat16
# Layers that PEFT wraps for `all-linear`: those of a block, and of the pooling head that is not run.
_WRAPPED = re.compile(r".+\.(qkv|proj|fc1|fc2|q|kv)\.(weight|bias)")


def import_film(tensors: Mapping[str, np.ndarray], config: VLAConfig, put: weights.Put = lambda path, array: array) -> dict[str, Any]:
    """The variables of the vision backbone in `vision_backbone--<step>_checkpoint.pt`.

    Returns `{"params": {"vision_backbone": ...}}` with the FiLM layers in the blocks, and beside it `{"lora": {"vision_backbone": ...}}`
    when `config.lora_rank` is positive. The file says nothing of the scale of its branches, which is `openvla_scaling`; B is multiplied by
    the ratio to that of `config`. Arguments as in `weights.import_weights`; the names may carry DDP's `module.` prefix.

    Raises:
        WeightsError: a tensor is missing, unknown or of another shape; the file must have adapters exactly when `config` has them.
    """
    tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    table = list(film_table(config))
    weights.compare_names(table, tensors, unused_patterns(config)).check("FiLM vision backbone")
    if config.lora_rank:
        tensors = dict(_scaled(tensors.items(), openvla_scaling(config.lora_rank) / config.lora_scaling))
    return weights.import_entries(table, tensors, weights.abstract_variables(config), put)


def _scaled(tensors: Iterable[tuple[str, np.ndarray]], ratio: float) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of such a file with B of each branch multiplied."""
    for name, array in tensors:
        yield name, (array * ratio).astype(array.dtype) if ratio != 1 and ".lora_B." in name else array


def import_layers(tensors: Mapping[str, np.ndarray], config: VLAConfig, base: Mapping[str, Any], *, merged: bool) -> dict[str, Any]:
    """The FiLM layers alone of such a file, float32, as `models.film.split_film` returns them.

    Args:
        tensors: of the file, with or without low-rank branches.
        config: the model.
        base: the params that they shall be put into. They must have the file's vision backbone.
        merged: whether `base` has it with the branches of the file added to the weights, or without.

    Raises:
        WeightsError: as in `import_film`; or `base` has another vision backbone than the file.
    """
    ranks = {array.shape[0] for name, array in tensors.items() if name.endswith("lora_A.default.weight")}
    rank = max(ranks, default=0)
    scaling = openvla_scaling(rank) if rank else 1.0
    config = dataclasses.replace(config, film=True, lora_rank=rank, lora_scaling=scaling, param_dtype="float32")
    variables = import_film(tensors, config)
    params, layers = split_film(variables["params"])
    branches: dict[Any, Any] = dict(flatten_dict(variables.get("lora", {})))
    here: dict[Any, Any] = dict(flatten_dict(base))
    weights_of_file: dict[Any, Any] = dict(flatten_dict(params))
    for path, array in weights_of_file.items():
        if merged and (*path[:-1], "a") in branches and path[-1] == "kernel":
            array = array + scaling * branches[*path[:-1], "a"] @ branches[*path[:-1], "b"]
        found = np.asarray(here[path], np.float32)
        if not np.allclose(found, array, rtol=0, atol=_BFLOAT16_STEP * np.abs(array).max()):
            raise weights.WeightsError(
                f"FiLM vision backbone: {'/'.join(path)} is not that of the base weights"
                f"{', with which the low-rank branches of the file are merged' if merged and ranks else ''}"
            )
    return layers


def base_vision(tensors: Mapping[str, np.ndarray], config: VLAConfig) -> dict[str, Any]:
    """The params of the vision backbone, without FiLM, in a base checkpoint: `{"vision_backbone": ...}`."""
    table = [entry for entry in weight_table(config) if entry.path[0] == "vision_backbone"]
    return weights.import_entries(table, tensors, weights.abstract_variables(config)["params"], lambda path, array: array)


def export_film(variables: Mapping[str, Any], config: VLAConfig, base: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of all tensors of `vision_backbone--<step>_checkpoint.pt`; the original loads nothing less.

    Args:
        variables: of `OpenVLA`, as `import_film` returns them.
        config: the model.
        base: tensors of the checkpoint that was fine-tuned. Layers that are not run are taken from there; their FiLM layers and their
            low-rank branches are zero.
    """
    ratio = config.lora_scaling / openvla_scaling(config.lora_rank) if config.lora_rank else 1.0
    yield from _scaled(weights.export_entries(film_table(config), variables), ratio)
    unused = [pattern for pattern in unused_patterns(config) if pattern.startswith("vision_backbone")]
    for name in base:
        if any(re.fullmatch(pattern, name) for pattern in unused):
            yield from _not_run(name, np.asarray(base[name]), config)
    width = config.llama.width
    for encoder, vit in (("featurizer", config.dino), ("fused_featurizer", config.siglip)):
        for layer in ("scale", "shift"):
            prefix = f"vision_backbone.{encoder}.blocks.{vit.depth - 1}.{layer}"
            yield f"{prefix}.weight", np.zeros((vit.width, width), np.float32)
            yield f"{prefix}.bias", np.zeros(vit.width, np.float32)


def _not_run(name: str, array: np.ndarray, config: VLAConfig) -> Iterator[tuple[str, np.ndarray]]:
    """A tensor of a layer that is not run, under its name in the file, with a branch that does nothing where PEFT wraps the layer."""
    name = in_film(name)
    if not (config.lora_rank and _WRAPPED.fullmatch(name)):
        yield name, array
        return
    yield with_base_layer(name), array
    if name.endswith(".weight"):
        outputs, inputs = array.shape
        layer = name.removesuffix("weight")
        yield f"{layer}lora_A.default.weight", np.zeros((config.lora_rank, inputs), np.float32)
        yield f"{layer}lora_B.default.weight", np.zeros((outputs, config.lora_rank), np.float32)
