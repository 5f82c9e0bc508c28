import itertools
import json
import re
import types

import numpy as np
import pytest

from eosjax.cli.dataset import Opened
from eosjax.data.labels import import_labels, join_labels
from eosjax.data.specs import DatasetSpec
from tests.data.labels.test_labeller import one_cycle
from tests.data.lerobot.builders import make_lerobot

TASKS = ["put the cup on the tray", "wave"]


@pytest.fixture
def dataset(monkeypatch):
    """Three episodes: two of one cycle, then one in which the hand never closes. The labels of each cycle are known."""
    scripts = [one_cycle(dwell=2), one_cycle(dwell=5)]
    idle = np.zeros((30, 8))
    proprio, gripper = [], []
    for script in scripts:
        fingers = np.array(script.opening)[:, None] / 2
        proprio.append(np.hstack([script.position, np.zeros((len(fingers), 3)), fingers, -fingers]))
        gripper.append(np.array(script.gripper))
    lengths = [len(part) for part in proprio] + [len(idle)]
    store = types.SimpleNamespace(
        name="libero_goal",
        tasks=[TASKS[0], TASKS[0], TASKS[1]],
        num_episodes=3,
        episode_starts=np.cumsum([0, *lengths]),
        proprio=np.concatenate([*proprio, idle]).astype(np.float32),
        actions=np.concatenate([*gripper, np.ones(30)])[:, None].astype(np.float32),
    )
    monkeypatch.setattr("eosjax.cli.dataset.open_dataset", lambda args, name: Opened(store, DatasetSpec(), None))
    return types.SimpleNamespace(store=store, ends=[script.ends for script in scripts])


@pytest.fixture
def label(run):
    return lambda *flags: run("label", "--dataset_name", "libero_goal", *flags)


def ends_of(labels, store, episode):
    return np.flatnonzero(labels.ends[slice(*store.episode_starts[episode : episode + 2])]).tolist()


def test_labels_are_written_and_fit(label, dataset, tmp_path):
    out = tmp_path / "new" / "labels.json"
    status, text, _ = label("--out", out)
    assert status == 0
    assert "labelled: 2 of 3 episodes of libero_goal, 10 ends" in text
    assert "1: the hand closes 0 time(s)" in text
    assert "(episode 2)" in text
    labels = join_labels(import_labels(out, "libero_goal"), dataset.store, allow=["unlabelled"])
    assert labels.labelled.tolist() == [True, True, False]
    assert [ends_of(labels, dataset.store, episode) for episode in (0, 1)] == dataset.ends
    expected = sorted(f"{kind}: {TASKS[0]}" for kind in ("reach", "pick", "carry", "place", "leave"))
    assert [text for text in labels.instructions if text != TASKS[1]] == expected


def test_a_plan_gives_the_words(label, dataset, tmp_path):
    steps = ["Move there", "Pick it up", "Move above the tray", "Place it", "Return"]
    plan = [{"step": number, "subgoal": text} for number, text in enumerate(steps)]
    (tmp_path / "plan.json").write_text(json.dumps([{"suite": "goal", "instruction": {"raw": TASKS[0], "plan": plan}}]))
    status, _, _ = label("--out", tmp_path / "labels.json", "--plan", tmp_path / "plan.json")
    assert status == 0
    table = import_labels(tmp_path / "labels.json", "libero_goal")
    assert table.instruction == steps * 2
    (tmp_path / "plan.json").write_text(json.dumps([{"suite": "goal", "instruction": {"raw": TASKS[0], "plan": plan[:4]}}]))
    status, _, err = label("--out", tmp_path / "none.json", "--plan", tmp_path / "plan.json")
    assert status == 2
    assert "no episode could be labelled" in err
    assert not (tmp_path / "none.json").exists()


def test_compare_scores_against_labels(label, dataset, tmp_path):
    """Of the first episode: one end 3 steps off, one 9 steps, one missing; and an episode that is not found has one."""
    label("--out", tmp_path / "mine.json")
    content = json.loads((tmp_path / "mine.json").read_text())
    entries = content["libero_goal"]["put_the_cup_on_the_tray"]["episode_0"]["timestep_labels"]
    reach, pick, carry, place, _ = dataset.ends[0]
    for old, new in ((reach, reach - 3), (carry, carry - 9), (place, None)):
        entries[old]["is_substep_end"] = False
        if new is not None:
            entries[new]["is_substep_end"] = True
    idle = [{"timestep": 29, "APD_step": "wave", "is_substep_end": True}]
    content["libero_goal"]["wave"] = {"episode_2": {"instruction": "wave", "total_timesteps": 30, "timestep_labels": idle}}
    (tmp_path / "true.json").write_text(json.dumps(content))
    status, text, _ = label("--compare", tmp_path / "true.json")
    assert status == 0
    assert "10 found and 10 true ends in 3 episodes" in text
    rows = {line.split()[0]: line.split()[2:] for line in text.splitlines() if line.startswith("±")}
    assert rows == {
        "±2": ["7", "0.700", "0.700"],
        "±4": ["8", "0.800", "0.800"],
        "±8": ["8", "0.800", "0.800"],
    }
    assert ["reach", "2", "+1.5", "+0", "+3"] in [line.split() for line in text.splitlines()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "true.json"]
    assert pick - (carry - 9) < 9  # else the end moved by nine steps would have another partner


