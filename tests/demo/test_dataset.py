"""The demo dataset: its ends are rare, tell no clock, and are numbered as TFDS reads them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eosjax.demo import dataset, table
from eosjax.demo.expert import Style
from eosjax.demo.recordings import Recording, pictures, record
from eosjax.demo.render import SIZE
from eosjax.demo.scene import instruction, substep_instructions
from eosjax.demo.table import State

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture
def in_process(monkeypatch):
    """Writes datasets in this process, where the simulation can be replaced."""
    write = lambda module, folder, episodes, seed: dataset._write(folder, int(episodes), int(seed))
    monkeypatch.setattr(dataset, "run_module", write)
    monkeypatch.setattr(dataset, "ProcessPoolExecutor", lambda mp_context: ThreadPoolExecutor())


def demonstrations(seed: int, count: int) -> list[Recording]:
    return [dataset.demonstration(index, seed) for index in range(count)]


def test_ends_are_rare():
    ends = np.concatenate([recording.end for recording in demonstrations(0, 60)])
    assert 0.01 < ends.mean() < 0.055


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Sum over the distinct scores, falling, of precision x gain in recall."""
    levels, level = np.unique(-scores, return_inverse=True)
    positives = np.cumsum(np.bincount(level, labels, len(levels)))
    rows = np.cumsum(np.bincount(level, minlength=len(levels)))
    return float(np.sum(positives / rows * np.diff(positives, prepend=0.0)) / labels.sum())


def steps_since(event: np.ndarray) -> np.ndarray:
    """Steps since `event` [T] last held, counting from the start before the first."""
    steps = np.arange(len(event))
    return steps - np.maximum.accumulate(np.where(event, steps, 0))


def clock(recording: Recording) -> np.ndarray:
    return steps_since(np.diff(recording.substep, prepend=0) > 0)


def gripper_clock(recording: Recording) -> np.ndarray:
    return steps_since(np.diff(recording.action[:, 6], prepend=-1.0) != 0)


@pytest.mark.parametrize("rule", [clock, gripper_clock])
def test_a_clock_does_not_tell_the_ends(rule):
    """The hazard of an end by substep and clock, fitted on other episodes, finds few of them."""
    seen, ends = np.zeros((5, 500)), np.zeros((5, 500))
    for each in demonstrations(2, 150):
        np.add.at(seen, (each.substep, rule(each)), 1)
        np.add.at(ends, (each.substep, rule(each)), each.end)
    hazard = (ends + 0.01) / (seen + 0.3)
    unseen = demonstrations(3, 60)
    scores = np.concatenate([hazard[each.substep, rule(each)] for each in unseen])
    assert average_precision(np.concatenate([each.end for each in unseen]), scores) < 0.3


def test_episodes_are_deterministic():
    first, again, other, reseeded = (dataset.demonstration(*key) for key in ((3, 1), (3, 1), (4, 1), (3, 2)))
    assert first.action.tobytes() == again.action.tobytes()
    assert first.action.tobytes() != other.action.tobytes()
    assert first.action.tobytes() != reseeded.action.tobytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dataset.DemoPaths:
    return dataset.ensure_demo(tmp_path_factory.mktemp("small"), episodes=3, seed=5)


