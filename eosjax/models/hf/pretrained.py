"""A pretrained policy: its shape, its weights on their devices, and the parts that OpenVLA-OFT keeps beside them."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from eosjax.models.hf import files, film, weights
from eosjax.models.hf.config import vla_config_from_hf
from eosjax.models.hf.table import layout_of, part_table, unused_patterns, weight_table
from eosjax.models.openvla import VLAConfig

PARTS = ("action_head", "eos_head", "proprio_projector", "noisy_action_projector")  # what OpenVLA-OFT keeps in files of its own
FILM_FILE = "vision_backbone"  # and where it keeps the layers of FiLM
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint folder in the Hugging Face layout. Opening it reads no weights."""

    folder: Path
    revision: str | None = None  # commit on the hub; None for a folder

    @classmethod
    def open(cls, vla_path: str, revision: str | None = None) -> Pretrained:
        """The checkpoint at `vla_path`: a local folder, or `owner/name` on the hub, there at a branch, tag or commit.

        Raises:
            WeightsError: there is none.
        """
        return cls(*files.find_checkpoint(vla_path, revision))

    @functools.cached_property
    def config_json(self) -> dict[str, Any]:
        """config.json."""
        return files.read_json(self.folder, "config.json")

    @functools.cached_property
    def tensors(self) -> files.Tensors:
        """The weights, each read when asked for."""
        return files.Tensors.of_folder(self.folder)

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise weights.WeightsError(f"{path}: no such file; expected the tokenizer in the form of Hugging Face tokenizers")
        return path

    def vla_config(self, vision_heads: tuple[int, int] | None = None, **overrides: Any) -> VLAConfig:
        """The shape of the policy; `overrides`: what a checkpoint does not fix (see `hf.config.vla_config_from_hf`)."""
        name = "preprocessor_config.json"
        preprocessor = files.read_json(self.folder, name) if (self.folder / name).is_file() else None
        return vla_config_from_hf(self.config_json, preprocessor, self.tensors.shapes, vision_heads, **overrides)

    def load_base(self, config: VLAConfig, put: weights.Put) -> tuple[dict[str, Any], weights.NameReport]:
        """The base weights, array by array in `config.param_dtype` to where `put` takes them; and what became of each tensor.

        At no time is more in memory than one array of ours and one tensor of the checkpoint, beside what `put` keeps. A progress bar is
        shown on a terminal.
        """
        table = weight_table(config)
        report = weights.compare_names(table, self.tensors, unused_patterns(config))
        report.check(str(self.folder))
        arrays = len({entry.path for entry in table})
        with tqdm(total=arrays, desc="loading weights", unit="array", disable=not sys.stderr.isatty()) as bar:

            def put_and_count(array: np.ndarray) -> Any:
                bar.update()
                return put(array)

            return weights.import_weights(self.tensors, config, put_and_count), report

    def load_part(self, part: str, config: VLAConfig, expected: Mapping[str, Any]) -> tuple[dict[str, Any], Path] | None:
        """The params of a part (float32) that lies in the folder, and its file; None if it has none.

        Args:
            part: one of `PARTS`.
            config: the model.
            expected: params of the part, or their shapes.

        Raises:
            WeightsError: its tensors are not those of the part, or of other shapes.
        """
        path = files.find_part(self.folder, part)
        if path is None:
            return None
        layout = layout_of(part, config)
        params = weights.import_part(layout, files.read_part(path))
        found: dict[Any, Any] = dict(flatten_dict(params))
        wanted: dict[Any, Any] = dict(flatten_dict(expected))
        for entry in part_table(layout):
            got, shape = found[entry.path].shape, wanted[entry.path].shape
            if got != shape:
                raise weights.WeightsError(f"{path}: {entry.names[0]}: expected the shape {shape}, got {got}, both in our layout")
        return params, path

    def load_film(self, config: VLAConfig, base: Mapping[str, Any], *, merged: bool) -> tuple[dict[str, Any], Path] | None:
        """The FiLM layers (float32) that lie in the folder, and their file; None without one. Arguments as in `hf.film.import_layers`."""
        path = files.find_part(self.folder, FILM_FILE)
        return None if path is None else (film.import_layers(files.read_part(path), config, base, merged=merged), path)


def load_adapter(folder: Path, config: VLAConfig) -> dict[str, Any]:
    """The `lora` tree of a PEFT adapter folder, float32.

    Raises:
        WeightsError: another rank than `config.lora_rank`, another scaling than alpha = min(rank, 16), or other layers.
    """
    content = files.read_json(folder, ADAPTER_CONFIG)
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if rank != config.lora_rank:
        raise weights.WeightsError(f"{folder / ADAPTER_CONFIG}: r: expected --lora_rank ({config.lora_rank}), got {rank}")
    if alpha != min(config.lora_rank, 16):
        raise weights.WeightsError(f"{folder / ADAPTER_CONFIG}: lora_alpha: expected min(r, 16) = {min(config.lora_rank, 16)}, got {alpha}")
    return weights.import_adapter(files.Tensors.of_file(folder / ADAPTER_WEIGHTS), config)
