"""Writes recorded episodes as a TFDS/RLDS dataset in the layout of the LIBERO datasets, with a label file that lists every step.

The one module that writes datasets; it loads TensorFlow, so a process of its own calls it (`eosjax.data.process`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

LABELS_FILE = "substep_labels.json"
VERSION = "1.0.0"
_SHARDS = 4  # more than one, as in real datasets: the reading order of the episodes then differs from the writing order


class Recorded(NamedTuple):
    """One episode of T steps; observations belong to the moment before the action of the same step."""

    file_path: str  # names the episode; no two may have the same
    task: str
    images: Sequence[bytes]  # [T] JPEG, third person
    wrist_images: Sequence[bytes]  # [T] JPEG
    state: np.ndarray  # f32 [T 8]
    joints: np.ndarray  # f32 [T 7]
    action: np.ndarray  # f32 [T 7], gripper -1 open, +1 close
    reward: np.ndarray  # f32 [T]
    plan: Sequence[str]  # instructions of the sub-steps, in order
    verbs: Sequence[str]  # the coarse verb of each
    substep: np.ndarray  # i [T], place in the plan; the step of an end still belongs to its sub-step
    end: np.ndarray  # bool [T]


def write_dataset(folder: Path, name: str, module: str, size: int, count: int, episodes: Iterable[Recorded]) -> None:
    """Writes the dataset `name` and its label file into `folder`, which must not have them.

    Args:
      folder: a new `name`/1.0.0 and `substep_labels.json` appear in it.
      name: of the dataset.
      module: that the metadata name as the maker.
      size: height and width of the pictures.
      count: of the episodes.
      episodes: one after the other.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    target = folder / name / VERSION
    target.mkdir(parents=True)
    identity = DatasetIdentity(name=name, version=tfds.core.Version(VERSION), data_dir=str(target), module_name=module)
    info = tfds.core.DatasetInfo(builder=identity, features=_features(tfds, size))
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=-(-count // _SHARDS))
    writer.initialize_splits(["train"])
    bodies = {}
    for episode in episodes:
        writer.add_examples({"train": [_example(episode)]})
        bodies[episode.file_path] = _label_body(episode)
    writer.close_all()
    labels: dict[str, dict[str, Any]] = {}
    for number, file_path in enumerate(_read_order(tfds, target)):
        body = bodies[file_path]
        labels.setdefault(body["instruction"].replace(" ", "_"), {})[f"episode_{number}"] = body
    (folder / LABELS_FILE).write_text(json.dumps({name: labels}), encoding="utf-8")


def jpeg(picture: np.ndarray) -> bytes:
    """A picture u8 [h w 3] as a file of high quality."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _features(tfds: Any, size: int) -> Any:
    """The features of the LIBERO datasets."""
    image = tfds.features.Image(shape=(size, size, 3), dtype=np.uint8, encoding_format="jpeg")
    steps = {
        "observation": {
            "image": image,
            "wrist_image": image,
            "state": tfds.features.Tensor(shape=(8,), dtype=np.float32),
            "joint_state": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        },
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "language_instruction": tfds.features.Text(),
        "is_first": tfds.features.Scalar(dtype=np.bool_),
        "is_last": tfds.features.Scalar(dtype=np.bool_),
        "is_terminal": tfds.features.Scalar(dtype=np.bool_),
        "discount": tfds.features.Scalar(dtype=np.float32),
        "reward": tfds.features.Scalar(dtype=np.float32),
    }
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps), "episode_metadata": {"file_path": tfds.features.Text()}})


def _example(episode: Recorded) -> dict[str, Any]:
    """One episode as RLDS wants it."""
    last = len(episode.action) - 1
    steps = [
        {
            "observation": {
                "image": io.BytesIO(episode.images[t]),
                "wrist_image": io.BytesIO(episode.wrist_images[t]),
                "state": episode.state[t],
                "joint_state": episode.joints[t],
            },
            "action": episode.action[t],
            "language_instruction": episode.task,
            "is_first": t == 0,
            "is_last": t == last,
            "is_terminal": t == last,
            "discount": 1.0,
            "reward": float(episode.reward[t]),
        }
        for t in range(last + 1)
    ]
    return {"steps": steps, "episode_metadata": {"file_path": episode.file_path}}


def _label_body(episode: Recorded) -> dict[str, Any]:
    """The entry of one episode in the label file; every step is listed."""
    return {
        "instruction": episode.task,
        "total_timesteps": len(episode.end),
        "timestep_labels": [
            {"timestep": t, "action": episode.verbs[at], "APD_step": episode.plan[at], "cycle": 0, "is_substep_end": bool(end)}
            for t, (at, end) in enumerate(zip(episode.substep.tolist(), episode.end, strict=True))
        ],
    }


def _read_order(tfds: Any, folder: Path) -> Sequence[str]:
    """The `file_path` of every episode in TFDS's reading order, which interleaves the shards; read back from the dataset."""
    only_metadata = tfds.decode.PartialDecoding({"episode_metadata": {"file_path": True}})
    dataset = tfds.builder_from_directory(str(folder)).as_dataset(
        split="train", shuffle_files=False, decoders=only_metadata, read_config=tfds.ReadConfig(try_autocache=False)
    )
    return [episode["episode_metadata"]["file_path"].numpy().decode() for episode in dataset]