def test_thresholds_are_flags(label, dataset, tmp_path):
    label("--out", tmp_path / "low.json", "--lift_height", "0.02")
    labels = join_labels(import_labels(tmp_path / "low.json", "libero_goal"), dataset.store, allow=["unlabelled"])
    assert ends_of(labels, dataset.store, 0)[1] < dataset.ends[0][1]
    assert ends_of(labels, dataset.store, 0)[2:] == dataset.ends[0][2:]


def test_what_is_found_is_judged(label, dataset, tmp_path):
    _, text, _ = label("--out", tmp_path / "labels.json")
    lines = text.splitlines()
    durations = [after - before for ends in dataset.ends for before, after in itertools.pairwise([-1, *ends])]
    least, most, median = min(durations), max(durations), np.median(durations)
    assert lines[1] == f"sub-steps: {least} to {most} steps ({least / 20:.2f} to {most / 20:.2f} s), median {median:g}"
    assert lines[2] == "cycles in an episode: 1 in 2"
    assert not any(line.startswith("warning") for line in lines)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda store: np.multiply(store.proprio, 1000, out=store.proprio), "the hand moves by 300 along an axis in the median episode"),
        (lambda store: np.subtract(1, store.actions, out=store.actions), "the gripper command (1 = open), or the column of the fingers"),
    ],
)
def test_what_is_impossible_is_refused(label, dataset, tmp_path, spoil, words):
    spoil(dataset.store)
    status, out, err = label("--out", tmp_path / "labels.json")
    assert (status, out) == (2, "")
    assert "libero_goal: cannot be right:\n  " in err
    assert words in err
    assert not list(tmp_path.iterdir())


def test_invented_ends_are_refused(label, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("eosjax.data.labels.plausibility.MANY_ENDS", 0.01)
    monkeypatch.setattr("eosjax.data.labels.plausibility.MOST_ENDS", 0.05)
    status, _, err = label("--out", tmp_path / "labels.json")
    assert status == 2
    assert re.search(r"the labels found in libero_goal: cannot be right:\n  .*% of the steps are ends", err)
    assert not list(tmp_path.iterdir())


def test_what_is_unlikely_is_told(label, dataset, tmp_path):
    dataset.store.proprio[:, :3] *= 15
    _, text, _ = label("--out", tmp_path / "labels.json", "--min_transport", "0.75", "--lift_height", "0.75")
    assert "\nwarning: the hand moves by 4.5 along an axis in the median episode; expected 0.02 to 3 m: another unit, or " in text


def test_labels_of_another_dataset_are_not_compared(label, dataset, tmp_path):
    label("--out", tmp_path / "labels.json")
    text = (tmp_path / "labels.json").read_text().replace('"total_timesteps": ', '"total_timesteps": 1')
    (tmp_path / "labels.json").write_text(text)
    status, _, err = label("--compare", tmp_path / "labels.json")
    assert status == 2
    assert "length mismatch" in err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "expected --out FILE"),
        (["--out", "there.json"], "there.json: exists"),
        (["--out", "new.json", "--finger_columns", "6,8"], "--finger_columns 6,8: expected columns 0 to 7"),
        (["--out", "new.json", "--position_columns", "0,1"], "expected three --position_columns"),
        (["--out", "new.json", "--lift_height", "-1"], "--lift_height: expected 0 or more, got -1"),
        (["--out", "new.json", "--min_transport", "9"], "no episode could be labelled"),
    ],
)
def test_what_the_user_can_mend_is_status_2(label, dataset, monkeypatch, tmp_path, flags, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("kept")
    status, _, err = label(*flags)
    assert status == 2
    assert why in err
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]
    assert (tmp_path / "there.json").read_text() == "kept"


def test_a_dataset_without_pick_and_place_is_told(run, data, tmp_path):
    status, out, err = run("label", *data, "--out", tmp_path / "labels.json")
    assert status == 2
    assert "labelled: 0 of 8 episodes" in out
    assert "no episode could be labelled" in err


def test_labels_are_written_into_a_copy_of_a_lerobot_dataset(label, dataset, tmp_path):
    lengths = np.diff(dataset.store.episode_starts).tolist()
    frames = make_lerobot(tmp_path / "data/libero_goal", lengths=lengths, cameras=())
    before = {path: path.read_bytes() for path in frames.rglob("*") if path.is_file()}
    status, output, _ = label("--data_root_dir", tmp_path / "data", "--lerobot_copy", tmp_path / "copy")
    assert status == 0
    assert f"written: {tmp_path / 'copy'} (train with --allow unlabelled)" in output
    assert {path: path.read_bytes() for path in frames.rglob("*") if path.is_file()} == before
    read = import_labels(tmp_path / "copy", "libero_goal")
    for episode, ends in enumerate(dataset.ends):
        assert read.last[read.episode == episode].tolist() == ends
    status, _, errors = label("--data_root_dir", tmp_path / "data", "--lerobot_copy", tmp_path / "copy")
    assert (status, "exists; labels are not overwritten" in errors) == (2, True)
    status, _, errors = label("--data_root_dir", tmp_path, "--lerobot_copy", tmp_path / "new")
    assert (status, "libero_goal is no LeRobot dataset; write the labels to a file with --out" in errors) == (2, True)