def read(paths: dataset.DemoPaths) -> list[tuple[int, dict]]:
    """(index at generation, stacked steps) of every episode in TFDS order."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder(paths.dataset_name, data_dir=paths.data_root)
    dataset = builder.as_dataset(split="train", shuffle_files=False)
    episodes = []
    for episode in tfds.as_numpy(dataset):
        index = int(Path(episode["episode_metadata"]["file_path"].decode()).stem)
        rows = list(episode["steps"])
        steps = {key: np.stack([row[key] for row in rows]) for key in rows[0] if key != "observation"}
        steps |= {key: np.stack([row["observation"][key] for row in rows]) for key in rows[0]["observation"]}
        episodes.append((index, steps))
    return episodes


def bodies(paths: dataset.DemoPaths) -> dict[int, tuple[str, dict]]:
    """(task key, body) of every episode number of the label file."""
    suites = json.loads(paths.labels.read_text())
    assert list(suites) == [paths.dataset_name]
    return {
        int(key.removeprefix("episode_")): (task, body)
        for task, episodes in suites[paths.dataset_name].items()
        for key, body in episodes.items()
    }


def test_written_steps_are_the_simulated_ones(small):
    episodes = read(small)
    assert len(episodes) == 3
    for index, steps in episodes:
        recording = dataset.demonstration(index, seed=5)
        last = len(recording.end) - 1
        np.testing.assert_array_equal(steps["action"], recording.action)
        np.testing.assert_array_equal(steps["state"], table.robot_state(recording.states))
        assert set(steps["language_instruction"]) == {instruction(recording.scene).encode()}
        assert np.flatnonzero(steps["is_first"]).tolist() == [0]
        assert np.flatnonzero(steps["is_last"]).tolist() == np.flatnonzero(steps["reward"]).tolist() == [last]
        cameras = pictures([recording.seed] * (last + 1), [recording.scene] * (last + 1), recording.states)
        for key, views in zip(("image", "wrist_image"), cameras, strict=True):
            assert abs(steps[key].astype(int) - views).mean() < 3  # JPEG


def test_features_are_those_of_libero(small):
    reference = SHARED / "data/libero_goal_no_noops/1.0.0/features.json"
    if not reference.is_file():
        pytest.skip(f"no reference dataset at {reference}")
    ours = (small.data_root / small.dataset_name / "1.0.0/features.json").read_text()
    assert json.loads(ours) == json.loads(reference.read_text().replace('"128"', f'"{SIZE}"'))


def shortened(index: int, seed: int = 0) -> Recording:
    """The last steps of a demonstration, about 20."""
    recording = record((seed, index), dataset.LUCK, Style())
    last = slice(len(recording.end) - 17 - len(recording.end) % 7, None)
    columns = {name: getattr(recording, name)[last] for name in ("action", "substep", "end")}
    return recording._replace(states=State(*(column[last] for column in recording.states)), **columns)


@pytest.mark.parametrize("episodes", [3, 66])
def test_labels_are_numbered_in_reading_order(tmp_path, monkeypatch, in_process, episodes):
    """With more than 16 episodes a shard TFDS interleaves the shards: the order of reading is not that of writing."""
    monkeypatch.setattr(dataset, "demonstration", shortened)
    paths = dataset.ensure_demo(tmp_path, episodes)
    read_back, labels = read(paths), bodies(paths)
    assert sorted(labels) == list(range(episodes))
    assert ([index for index, _ in read_back] == list(range(episodes))) == (episodes == 3)
    for number, (index, steps) in enumerate(read_back):
        recording = dataset.demonstration(index)
        task, body = labels[number]
        entries = body["timestep_labels"]
        assert body["instruction"].encode() == steps["language_instruction"][0]
        assert task == body["instruction"].replace(" ", "_")
        assert body["total_timesteps"] == len(steps["action"]) == len(entries)
        assert [entry["timestep"] for entry in entries] == list(range(len(entries)))
        assert [entry["is_substep_end"] for entry in entries] == recording.end.tolist()
        names = substep_instructions(recording.scene)
        assert [entry["APD_step"] for entry in entries] == [names[substep] for substep in recording.substep]


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.rglob("*")}


def test_a_present_dataset_is_reused(small):
    before = snapshot(small.data_root)
    assert dataset.ensure_demo(small.data_root.parent, episodes=3, seed=5) == small
    assert snapshot(small.data_root) == before


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, in_process):
    make = dataset.demonstration

    def fail(index: int, seed: int) -> Recording:
        if index == 1:
            raise KeyboardInterrupt
        return make(index, seed)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "demonstration", fail)
        with pytest.raises(KeyboardInterrupt):
            dataset.ensure_demo(tmp_path, episodes=2)
    assert list(tmp_path.iterdir()) == []
    assert len(bodies(dataset.ensure_demo(tmp_path, episodes=2))) == 2


def test_the_later_of_two_writers_takes_the_result_of_the_earlier(tmp_path, monkeypatch, in_process):
    write = dataset._write
    winner = {}

    def overtaken(folder: Path, episodes: int, seed: int) -> None:
        write(folder, episodes, seed)
        monkeypatch.setattr(dataset, "_write", write)
        paths = dataset.ensure_demo(tmp_path, episodes, seed)
        winner.update(snapshot(paths.data_root))

    monkeypatch.setattr(dataset, "_write", overtaken)
    paths = dataset.ensure_demo(tmp_path, episodes=1)
    assert snapshot(paths.data_root) == winner
    assert list(tmp_path.iterdir()) == [paths.data_root]


def test_a_foreign_folder_is_refused_and_kept(tmp_path):
    home = tmp_path / "demo-2.2.0-2-episodes-seed-0"
    home.mkdir()
    (home / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"seed-0 exists but is no demo dataset: expected substep_labels\.json"):
        dataset.ensure_demo(tmp_path, episodes=2)
    assert [file.name for file in home.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("episodes", "seed"), [(0, 0), (1, -1)])
def test_arguments_are_checked(tmp_path, episodes, seed):
    with pytest.raises(ValueError, match=f"episodes={episodes}, seed={seed}"):
        dataset.ensure_demo(tmp_path, episodes, seed)
    assert list(tmp_path.iterdir()) == []
