"""PEFT adapters: their branches as ours, in both directions, with every tensor accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from eosjax.models.hf import files, weights
from eosjax.models.hf.adapter_config import ADAPTER_CONFIG, MERGE, AdapterConfig
from eosjax.models.hf.table import (
    ADAPTER_PREFIX,
    Entry,
    adapter_module,
    adapter_table,
    out_of_film,
    unused_adapter_patterns,
    wrapped_module,
)
from eosjax.models.hf.weights import WeightsError
from eosjax.models.openvla import VLAConfig

ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Adapter(NamedTuple):
    """A PEFT adapter as ours."""

    lora: dict[str, Any]  # the tree, float32, of one rank and scale
    notes: list[str]  # what a user should know of it


def load_adapter(folder: Path, config: VLAConfig, base: Mapping[str, np.ndarray]) -> Adapter:
    """The adapter in a folder.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        config: of the policy.
        base: tensors of the checkpoint that the adapter stands on.

    Raises:
        WeightsError: no adapter that this policy can have; see `import_adapter` and `AdapterConfig.from_json`.
    """
    settings = AdapterConfig.read(folder)
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise WeightsError(
            f"{folder / 'adapter_model.bin'}: a pickle, which could run code, is not read; "
            f"load it with PEFT and save it anew (save_pretrained) to get {ADAPTER_WEIGHTS}"
        )
    adapter = import_adapter(files.Finite(files.Tensors.of_file(path), path), config, settings, base, path)
    return adapter._replace(notes=[f"made for the base {settings.base}", *adapter.notes])


def import_adapter(
    tensors: Mapping[str, np.ndarray],
    config: VLAConfig,
    settings: AdapterConfig,
    base: Mapping[str, np.ndarray] | None = None,
    source: object = "LoRA adapter",
) -> Adapter:
    """The branches of a PEFT adapter, of one rank (`config.lora_rank`) and one scale (`config.lora_scaling`).

    Branches of a smaller rank are padded with zeros: neither A nor B then gets a gradient there. B of a branch of another scale is
    multiplied by the ratio. A layer that PEFT gave no branch gets one of zeros, which stays zero for the same reason.

    Args:
        tensors: of the adapter, under PEFT's names.
        config: of the policy.
        settings: its adapter_config.json.
        base: tensors of the checkpoint that the adapter stands on. The adapter may repeat them.
        source: the file of the tensors, for messages.

    Raises:
        WeightsError: a branch is missing or of another rank than `settings` or `config` say; a tensor is unknown, or is one of the base
            with other values.
    """
    table = list(adapter_table(config))
    repeated = _repeated(tensors, base or {}, config, source)
    report = weights.compare_names(table, set(tensors) - repeated, unused_adapter_patterns(config))
    without = [name for name in report.missing if not (settings.has(adapter_module(name)) or settings.has(wrapped_module(name)))]
    halves = {adapter_module(name) for name in without} & {adapter_module(name) for name in report.used}
    absent = [name for name in without if adapter_module(name) not in halves]
    report._replace(missing=sorted(set(report.missing) - set(absent))).check(str(source))
    _check_ranks(tensors, report.used, config, settings, source)
    shapes = weights.abstract_variables(config)["lora"]
    branches = _Branches(tensors, table, shapes, config, settings)
    lora = weights.import_entries(table, branches, shapes, lambda path, array: array)
    return Adapter(lora, _notes(sorted({adapter_module(name) for name in absent}), report.used, config, settings))


def _repeated(tensors: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], config: VLAConfig, source: object) -> set[str]:
    """The names of tensors that are those of the base, which PEFT stores beside where it resized the vocabulary or wrapped the output."""
    unused = unused_adapter_patterns(config)
    names = set()
    for name in tensors:
        original = out_of_film(name.removeprefix(ADAPTER_PREFIX)).replace(".base_layer.", ".")
        if "lora_" in name or original not in base or any(re.fullmatch(pattern, name) for pattern in unused):
            continue
        if not _same(np.asarray(tensors[name]), np.asarray(base[original])):
            raise WeightsError(f"{source}: {name}: expected the values of {original} of the base weights, got others; {MERGE}")
        names.add(name)
    return names


def _same(stored: np.ndarray, here: np.ndarray) -> bool:
    """Whether two arrays are equal in the shorter of their types: adapter and base may be saved in different ones."""
    shorter = min(stored.dtype, here.dtype, key=lambda dtype: dtype.itemsize)
    return np.array_equal(stored.astype(shorter), here.astype(shorter))


def _check_ranks(tensors: Mapping[str, np.ndarray], used: list[str], config: VLAConfig, settings: AdapterConfig, source: object) -> None:
    largest = 0
    for name in used:
        axis = 0 if ".lora_A." in name else 1
        shape, (rank, _) = np.shape(tensors[name]), settings.of_module(adapter_module(name))
        if len(shape) < 2 or shape[axis] != rank:
            raise WeightsError(f"{source}: {name}: expected the rank {rank} of {ADAPTER_CONFIG} on axis {axis}, got the shape {shape}")
        largest = max(largest, rank)
    if used and largest != config.lora_rank:
        raise WeightsError(f"{source}: r: expected --lora_rank ({config.lora_rank}), got {largest}; add --lora_rank {largest}")
    if not used:
        raise WeightsError(f"{source}: no branch of a layer that is run")


class _Branches(Mapping[str, np.ndarray]):
    """The matrices of all branches in PEFT's layout, brought to one rank and one scale."""

    def __init__(self, tensors: Mapping[str, np.ndarray], table: list[Entry], expected: Any, config: VLAConfig, settings: AdapterConfig):
        self._tensors, self._config, self._settings = tensors, config, settings
        self._entries = {name: entry for entry in table for name in entry.names}
        self._expected: dict[Any, Any] = dict(flatten_dict(expected))

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        if name not in self._tensors:
            shape = self._expected[entry.path].shape
            return entry.op.to_hf(np.zeros(shape[1:] if entry.stacked else shape, np.float32))
        array = np.asarray(self._tensors[name], np.float32)
        rank, scaling = self._settings.of_module(adapter_module(name))
        axis = 0 if ".lora_A." in name else 1
        if axis == 1 and scaling != self._config.lora_scaling:
            array = (array * (np.float64(scaling) / self._config.lora_scaling)).astype(np.float32)
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, self._config.lora_rank - rank)
        return np.pad(array, padding)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _notes(absent: list[str], used: list[str], config: VLAConfig, settings: AdapterConfig) -> list[str]:
    notes = []
    if absent:
        notes.append(f"no branch for {len(absent)} layers, which stay as in the base: {_listed(absent)}")
    modules = sorted({adapter_module(name) for name in used})
    smaller = [name for name in modules if settings.of_module(name)[0] < config.lora_rank]
    if smaller:
        notes.append(f"branches of {len(smaller)} layers have a smaller rank and are padded with zeros: {_listed(smaller)}")
    ratios = {name: settings.of_module(name)[1] / config.lora_scaling for name in modules}
    scaled = [name for name, ratio in ratios.items() if ratio != 1]
    if scaled:
        exact = all(math.frexp(abs(ratios[name]))[0] == 0.5 for name in scaled)
        how = "exactly, all ratios are powers of two" if exact else "rounded to float32"
        notes.append(f"branches of {len(scaled)} layers have another scale, multiplied into B ({how}): {_listed(scaled)}")
    return notes


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def export_adapter(lora: Mapping[str, Any], config: VLAConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of each tensor of an adapter, in PEFT's layout: the inverse of `import_adapter` for one rank and scale."""
    return weights.export_entries(adapter_table(config), lora)


def target_modules(config: VLAConfig) -> str:
    """The regular expression that PEFT picks the layers with a branch by: all linear layers that are run, and no others."""
    patterns = []
    for entry in adapter_table(config):
        if entry.path[-1] == "a":
            name = re.escape(wrapped_module(entry.names[0]))
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
    save_file(dict(export_adapter(lora, config)), folder / ADAPTER_WEIGHTS, metadata=files.METADATA)
    alpha = config.lora_scaling * config.lora_rank  # of no whole number after use_rslora
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name,
        "r": config.lora_rank,
        "lora_alpha": round(alpha) if abs(alpha - round(alpha)) < 1e-12 * abs(alpha) else alpha,
        "use_rslora": False,
        "lora_dropout": config.lora_dropout,
        "target_modules": target_modules(config),
        "init_lora_weights": "gaussian",
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "task_type": None,
    }
    files.write_json(folder / ADAPTER_CONFIG, content)
