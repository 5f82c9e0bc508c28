"""Writes weights as the PyTorch side reads them: a merged checkpoint in shards, the parts beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from eosjax.models.hf import files, weights
from eosjax.models.hf.config import CONFIG, is_tied
from eosjax.models.hf.table import Entry, unused_patterns, weight_table
from eosjax.models.openvla import VLAConfig

Tensor = tuple[str, np.ndarray]
_NOT_COPIED = ("dataset_statistics*", "eos_calibration*", "*.index.json")  # they are of the base model


def write_part(folder: Path, name: str, tensors: Iterable[Tensor], step: int, *, as_torch: bool) -> None:
    """Writes tensors as `<name>--<step>_checkpoint.safetensors`, or `.pt` (which needs torch), in float32.

    The names within get DDP's `module.` in front, as those of the original.
    """
    held = {f"module.{key}": np.asarray(array, np.float32) for key, array in tensors}
    stem = f"{name}--{step}_checkpoint"
    if not as_torch:
        save_file(held, folder / f"{stem}.safetensors", metadata=files.METADATA)
        return
    import torch  # pyright: ignore[reportMissingImports]

    torch.save({key: torch.tensor(array) for key, array in held.items()}, folder / f"{stem}.pt")


def merged_tensors(tensors: Mapping[str, np.ndarray], config: VLAConfig, params: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields (name, array) of each tensor of a base checkpoint with what was trained put in, in the dtype that it has there.

    A layer with a branch becomes W + scaling · A B, computed in float32; a trained base weight takes the place of W; every other
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
                array = array.astype(np.float32) + config.lora_scaling * entry.op.to_hf(a @ b)
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
        save_file(held, folder / f"shard-{len(shards)}", metadata=files.METADATA)
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
    files.write_json(folder / files.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def copy_files(source: Path, folder: Path) -> None:
    """Copies what a checkpoint has beside its weights (configuration, tokenizer, preprocessor, code), but no statistics."""
    for path in sorted(source.iterdir()):
        copied = any(map(path.match, files.SIDE_FILES)) and not any(map(path.match, _NOT_COPIED))
        if path.is_file() and copied:
            shutil.copyfile(path, folder / path.name)


def untie_output(folder: Path) -> None:
    """Says in the config.json of a folder that the output projection is not the embedding: `merged_tensors` yields one of its own."""
    content = files.read_json(folder, CONFIG)
    if is_tied(content):
        text = content["text_config"] | {"tie_word_embeddings": False}
        files.write_json(folder / CONFIG, content | {"text_config": text})
