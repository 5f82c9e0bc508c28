"""The record of a run: all that says what the numbers of a checkpoint mean.

Every checkpoint holds one, as JSON. It is written by `CheckpointRecord.to_json` and read by `CheckpointRecord.from_json`, and nowhere else.
Whoever reads a run (serving, evaluation, export, a resumed training) takes everything from it; no file that the training read is read
again, but frozen base weights and data, which must have the recorded fingerprints.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from eosjax.config import TrainConfig
from eosjax.data.samples.tokens import PromptForm
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import DatasetStats, stats_from_json, stats_to_json
from eosjax.ends.operating_points import OperatingPoint
from eosjax.models.openvla import VLAConfig
from eosjax.types import UserError

VERSION = 8  # raise it when a field is added, goes or changes its meaning
T = TypeVar("T")


class RecordError(UserError):
    """A record that cannot be read."""


class RecordVersionError(RecordError):
    """A record of another version."""


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetRecord:
    """A dataset as it was used."""

    name: str
    weight: float  # in the mixture
    spec: DatasetSpec
    statistics: DatasetStats
    frames: str  # fingerprint of the frame store: of all images, states, actions and texts
    labels: str  # fingerprint of the joined labels: the instruction of every frame, and which frames are ends
    held_out: tuple[int, ...]  # episodes for validation, by their numbers in the dataset


@dataclasses.dataclass(frozen=True)
class Software:
    """What a run was made with."""

    eosjax: str
    jax: str
    platform: str  # of the devices, such as "cpu" or "gpu"
    device_kind: str
    num_devices: int


@dataclasses.dataclass(frozen=True)
class HeadFit:
    """How an EOS head was trained on the hidden states of a policy that stood still; the `eos_*` flags of the run are its own."""

    run: str  # name of the folder of the run that the policy is taken from
    checkpoint: str  # fingerprint of its checkpoint
    states: str  # fingerprint of the hidden states
    seed: int  # of weights, order and draws
    batch_size: int  # rows of an update
    learning_rate: float  # a tenth of it from two thirds of the passes on
    passes: int  # over the training rows, as planned
    patience: int | None  # passes without a better event AP that ended it; None: no early stopping
    passes_kept: int  # after which the head is taken


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
    """What stays the same throughout a run."""

    config: TrainConfig  # as it was used: what `--eos_tune auto` chose is in it
    datasets: tuple[DatasetRecord, ...]
    share_of_ends: float  # in the training split
    samples_per_update: int
    model: VLAConfig
    prompt: PromptForm
    tokenizer: str  # fingerprint of the tokenizer.json in the folder of the run
    base: Mapping[str, int]  # fingerprints of the frozen base weights by name; empty where all weights are trained
    base_revision: str | None  # commit of the base weights, if they came from the hub
    software: Software
    wandb_id: str | None  # of the run at Weights & Biases
    head_fit: HeadFit | None = None  # None where policy and EOS head were trained together

    def dataset(self, name: str | None = None) -> DatasetRecord:
        """The dataset of that name; without a name the only one.

        Raises:
          UserError: there are several and none is named, or none of that name.
        """
        names = [each.name for each in self.datasets]
        if name is None and len(names) > 1:
            raise UserError(f"the run was trained on {len(names)} datasets; name the one whose robot is used: {', '.join(names)}")
        if name is not None and name not in names:
            raise UserError(f"the run was trained on {', '.join(names)}; got {name!r}")
        return self.datasets[names.index(name) if name else 0]


@dataclasses.dataclass(frozen=True)
class Validation:
    """Figures of a validation."""

    step: int  # updates made when it ran
    figures: Mapping[str, float]  # the `val/…` columns of the metrics
    operating_point: OperatingPoint | None  # what it chose; None without an EOS head

    @property
    def score(self) -> tuple[str, float]:
        """What the best checkpoint is chosen by, and its value, higher is better: frame average precision, or minus the action loss."""
        name = "val/frame/average_precision"
        return (name, self.figures[name]) if name in self.figures else ("-val/action_loss", -self.figures["val/action_loss"])


@dataclasses.dataclass(frozen=True, eq=False)
class CheckpointRecord:
    """What is known of a checkpoint."""

    run: RunRecord
    step: int  # updates made
    validation: Validation | None  # the last one, at this step or an earlier one; None before the first
    operating_point: OperatingPoint | None  # of that validation; before the first what is exact alone; None without an EOS head
    fingerprints: Mapping[str, int]  # of the arrays of the training state, by path

    @property
    def score(self) -> float | None:
        """The score of a checkpoint that was validated as it is, higher is better; None of others."""
        return self.validation.score[1] if self.validation and self.validation.step == self.step else None

    @property
    def fingerprint(self) -> str:
        """Tells this checkpoint from every other: the fingerprints of its weights are in the record."""
        return fingerprint(json.dumps(self.to_json(), sort_keys=True).encode())

    def describe_point(self) -> str:
        """Where the operating point comes from, in words; `UserError` without an EOS head."""
        if self.operating_point is None:
            raise UserError("the run has no EOS head, it was trained with --use_eos_classification False")
        text = self.operating_point.sentence()
        if self.validation and self.validation.step != self.step:
            text += f"; chosen at step {self.validation.step}, not at this checkpoint's step {self.step}"
        return text

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, with the version and a checksum of all of it."""
        content = {"version": VERSION, **_plain(self)}
        return {**content, "sha256": _checksum(content)}

    @classmethod
    def from_json(cls, content: Any) -> CheckpointRecord:
        """What `to_json` made.

        Raises:
          RecordVersionError: of another version.
          RecordError: damaged.
        """
        if not isinstance(content, dict) or content.get("version") != VERSION:
            found = content.get("version", "none") if isinstance(content, dict) else "none"
            raise RecordVersionError(f"written by another version of eosjax: expected a record of version {VERSION}, got {found}")
        content = dict(content)
        expected, got = content.pop("sha256", None), _checksum(content)
        if got != expected:
            raise RecordError(f"damaged: the record is not what was saved: expected SHA-256 {expected}, got {got}")
        del content["version"]
        return _typed(cls, content, "record")


