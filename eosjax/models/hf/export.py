"""Writes weights as the PyTorch side reads them: a PEFT adapter, a merged checkpoint in shards, the parts beside them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from eosjax.models.hf import files, weights
from eosjax.models.hf.pretrained import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from eosjax.models.hf.table import ADAPTER_PREFIX, Entry, adapter_table, unused_patterns, weight_table
from eosjax.models.lora import MAX_ALPHA, lora_scaling
from eosjax.models.openvla import VLAConfig

Tensor = tuple[str, np.ndarray]
_METADATA = {"format": "pt"}  # transformers refuses files that do not say so
_NOT_COPIED = ("dataset_statistics*", "eos_calibration*", "*.index.json")  # they are of the base model


def target_modules(config: VLAConfig) -> str:
    """The regular expression that PEFT picks the layers with a branch by: all linear layers that are run, and no others."""
    patterns = []
    for entry in adapter_table(config):
        if entry.path[-1] == "a":
            name = re.escape(entry.names[0].removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight"))
            layers = "|".join(map(str, range(len(entry.names))))
            patterns.append(name.replace(r"\.0\.", rf"\.({layers})\.", 1) if entry.stacked else name)
    return "|".join(patterns)


def write_adapter(folder: Path, lora: Mapping[str, Any], config: VLAConfig, base_name: str) -> None:
    """Writes a PEFT adapter: adapter_model.safetensors (float32) and adapter_config.json.

    Args:
        folder: where to.
        lora: the collection `lora` of the policy.
        config: of the policy.
        base_name: folder or hub name of the base model, for whoever loads the adapter.
    """
    save_file(dict(weights.export_adapter(lora, config)), folder / ADAPTER_WEIGHTS, metadata=_METADATA)
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name,
        "r": config.lora_rank,
        "lora_alpha": min(config.lora_rank, MAX_ALPHA),
        "lora_dropout": config.lora_dropout,
        "target_modules": target_modules(config),
        "init_lora_weights": "gaussian",
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "task_type": None,
    }
    write_json(folder / ADAPTER_CONFIG, content)


def write_part(folder: Path, name: str, tensors: Iterable[Tensor], step: int, *, as_torch: bool) -> None:
    """Writes tensors as `<name>--<step>_checkpoint.safetensors`, or `.pt` (which needs torch), in float32.

    The names within get DDP's `module.` in front, as those of the original.
    """
    held = {f"module.{key}": np.asarray(array, np.float32) for key, array in tensors}
    stem = f"{name}--{step}_checkpoint"
    if not as_torch:
        save_file(held, folder / f"{stem}.safetensors", metadata=_METADATA)
        return
    import torch  # pyright: ignore[reportMissingImports]

    torch.save({key: torch.tensor(array) for key, array in held.items()}, folder / f"{stem}.pt")


def merged_tensors(tensors: Mapping[str, np.ndarray], config: VLAConfig, params: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields (name, array) of each tensor of a base checkpoint with what was trained put in, in the dtype that it has there.

    A layer with a branch becomes W + alpha / r · A B, computed in float32; a trained base weight takes the place of W; every other
    tensor, such as those of parts that are not run, comes as it is. One tensor is held at a time.

    Args:
        tensors: the base checkpoint.
        config: of the policy.
        params: its parts; those but `vla` and `lora` are not looked at.

    Raises:
        WeightsError: the checkpoint lacks a tensor, or holds an unknown one.
    """
    table = weight_table(config)
    weights.compare_names(table, tensors, unused_patterns(config)).check("base weights")
    places = {name: (entry, layer) for entry in table for layer, name in enumerate(entry.names)}
    trained: dict[Any, Any] = dict(flatten_dict(params.get("vla", {})))
    branches: dict[Any, Any] = dict(flatten_dict(params.get("lora", {})))
    for name in tensors:
        array = tensors[name]
        dtype = array.dtype
        if name in places:
            entry, layer = places[name]
            if entry.path in trained:
                array = entry.op.to_hf(_layer(trained[entry.path], entry, layer))
            if entry.path[-1] == "kernel" and (*entry.path[:-1], "a") in branches:
                a, b = (_layer(branches[*entry.path[:-1], matrix], entry, layer).astype(np.float32) for matrix in "ab")
                array = array.astype(np.float32) + lora_scaling(config.lora_rank) * entry.op.to_hf(a @ b)
        yield name, np.ascontiguousarray(array.astype(dtype, copy=False))


def _layer(array: Any, entry: Entry, layer: int) -> np.ndarray:
    return np.asarray(array[layer] if entry.stacked else array)


def write_shards(tensors: Iterable[Tensor], folder: Path, max_bytes: int) -> None:
    """Writes the weights of a checkpoint as one file, or as shards of at most `max_bytes` with their index.

    No more than one shard is held in memory; a tensor that is larger than `max_bytes` gets a file of its own.
    """
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    size = total = 0

    def write() -> None:
        save_file(held, folder / f"shard-{len(shards)}", metadata=_METADATA)
        shards.append(list(held))
        held.clear()

    for name, array in tensors:
        if held and size + array.nbytes > max_bytes:
            write()
            size = 0
        held[name] = array
        size += array.nbytes
        total += array.nbytes
    write()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / files.SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / files.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def copy_files(source: Path, folder: Path) -> None:
    """Copies what a checkpoint has beside its weights (configuration, tokenizer, preprocessor, code), but no statistics."""
    for path in sorted(source.iterdir()):
        copied = any(map(path.match, files.SIDE_FILES)) and not any(map(path.match, _NOT_COPIED))
        if path.is_file() and copied:
            shutil.copyfile(path, folder / path.name)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
