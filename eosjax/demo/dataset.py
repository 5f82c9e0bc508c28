"""The built-in demo dataset: simulated pick-and-place demonstrations in the LIBERO layout, written on first use.

On disk it is an ordinary TFDS/RLDS dataset of TFRecord shards with a label file, so that it is read like real data. A
separate process writes it, because only that process loads TensorFlow.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from eosjax.data.process import exit_with, run_module
from eosjax.demo.render import SIZE, render
from eosjax.demo.simulator import SUBSTEP_ACTIONS, Rollout, instruction, simulate, substep_instructions

DATASET_NAME = "eosjax_demo"
EPISODES = 240
_VERSION = "1.0.0"  # raise it when the simulation changes, so that old files are not taken for new ones
_SHARDS = 4  # more than one, as in real datasets: the reading order of the episodes then differs from the writing order
_LABELS = "substep_labels.json"


class DemoPaths(NamedTuple):
    """Location of the demo dataset; the fields are values of the data flags with the same names."""

    data_root: Path
    dataset_name: str
    labels: Path


class DemoEpisode(NamedTuple):
    """One demonstration of T steps with its images."""

    rollout: Rollout
    image: np.ndarray  # u8 [T 64 64 3], third person
    wrist_image: np.ndarray  # u8 [T 64 64 3]


def demo_episode(index: int, seed: int = 0) -> DemoEpisode:
    """Episode `index` of the demo with this seed; the same arguments give the same arrays."""
    rng = np.random.default_rng((seed, index))
    rollout = simulate(rng)
    return DemoEpisode(rollout, *render(rollout, rng))


def ensure_demo(root: Path, episodes: int = EPISODES, seed: int = 0) -> DemoPaths:
    """The demo dataset of `episodes` demonstrations under `root`, generated if it is not there yet (under a minute).

    Every (version, episodes, seed) has its own folder, which appears complete or not at all: it is written under another name
    and renamed. If two processes generate at the same time, the later one uses the result of the earlier one.

    Returns:
        The folder to pass as `data_root_dir`, the dataset's name, and the label file (format 1, every step listed).

    Raises:
        ValueError: `episodes` is not positive or `seed` is negative.
        FileExistsError: the path of the dataset is taken by something else, which is not changed.
    """
    if episodes < 1 or seed < 0:
        raise ValueError(f"demo: expected episodes >= 1 and seed >= 0, got episodes={episodes}, seed={seed}")
    home = Path(root).expanduser() / f"demo-{_VERSION}-{episodes}-episodes-seed-{seed}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
        try:
            run_module("eosjax.demo.dataset", scratch / "data", str(episodes), str(seed))
            _publish(scratch / "data", home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    expected = (_LABELS, f"{DATASET_NAME}/{_VERSION}/dataset_info.json")
    missing = [file for file in expected if not (home / file).is_file()]
    if missing:
        raise FileExistsError(f"demo: {home} exists but is no demo dataset: expected {', '.join(missing)} in it; move it away")
    return DemoPaths(home, DATASET_NAME, home / _LABELS)


def _publish(source: Path, home: Path) -> None:
    """Renames `source` to `home` unless another process has put its own there first."""
    try:
        os.replace(source, home)
    except OSError:
        if not home.exists():
            raise


def _write(folder: Path, episodes: int, seed: int) -> None:
    """Writes dataset and labels into the new folder `folder`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    target = folder / DATASET_NAME / _VERSION
    target.mkdir(parents=True)
    identity = DatasetIdentity(
        name=DATASET_NAME, version=tfds.core.Version(_VERSION), data_dir=str(target), module_name="eosjax.demo.dataset"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=_features(tfds))
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=-(-episodes // _SHARDS))
    writer.initialize_splits(["train"])
    bodies = {}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        records = pool.map(_record, range(episodes), repeat(seed))
        for example, body in tqdm(records, "generating the demo", episodes, unit="episode", disable=not sys.stderr.isatty()):
            writer.add_examples({"train": [example]})
            bodies[example["episode_metadata"]["file_path"]] = body
    writer.close_all()
    labels: dict[str, dict[str, Any]] = {}
    for number, file_path in enumerate(_read_order(tfds, target)):
        body = bodies[file_path]
        labels.setdefault(body["instruction"].replace(" ", "_"), {})[f"episode_{number}"] = body
    (folder / _LABELS).write_text(json.dumps({DATASET_NAME: labels}), encoding="utf-8")


def _record(index: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Episode `index` as RLDS wants it, and its entry in the label file."""
    episode = demo_episode(index, seed)
    return _example(episode, f"{DATASET_NAME}/{index:05d}.hdf5"), _label_body(episode.rollout)


def _features(tfds: Any) -> Any:
    """The features of the LIBERO datasets."""
    image = tfds.features.Image(shape=(SIZE, SIZE, 3), dtype=np.uint8, encoding_format="jpeg")
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


def _example(episode: DemoEpisode, file_path: str) -> dict[str, Any]:
    """One episode as RLDS wants it; reward and termination at the last step, as in LIBERO."""
    rollout = episode.rollout
    fingers = 0.5 * rollout.opening[:, None] * np.array([1.0, -1.0], np.float32)
    state = np.concatenate([rollout.hand, rollout.rotation, fingers], axis=1)
    joints = state[:, :7]  # there is no arm: pose and one finger replace its joints
    task = instruction(rollout.scene)
    last = len(state) - 1
    steps = [
        {
            "observation": {
                "image": _jpeg(episode.image[t]),
                "wrist_image": _jpeg(episode.wrist_image[t]),
                "state": state[t],
                "joint_state": joints[t],
            },
            "action": rollout.action[t],
            "language_instruction": task,
            "is_first": t == 0,
            "is_last": t == last,
            "is_terminal": t == last,
            "discount": 1.0,
            "reward": float(t == last),
        }
        for t in range(len(state))
    ]
    return {"steps": steps, "episode_metadata": {"file_path": file_path}}


def _jpeg(picture: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0)
    file.seek(0)
    return file


def _label_body(rollout: Rollout) -> dict[str, Any]:
    """The entry of one episode in the label file; every step is listed."""
    names = substep_instructions(rollout.scene)
    return {
        "instruction": instruction(rollout.scene),
        "total_timesteps": len(rollout.end),
        "timestep_labels": [
            {
                "timestep": t,
                "action": SUBSTEP_ACTIONS[substep],
                "APD_step": names[substep],
                "cycle": 0,
                "is_substep_end": bool(end),
            }
            for t, (substep, end) in enumerate(zip(rollout.substep, rollout.end, strict=True))
        ],
    }


def _read_order(tfds: Any, folder: Path) -> Sequence[str]:
    """The `file_path` of every episode in TFDS's reading order, which interleaves the shards; read back from the dataset."""
    only_metadata = tfds.decode.PartialDecoding({"episode_metadata": {"file_path": True}})
    dataset = tfds.builder_from_directory(str(folder)).as_dataset(
        split="train", shuffle_files=False, decoders=only_metadata, read_config=tfds.ReadConfig(try_autocache=False)
    )
    return [episode["episode_metadata"]["file_path"].numpy().decode() for episode in dataset]


if __name__ == "__main__":
    exit_with(lambda: _write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
