"""The demo dataset: its ends are where the goals begin to hold, must be seen, and are numbered as TFDS reads them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.demo import dataset
from eosjax.demo.render import SIZE, render
from eosjax.demo.simulator import ARRIVED, CARRY, HOME, OPEN, PLATE_HEIGHT, Rollout, instruction, simulate, substep_instructions

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture
def in_process(monkeypatch):
    """Writes datasets in this process, where the simulation can be replaced."""
    write = lambda module, folder, episodes, seed: dataset._write(folder, int(episodes), int(seed))
    monkeypatch.setattr(dataset, "run_module", write)
    monkeypatch.setattr(dataset, "ProcessPoolExecutor", lambda mp_context: ThreadPoolExecutor())


def rollouts(seed: int, count: int) -> list[Rollout]:
    return [simulate(np.random.default_rng((seed, index))) for index in range(count)]


def goals(rollout: Rollout) -> np.ndarray:
    """bool [T 5]: whether the goal of each substep holds, judged from the recorded scene alone."""
    scene, hand, block, opening = rollout.scene, rollout.hand, rollout.block, rollout.opening
    near = ARRIVED + 1e-4
    grasp = block[:, :3] + [0, 0, 0.5 * scene.blocks[0].height]
    is_open = opening > OPEN - 1e-4
    over_plate = np.linalg.norm(block[:, :2] - scene.plates[0].xy, axis=1) < near
    return np.stack(
        [
            (np.linalg.norm(hand - grasp, axis=1) < near) & is_open,
            block[:, 2] > CARRY - near,
            over_plate & (block[:, 2] > CARRY - 2 * near),
            over_plate & (abs(block[:, 2] - PLATE_HEIGHT) < near) & is_open,
            (np.linalg.norm(hand - HOME, axis=1) < near) & is_open,
        ],
        axis=1,
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_an_end_is_the_first_step_that_shows_the_goal(seed: int):
    rollout = simulate(np.random.default_rng(seed))
    steps = np.arange(len(rollout.end))
    holds = goals(rollout)[steps, rollout.substep]
    np.testing.assert_array_equal(holds, rollout.end)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_rollouts_are_well_formed(seed: int):
    rollout = simulate(np.random.default_rng(seed))
    ends = np.flatnonzero(rollout.end)
    assert len(ends) == 5
    assert ends[-1] == len(rollout.end) - 1
    np.testing.assert_array_equal(rollout.substep, np.searchsorted(ends, np.arange(len(rollout.end))))
    for column in (rollout.hand, rollout.rotation, rollout.opening, rollout.block, rollout.action):
        assert column.dtype == np.float32
    assert abs(rollout.action).max() <= 1.0
    assert set(rollout.action[:, 6].tolist()) == {-1.0, 1.0}
    moved = np.diff(rollout.hand, axis=0)
    np.testing.assert_allclose(moved, 0.03 * rollout.action[:-1, :3], atol=1e-6)  # an action explains the next pose
    turned = np.diff(rollout.rotation, axis=0)
    np.testing.assert_allclose(turned, 0.20 * rollout.action[:-1, 3:6], atol=1e-6)


def test_ends_are_rare():
    ends = np.concatenate([rollout.end for rollout in rollouts(0, 60)])
    assert 0.01 < ends.mean() < 0.05


def test_ends_change_the_picture():
    """The step before an end looks different from it: in at least one camera, well above the sensor noise."""
    for rollout in rollouts(1, 6):
        cameras = [view.astype(int) for view in render(rollout, np.random.default_rng(0))]
        for end in np.flatnonzero(rollout.end):
            changed = [(abs(view[end] - view[end - 1]).max(axis=-1) > 40).sum() for view in cameras]
            assert max(changed) >= 20, (instruction(rollout.scene), end, changed)


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


def clock(rollout: Rollout) -> np.ndarray:
    return steps_since(np.diff(rollout.substep, prepend=0) > 0)


def gripper_clock(rollout: Rollout) -> np.ndarray:
    return steps_since(np.diff(rollout.action[:, 6], prepend=-1.0) != 0)


@pytest.mark.parametrize("rule", [clock, gripper_clock])
def test_a_clock_does_not_tell_the_ends(rule):
    """The hazard of an end by substep and clock, fitted on other episodes, finds few of them."""
    seen, ends = np.zeros((5, 500)), np.zeros((5, 500))
    for rollout in rollouts(2, 150):
        np.add.at(seen, (rollout.substep, rule(rollout)), 1)
        np.add.at(ends, (rollout.substep, rule(rollout)), rollout.end)
    hazard = (ends + 0.01) / (seen + 0.3)
    unseen = rollouts(3, 60)
    scores = np.concatenate([hazard[rollout.substep, rule(rollout)] for rollout in unseen])
    assert average_precision(np.concatenate([rollout.end for rollout in unseen]), scores) < 0.25


def test_episodes_are_deterministic():
    first, again, other, reseeded = (dataset.demo_episode(*key) for key in ((3, 1), (3, 1), (4, 1), (3, 2)))
    for name in ("image", "wrist_image"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(first.rollout.action, again.rollout.action)
    assert first.rollout.action.tobytes() != other.rollout.action.tobytes()
    assert first.rollout.action.tobytes() != reseeded.rollout.action.tobytes()
    assert first.image.shape == first.wrist_image.shape == (len(first.rollout.end), SIZE, SIZE, 3)
    assert first.image.dtype == first.wrist_image.dtype == np.uint8


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
        rollout, image, wrist_image = dataset.demo_episode(index, seed=5)
        last = len(rollout.end) - 1
        np.testing.assert_array_equal(steps["action"], rollout.action)
        np.testing.assert_array_equal(steps["state"][:, :6], np.concatenate([rollout.hand, rollout.rotation], axis=1))
        np.testing.assert_allclose(steps["state"][:, 6] - steps["state"][:, 7], rollout.opening, atol=1e-6)
        assert set(steps["language_instruction"]) == {instruction(rollout.scene).encode()}
        assert np.flatnonzero(steps["is_first"]).tolist() == [0]
        assert np.flatnonzero(steps["is_last"]).tolist() == np.flatnonzero(steps["reward"]).tolist() == [last]
        for key, pictures in (("image", image), ("wrist_image", wrist_image)):
            assert abs(steps[key].astype(int) - pictures).mean() < 3  # JPEG


def test_features_are_those_of_libero(small):
    reference = SHARED / "data/libero_goal_no_noops/1.0.0/features.json"
    if not reference.is_file():
        pytest.skip(f"no reference dataset at {reference}")
    ours = (small.data_root / small.dataset_name / "1.0.0/features.json").read_text()
    assert json.loads(ours) == json.loads(reference.read_text().replace('"128"', f'"{SIZE}"'))


def shortened(rng: np.random.Generator) -> Rollout:
    """The last steps of a demonstration, about 20."""
    rollout = simulate(rng)
    first = len(rollout.end) - 17 - len(rollout.end) % 7
    return rollout._replace(**{name: getattr(rollout, name)[first:] for name in rollout._fields if name != "scene"})


@pytest.mark.parametrize("episodes", [3, 66])
def test_labels_are_numbered_in_reading_order(tmp_path, monkeypatch, in_process, episodes):
    """With more than 16 episodes a shard TFDS interleaves the shards: the order of reading is not that of writing."""
    monkeypatch.setattr(dataset, "simulate", shortened)
    paths = dataset.ensure_demo(tmp_path, episodes)
    read_back, labels = read(paths), bodies(paths)
    assert sorted(labels) == list(range(episodes))
    assert ([index for index, _ in read_back] == list(range(episodes))) == (episodes == 3)
    for number, (index, steps) in enumerate(read_back):
        rollout = dataset.demo_episode(index).rollout
        task, body = labels[number]
        entries = body["timestep_labels"]
        assert body["instruction"].encode() == steps["language_instruction"][0]
        assert task == body["instruction"].replace(" ", "_")
        assert body["total_timesteps"] == len(steps["action"]) == len(entries)
        assert [entry["timestep"] for entry in entries] == list(range(len(entries)))
        assert [entry["is_substep_end"] for entry in entries] == rollout.end.tolist()
        names = substep_instructions(rollout.scene)
        assert [entry["APD_step"] for entry in entries] == [names[substep] for substep in rollout.substep]


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.rglob("*")}


def test_a_present_dataset_is_reused(small):
    before = snapshot(small.data_root)
    assert dataset.ensure_demo(small.data_root.parent, episodes=3, seed=5) == small
    assert snapshot(small.data_root) == before


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, in_process):
    episode = dataset.demo_episode

    def fail(index: int, seed: int) -> dataset.DemoEpisode:
        if index == 1:
            raise KeyboardInterrupt
        return episode(index, seed)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "demo_episode", fail)
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
    home = tmp_path / "demo-1.0.0-2-episodes-seed-0"
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
