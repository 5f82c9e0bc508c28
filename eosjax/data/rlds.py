"""Episodes of a TFDS/RLDS dataset in its own order. The only module that imports TensorFlow, and only to read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eosjax.data.specs import DatasetSpec
from eosjax.types import UserError

SPLIT = "train"


class DatasetError(UserError):
    """A dataset that is missing, has another layout than its description, or holds values that cannot be trained on."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode of T steps. Its place in the dataset is its identity: `file_path` names the task, not the episode."""

    index: int
    images: tuple[list[bytes], ...]  # per camera of the spec: T encoded images
    actions: np.ndarray  # f32 [T a], gripper 1 = open
    proprio: np.ndarray  # f32 [T p]
    task: str  # the task instruction
    file_path: str

    def __len__(self) -> int:
        return len(self.actions)


def dataset_dir(data_root: str | Path, name: str) -> Path:
    """The folder with the newest version of dataset `name` under `data_root` (`<data_root>/<name>/<version>`).

    Raises:
        DatasetError: there is no such folder; the message lists the datasets that are there.
    """
    root = Path(data_root).expanduser()
    versions = sorted((root / name).glob("*/dataset_info.json"), key=lambda info: _version_key(info.parent.name))
    if versions:
        return versions[-1].parent
    found = sorted({info.parent.parent.name for info in root.glob("*/*/dataset_info.json")})
    raise DatasetError(
        f"data_root_dir: no dataset {name!r} in {root}: expected {root / name}/<version>/dataset_info.json; "
        + (f"datasets found there: {', '.join(found)}" if found else "no dataset found there")
    )


def read_episodes(data_root: str | Path, name: str, spec: DatasetSpec) -> Iterator[Episode]:
    """Episodes of the `train` split in the order of `builder.as_dataset(split="train", shuffle_files=False)`.

    That order defines the episode numbers of label files. Images stay encoded, one episode is in memory at a time.

    Raises:
        DatasetError: missing dataset or feature, wrong shape, NaN or infinity, unreadable shard; names the episode and
            the step.
    """
    folder = dataset_dir(data_root, name)
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    _check_features(folder, builder.info.features, spec)
    skip = {key: tfds.decode.SkipDecoding() for key in spec.image_keys}
    options: dict[str, Any] = {
        "split": SPLIT,
        "shuffle_files": False,
        "decoders": {"steps": {"observation": skip}},
        # TFDS keeps small datasets in memory unless told otherwise; each episode is read once here.
        "read_config": tfds.ReadConfig(try_autocache=False),
    }
    dataset: Any = builder.as_dataset(**options)
    num_read = 0
    try:
        for columns in dataset.map(lambda episode: _columns(episode, spec)):
            yield _episode(num_read, {key: value.numpy() for key, value in columns.items()}, spec, folder)
            num_read += 1
    except tf.errors.OpError as error:
        raise DatasetError(f"{folder}: episode {num_read}: unreadable (is a shard truncated?): {error.message}") from error


def num_episodes(data_root: str | Path, name: str) -> int:
    """Number of episodes that the dataset's `dataset_info.json` announces for the `train` split."""
    folder = dataset_dir(data_root, name)
    splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
    return sum(int(length) for split in splits if split["name"] == SPLIT for length in split["shardLengths"])


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))


def _check_features(folder: Path, features: Any, spec: DatasetSpec) -> None:
    """Every feature of `spec` exists in the dataset."""

    def require(wanted: tuple[str, ...], level: Any, where: str) -> None:
        found = sorted(level.keys()) if hasattr(level, "keys") else []
        missing = [key for key in wanted if key not in found]
        if missing:
            raise DatasetError(f"{folder}: expected feature(s) {', '.join(missing)} in {where}; found: {', '.join(found) or 'none'}")

    require(("steps",), features, "the episode")
    require(("observation", spec.action_key, spec.instruction_key), features["steps"], "steps")
    require((*spec.image_keys, spec.state_key), features["steps"]["observation"], "steps/observation")


def _columns(episode: Any, spec: DatasetSpec) -> dict[str, Any]:
    """Graph code: the features of `spec` with the steps stacked."""
    longest_episode = 1 << 24  # only a bound: the batch takes the episode's length
    steps = episode["steps"].batch(longest_episode).get_single_element()
    observation = steps["observation"]
    columns = {f"image/{key}": observation[key] for key in spec.image_keys}
    columns |= {"proprio": observation[spec.state_key], "actions": steps[spec.action_key]}
    columns["tasks"] = steps[spec.instruction_key]
    columns["file_path"] = episode.get("episode_metadata", {}).get("file_path", "")
    return columns


def _episode(index: int, columns: dict[str, Any], spec: DatasetSpec, folder: Path) -> Episode:
    sizes = {"actions": spec.action_size, "proprio": spec.proprio_size}
    for field, size in sizes.items():
        values = columns[field]
        if values.ndim != 2 or values.shape[1] != size:
            raise DatasetError(f"{folder}: episode {index}: {field}: expected shape [T, {size}], got {list(values.shape)}")
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            raise DatasetError(
                f"{folder}: episode {index}, step {bad[0]}: {field} has NaN or infinity: {values[bad[0]].tolist()} "
                f"({bad.size} such steps in the episode)"
            )
    tasks = set(columns["tasks"].tolist())
    if len(tasks) != 1:
        raise DatasetError(f"{folder}: episode {index}: expected one task instruction, got {sorted(tasks)}")
    return Episode(
        index=index,
        images=tuple(columns[f"image/{key}"].tolist() for key in spec.image_keys),
        actions=spec.standard_actions(columns["actions"]),
        proprio=columns["proprio"].astype(np.float32),
        task=tasks.pop().decode("utf-8"),
        file_path=columns["file_path"].decode("utf-8"),
    )