def _checksum(content: Mapping[str, Any]) -> str:
    return fingerprint(json.dumps(content, sort_keys=True).encode())


def fingerprint(*parts: bytes) -> str:
    """SHA-256 of some bytes, in hex; each part counts with its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


# --- dataclasses to plain values and back

# Types with a form of their own: to plain values and back.
_FORMS: dict[Any, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    DatasetStats: (lambda value: stats_to_json({"": value})[""], stats_from_json),
    Path: (str, Path),
}


def _plain(value: Any) -> Any:
    """JSON values of dataclasses, mappings, sequences and paths."""
    for kind, (write, _) in _FORMS.items():
        if isinstance(value, kind):
            return write(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return value


def _typed(kind: Any, value: Any, where: str) -> Any:
    """The value that `_plain` wrote, as the type that is annotated. Raises `RecordError` for fields that are missing or unknown."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _FORMS:
        return _FORMS[kind][1](value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = {field.name for field in dataclasses.fields(kind)}
        if not isinstance(value, dict) or value.keys() != names:
            got = sorted(value.keys() ^ names) if isinstance(value, dict) else repr(value)
            raise RecordError(f"{where}: expected the fields of {typing.cast(type, kind).__name__}; missing or unknown: {got}")
        return typing.cast(Any, kind)(**{name: _typed(hints[name], each, f"{where}.{name}") for name, each in value.items()})
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _typed(next(each for each in arguments if each is not type(None)), value, where)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_typed(each, item, f"{where}[{i}]") for i, (each, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is Literal or origin is not None:  # of plain values, such as Mapping[str, float]
        return value
    return float(value) if kind is float else value


# --- differences

# What a resumed run may change, by path in the record; a path stands for all below it. docs/training.md explains the list.
MAY_CHANGE = {
    "config": (
        "max_steps val_freq save_freq keep_checkpoints log_freq loader_threads num_devices batch_size resume "
        "vla_path vla_revision data_root_dir dataset_specs substep_labels_path substep_labels_format cache_dir "
        "run_root_dir run_id_note run_id_override use_tensorboard use_wandb wandb_project wandb_entity attention layers remat "
        "compile_cache_dir coordinator_address num_processes process_id start_timeout shard_frozen"
    ).split(),
    "software": ["eosjax", "jax", "platform", "device_kind", "num_devices"],
    "base_revision": [],
    "wandb_id": [],
}


# What a path in the record speaks of, and the flag that it comes from, for those whose values are fingerprints; and the code.
_MEANINGS = {
    "datasets.*.frames": "images, states, actions and texts below --data_root_dir",
    "datasets.*.labels": "instructions and ends of the frames, from --substep_labels_path",
    "tokenizer": "tokenizer.json below --vla_path",
    "base": "frozen base weights below --vla_path",
    "code": "source files of eosjax",
}


# Flags that each process of a run has for itself.
_OF_A_PROCESS = {
    f"config.{name}"
    for name in (
        "coordinator_address process_id start_timeout cache_dir compile_cache_dir loader_threads "
        "data_root_dir dataset_specs substep_labels_path vla_path"
    ).split()
}


def facts(record: RunRecord | Mapping[str, Any]) -> dict[str, Any]:
    """What every process of a run must have in common, by path in the record; also of a part of one, by its name."""
    return {path: value for path, value in _leaves(_plain(record)).items() if path not in _OF_A_PROCESS}


def meaning(path: str) -> str:
    """What a fingerprint is of, in brackets behind a space; nothing for other paths."""
    group = _group(path)
    return next((f" ({text})" for pattern, text in _MEANINGS.items() if fnmatch.fnmatchcase(group, pattern)), "")


class Difference(typing.NamedTuple):
    """One thing that is not as it was."""

    what: str  # path in the record, such as datasets.libero_goal.spec.chunk
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.what} is {_short(self.now)}, was {_short(self.then)}{meaning(self.what)}"


def differences(then: object, now: object) -> list[Difference]:
    """All that differs between two records of runs (or two parts of them), in order, but for `MAY_CHANGE`.

    Args:
      then, now: `RunRecord`s, or any two values of one type that a record is made of.
    """
    before, after = _leaves(_plain(then)), _leaves(_plain(now))
    paths = [path for path in {**before, **after} if before.get(path, _Missing) != after.get(path, _Missing)]
    return [Difference(path, before.get(path, _Missing), after.get(path, _Missing)) for path in paths if not _may_change(path)]


def describe_differences(found: list[Difference], most: int = 12) -> str:
    """Differences in words, one a line; of the many numbers of one group, such as the statistics of a field, the first alone."""
    lines: dict[str, str] = {}
    counts: dict[str, int] = {}
    for each in found:
        group = _group(each.what)
        lines.setdefault(group, str(each))
        counts[group] = counts.get(group, 0) + 1
    more = {group: f" (and {count - 1} more of {group})" if count > 1 else "" for group, count in counts.items()}
    shown = [f"  {line}{more[group]}" for group, line in lines.items()]
    return "\n".join([*shown[:most], *([f"  and {len(shown) - most} more"] if len(shown) > most else [])])


class _Missing:
    """Stands for what only one of two records has."""


def _short(value: Any) -> str:
    return "not there" if value is _Missing else f"{value!s:.80}"


def _group(path: str) -> str:
    parts = path.split(".")
    if parts[0] == "base":
        return "base"
    if parts[0] == "datasets" and parts[2:3] in (["statistics"], ["held_out"]):
        return ".".join(parts[: 4 if parts[2] == "statistics" else 3])
    return path


def _may_change(path: str) -> bool:
    first, _, rest = path.partition(".")
    return first in MAY_CHANGE and (not MAY_CHANGE[first] or rest in MAY_CHANGE[first])


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The values of a tree of JSON, by path; entries of a list that have a name go by it."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value:
        items = [(each["name"] if isinstance(each, dict) and "name" in each else str(i), each) for i, each in enumerate(value)]
    else:
        return {path: value}
    leaves: dict[str, Any] = {}
    for key, each in items:
        leaves |= _leaves(each, f"{path}.{key}" if path else str(key))
    return leaves or {path: value}
