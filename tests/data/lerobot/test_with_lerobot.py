"""What LeRobot's own writer writes and its own reader reads. Needs Python with the extra `lerobot`, best in an environment of its own:

python -m venv NAME && NAME/bin/pip install lerobot && LEROBOT_PYTHON=NAME/bin/python pytest tests/data/lerobot
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosjax.data.labels import Segment, export_lerobot, make_table
from eosjax.data.lerobot.video import Video
from eosjax.data.sources import describe, find_source
from tests.data.lerobot.builders import FPS, FRONT, HEIGHT, LENGTHS, TASKS, WIDTH, WRIST, make_lerobot, picture

PYTHON = os.environ.get("LEROBOT_PYTHON") or (sys.executable if importlib.util.find_spec("lerobot") else None)
IO = Path(__file__).parents[3] / "benchmarks/lerobot_io.py"

pytestmark = pytest.mark.skipif(PYTHON is None, reason="needs lerobot (LEROBOT_PYTHON names the Python of its environment)")


def lerobot(*arguments):
    # Offline: what is not in the folder is not looked for on the hub.
    assert PYTHON is not None
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    child = subprocess.run([PYTHON, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


def read_by_lerobot(folder, tmp_path):
    lerobot(IO, "read", folder, tmp_path / "read.npz")
    with np.load(tmp_path / "read.npz") as columns:
        return {key: columns[key] for key in columns.files}


def frames_of(folder):
    """Every frame as we read it: (episode, step, action, state, task, images)."""
    spec = describe(folder.parent, folder.name)
    for episode in find_source(folder.parent, folder.name).read_episodes(spec):
        for step, images in enumerate(zip(*episode.images, strict=True)):
            yield episode.index, step, episode.actions[step], episode.proprio[step], episode.task, images


@pytest.fixture
def written(tmp_path):
    """A function codec -> the folder of a dataset that LeRobot's own writer wrote."""
    (tmp_path / "episodes").mkdir()
    random = np.random.default_rng(0)
    for episode, length in enumerate(LENGTHS):
        pictures = {key: np.stack([picture(episode, step, view) for step in range(length)]) for view, key in enumerate((FRONT, WRIST))}
        numbers = {key: random.uniform(0, 100, (length, 6)).astype(np.float32) for key in ("observation.state", "action")}
        np.savez(tmp_path / f"episodes/{episode}.npz", task=TASKS[episode % 2], **pictures, **numbers)

    def write(codec):
        coded = ["--codec", codec] if codec else []
        lerobot(IO, "write", tmp_path / "episodes", tmp_path / "made", "--fps", FPS, "--robot_type", "so101_follower", *coded)
        return tmp_path / "made"

    return write


@pytest.mark.parametrize("codec", [None, "libsvtav1"], ids=["images", "video"])
def test_we_read_what_its_own_reader_reads(written, tmp_path, codec):
    folder = written(codec)
    theirs = read_by_lerobot(folder, tmp_path)
    ours = list(frames_of(folder))
    assert len(ours) == len(theirs["index"]) == sum(LENGTHS)
    for row, (episode, step, action, state, task, images) in enumerate(ours):
        assert (episode, step, task) == (theirs["episode_index"][row], theirs["frame_index"][row], theirs["task"][row])
        np.testing.assert_array_equal(state, theirs["observation.state"][row])
        np.testing.assert_array_equal(action, np.append(theirs["action"][row][:-1], theirs["action"][row][-1] / np.float32(100)))
        for camera, data in zip((FRONT, WRIST), images, strict=True):
            expected = np.rint(theirs[camera][row].transpose(1, 2, 0) * 255)
            difference = np.abs(np.asarray(Image.open(io.BytesIO(data)), np.int32) - expected)
            assert difference.max() == 0 if codec is None else difference.mean() < 1.5
    if codec is not None:  # before the store makes a JPEG of it, the decoded picture is the same bit for bit
        video = Video(folder / f"videos/{FRONT}/chunk-000/file-000.mp4")
        frames = video.pictures(0.0, sum(LENGTHS), FPS, (HEIGHT, WIDTH), "all")
        found = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        np.testing.assert_array_equal(found, np.rint(theirs[FRONT].transpose(0, 2, 3, 1) * 255))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_version_2_is_what_its_own_converter_makes_version_3_of(tmp_path, kind):
    folder = make_lerobot(tmp_path / "made", legacy=True, kind=kind)
    ours = list(frames_of(folder))
    stats = {key: {"min": [0.0], "max": [1.0], "mean": [0.0], "std": [1.0], "count": [1]} for key in ("action", "observation.state")}
    lines = [json.dumps({"episode_index": episode, "stats": stats}) + "\n" for episode in range(len(LENGTHS))]
    (folder / "meta/episodes_stats.jsonl").write_text("".join(lines))
    lerobot("-m", "lerobot.datasets.v30.convert_dataset_v21_to_v30", "--repo-id=made", f"--root={tmp_path}", "--push-to-hub=false")
    converted = list(frames_of(folder))
    assert json.loads((folder / "meta/info.json").read_text())["codebase_version"] == "v3.0"
    for one, other in zip(ours, converted, strict=True):
        assert one[:2] + one[4:] == other[:2] + other[4:]
        np.testing.assert_array_equal(np.concatenate(one[2:4]), np.concatenate(other[2:4]))


def test_its_own_reader_reads_the_labels_that_we_write(written, tmp_path):
    folder = written(None)
    parts = {episode: [Segment(0, 1, True, "reach"), Segment(2, length - 1, True, "lift")] for episode, length in enumerate(LENGTHS)}
    table = make_table(parts, "made", dict(enumerate(LENGTHS)), {episode: TASKS[episode % 2] for episode in parts})
    export_lerobot(table, folder, tmp_path / "copy")
    theirs = read_by_lerobot(tmp_path / "copy", tmp_path)
    assert theirs["subtask"].tolist() == ["reach" if step < 2 else "lift" for length in LENGTHS for step in range(length)]
    assert [task for *_, task, _ in frames_of(tmp_path / "copy")] == theirs["task"].tolist()
