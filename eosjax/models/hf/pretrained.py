"""A pretrained policy: its shape, its weights on their devices, and the parts that OpenVLA-OFT keeps beside them."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from eosjax.models.hf import files, film, hub, weights
from eosjax.models.hf.adapter import Adapter, load_adapter
from eosjax.models.hf.adapter_config import AdapterConfig
from eosjax.models.hf.config import CONFIG, PREPROCESSOR, action_vocabulary, is_tied, vla_config_from_hf
from eosjax.models.hf.part_files import FILM_FILE, PARTS, find_parts, read_part
from eosjax.models.hf.table import EMBEDDING, LM_HEAD, layout_of, part_table, renamed, unused_patterns, weight_table
from eosjax.models.openvla import VLAConfig

FILM = "film"  # the part that `FILM_FILE` has the layers of


class PartFiles(NamedTuple):
    """Files of parts in the folder of a checkpoint."""

    of: dict[str, Path]  # by part of the policy
    aside: list[Path]  # of parts that the policy does not have


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
        return cls(*hub.find_checkpoint(vla_path, revision))

    @functools.cached_property
    def config_json(self) -> dict[str, Any]:
        """config.json."""
        return files.read_json(self.folder, CONFIG)

    @functools.cached_property
    def tensors(self) -> files.Tensors:
        """The weights under the original's names, each read when asked for; an output projection that is the embedding is among them.

        Raises:
            WeightsError: files are missing or damaged, or hold two tensors for one.
        """
        tensors = files.Tensors.of_folder(self.folder)
        others = {renamed(name): name for name in tensors if renamed(name) != name}
        if double := sorted(others.keys() & tensors.keys()):
            raise weights.WeightsError(f"{self.folder}: {double[0]} is also stored as {others[double[0]]}; expected one of them")
        tensors = tensors.renamed(others) if others else tensors
        if not is_tied(self.config_json) or EMBEDDING not in tensors:
            return tensors
        if LM_HEAD not in tensors:
            return tensors.shared(LM_HEAD, EMBEDDING)
        if not np.array_equal(tensors[LM_HEAD], tensors[EMBEDDING]):
            raise weights.WeightsError(
                f"{self.folder / CONFIG}: text_config.tie_word_embeddings: got true, but {LM_HEAD} differs from {EMBEDDING}"
            )
        return tensors

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise weights.WeightsError(f"{path}: no such file; expected the tokenizer in the form of Hugging Face tokenizers")
        files.check_file(path)
        return path

    def vla_config(self, vision_heads: tuple[int, int] | None = None, **overrides: Any) -> VLAConfig:
        """The shape of the policy; `overrides`: what a checkpoint does not fix (see `hf.config.vla_config_from_hf`)."""
        preprocessor = files.read_json(self.folder, PREPROCESSOR) if (self.folder / PREPROCESSOR).is_file() else None
        return vla_config_from_hf(self.config_json, preprocessor, self.tensors.shapes, vision_heads, **overrides)

    @property
    def action_vocabulary(self) -> int:
        """See `hf.config.action_vocabulary`."""
        return action_vocabulary(self.config_json)

    def load_base(self, config: VLAConfig, put: weights.Put) -> tuple[dict[str, Any], weights.NameReport]:
        """The base weights, array by array in `config.param_dtype` to where `put` takes them; and what became of each tensor.

        At no time is more in memory than one array of ours and one tensor of the checkpoint, beside what `put` keeps. A progress bar is
        shown on a terminal.
        """
        table, tensors = weight_table(config), files.Finite(self.tensors, self.folder)
        report = weights.compare_names(table, tensors, unused_patterns(config))
        report.check(str(self.folder))
        tensors.check_types(report.used)
        arrays = len({entry.path for entry in table})
        with tqdm(total=arrays, desc="loading weights", unit="array", disable=not sys.stderr.isatty()) as bar:

            def put_and_count(path: tuple[str, ...], array: np.ndarray) -> Any:
                bar.update()
                return put(path, array)

            return weights.import_weights(tensors, config, put_and_count), report

    def part_files(self, wanted: Collection[str]) -> PartFiles:
        """The files of the parts of a policy (see `eosjax.models.parts`), all of one step, that lie in the folder.

        Raises:
            WeightsError: the parts are of different steps; or the folder has layers of FiLM, without which its encoders compute something
                else, and they are not wanted.
        """
        stems = {part: part for part in PARTS} | {FILM: FILM_FILE}
        found = find_parts(self.folder, [stem for part, stem in stems.items() if part in wanted])
        aside = {stem: path for part, stem in stems.items() if part not in wanted for path in find_parts(self.folder, [stem]).values()}
        if FILM_FILE in aside:
            raise weights.WeightsError(
                f"{aside[FILM_FILE]}: the encoders of this policy are modulated by the text (FiLM): add --use_film True, or remove the "
                "file to start from the encoders alone"
            )
        return PartFiles({part: found[stem] for part, stem in stems.items() if stem in found}, sorted(aside.values()))

    def load_part(self, path: Path, part: str, config: VLAConfig, expected: Mapping[str, Any]) -> dict[str, Any]:
        """The params of a part (float32).

        Args:
            path: its file.
            part: one of `PARTS`.
            config: the model.
            expected: params of the part, or their shapes.

        Raises:
            WeightsError: its tensors are not those of the part, or of other shapes.
        """
        layout = layout_of(part, config)
        params = weights.import_part(layout, read_part(path), path)
        found: dict[Any, Any] = dict(flatten_dict(params))
        wanted: dict[Any, Any] = dict(flatten_dict(expected))
        for entry in part_table(layout):
            got, shape = found[entry.path].shape, wanted[entry.path].shape
            if got != shape:
                raise weights.WeightsError(f"{path}: {entry.names[0]}: expected the shape {shape}, got {got}, both in our layout")
        return params

    def load_adapter(self, folder: Path, config: VLAConfig) -> Adapter:
        """The PEFT adapter in a folder, for this base (see `hf.adapter.load_adapter`).

        Raises:
            WeightsError: it does not fit; or it lies in this folder, as those do that OpenVLA-OFT has merged into the weights there.
        """
        if folder.resolve().parent == self.folder.resolve():
            raise weights.WeightsError(
                f"--lora_adapter_path {folder}: lies in --vla_path, whose weights OpenVLA-OFT has merged it into; leave the flag out, or "
                f"give the base {AdapterConfig.read(folder).base} as --vla_path"
            )
        return load_adapter(folder, config, self.tensors)

    def load_film(self, path: Path, config: VLAConfig, base: Mapping[str, Any] | None = None, *, merged: bool) -> dict[str, Any]:
        """The FiLM layers (float32) of a file; `base`: if not that of this folder. The other arguments as in `hf.film.import_layers`."""
        return film.import_layers(read_part(path), config, base or film.base_vision(self.tensors, config), merged=merged)
