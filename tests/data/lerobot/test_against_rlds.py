"""The same episodes as an RLDS and as a LeRobot dataset are trained on as the same batches."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from eosjax.data.frames.store import open_store
from eosjax.data.labels import import_labels, join_labels
from eosjax.data.lerobot import info
from eosjax.data.rlds.episodes import read_episodes
from eosjax.data.rlds.info import dataset_dir
from eosjax.data.samples.loader import TrainLoader
from eosjax.data.samples.mixture import LabelledDataset, Mixture, check_conventions, stats_of
from eosjax.data.samples.source import SampleSource
from eosjax.data.samples.tokens import demo_tokenizer
from eosjax.data.sources import describe
from eosjax.data.specs import DatasetSpec
from tests.data.lerobot.builders import write_json, write_parquet

CAMERAS = ("observation.images.image", "observation.images.image2")


def copy_as_lerobot(episodes, folder, shape, fps=20):
    """A LeRobot 3.0 dataset, images and numbers as they are stored in RLDS, in LIBERO's layout."""
    features = {camera: {"dtype": "image", "shape": [*shape, 3], "names": None} for camera in CAMERAS}
    features |= {"observation.state": {"dtype": "float32", "shape": [8]}, "action": {"dtype": "float32", "shape": [7]}}
    tasks, lengths = {}, []
    for episode in episodes:
        steps = np.arange(len(episode))
        columns = {
            "episode_index": steps * 0 + episode.index,
            "frame_index": steps,
            "timestamp": (steps / fps).astype(np.float32),
            "task_index": steps * 0 + tasks.setdefault(episode.task, len(tasks)),
            "observation.state": list(episode.proprio),
            "action": list(episode.actions),
        }
        for camera, images in zip(CAMERAS, episode.images, strict=True):
            columns[camera] = pa.array([{"bytes": data, "path": None} for data in images])
        write_parquet(folder / info.DATA_PATH.format(chunk_index=0, file_index=episode.index), columns)
        lengths.append(len(episode))
    numbers = list(range(len(lengths)))
    meta = {"episode_index": numbers, "length": lengths, "data/chunk_index": [0] * len(lengths), "data/file_index": numbers}
    write_parquet(folder / "meta/episodes/chunk-000/file-000.parquet", meta)
    write_parquet(folder / "meta/tasks.parquet", {"task_index": list(tasks.values()), "task": list(tasks)})
    totals = {"total_episodes": len(lengths), "total_frames": sum(lengths)}
    content = {"codebase_version": "v3.0", "fps": fps, "robot_type": "panda", "features": features}
    write_json(folder / info.INFO, content | totals)
    return folder


def test_the_libero_sample_as_a_lerobot_dataset(tmp_path):
    data, name = Path(__file__).resolve().parents[4] / "shared" / "data", "libero_goal_no_noops"
    if not data.is_dir():
        pytest.skip(f"LIBERO sample not found: {data}")
    stored = read_episodes(dataset_dir(data, name), DatasetSpec(gripper="as_stored"))
    copy_as_lerobot(itertools.islice(stored, 36), tmp_path / "data/copied", (128, 128))
    labels = import_labels(data / "substep_labels_output.json", name)
    members = []
    for root, each in ((data, name), (tmp_path / "data", "copied")):
        spec = describe(root, each)
        store = open_store(root, each, spec, tmp_path / "cache")
        members.append(LabelledDataset(store, spec, join_labels(labels, store), stats_of(store, spec)))
    original, copied = members
    assert original.store.fingerprint == copied.store.fingerprint
    check_conventions(members)
    sources = [
        SampleSource(Mixture([each]), demo_tokenizer(), np.arange(36), image_size=32, num_images=2, use_proprio=True, image_aug=True)
        for each in members
    ]
    for batches in zip(*(itertools.islice(TrainLoader(source, 8, 7), 3) for source in sources), strict=True):
        for one, other in zip(*batches, strict=True):
            np.testing.assert_array_equal(one, other)
    both = Mixture([original, copied])  # and the two formats mix
    assert (both.num_episodes, both.num_frames) == (72, 2 * 6149)
    assert both.images(10) == both.images(10 + 6149)
