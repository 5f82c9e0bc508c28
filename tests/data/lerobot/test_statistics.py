import json

import numpy as np
import pytest

from eosjax.data.lerobot.statistics import compare_statistics
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import compute_stats

SPEC = DatasetSpec(state_keys=("joints", "finger"), action_size=3, proprio_size=3, gripper="percent_open")


@pytest.fixture
def stated(tmp_path):
    """A function (changes of the stated numbers) -> the lines."""
    random = np.random.default_rng(0)
    actions, proprio = random.normal(size=(100, 3)), random.normal(size=(100, 3))
    stats = compute_stats(actions, proprio, 2, SPEC.action_mask)

    def numbers(field, columns):
        return {key: getattr(field, key)[columns].tolist() for key in ("min", "max", "mean", "std", "q01", "q99")}

    def lines(change=lambda content: None, spec=SPEC):
        state = {"joints": numbers(stats.proprio, slice(0, 2)), "finger": numbers(stats.proprio, slice(2, 3))}
        content = {"action": numbers(stats.action, slice(None))} | state
        content["action"]["max"][2] *= 100  # the gripper, which is stored in per cent
        change(content)
        (tmp_path / "meta").mkdir(exist_ok=True)
        (tmp_path / "meta/stats.json").write_text(json.dumps(content))
        return compare_statistics(tmp_path, spec, stats)

    return lines


def test_statistics_of_the_frames_are_no_matter(stated, tmp_path):
    assert stated() == []
    assert compare_statistics(tmp_path / "none", SPEC, None) == []  # pyright: ignore[reportArgumentType]


def test_what_differs_beyond_rounding_is_named(stated):
    def change(content):
        content["action"]["q01"][1] -= 2
        content["finger"]["std"] = [9.0]
        content["joints"]["mean"][0] += 1e-5

    action, state = stated(change)
    assert action.startswith("meta/stats.json: action: differs from the frames: q01 by 0.")
    assert "(dimension 1); the statistics of the frames are used" in action
    assert state.startswith("meta/stats.json: state: differs from the frames: std by ")
    assert "(dimension 2)" in state


def test_numbers_that_are_missing_too_few_or_no_numbers(stated):
    def change(content):
        del content["action"]["q01"]
        content["action"]["q99"] = [1.0]
        content["joints"]["min"] = [float("nan"), 0.0]

    few, state = stated(change)
    assert few == "meta/stats.json: action: expected 3 numbers for q99, got 1"
    assert "min by nan of the range (dimension 0)" in state


def test_what_the_description_changes_is_not_compared(stated):
    def change(content):
        content["action"]["std"] = [9.0] * 3

    assert stated(change, DatasetSpec(**vars(SPEC) | {"motion": "target_minus_state"})) == []
    assert stated(change, DatasetSpec(**vars(SPEC) | {"skip_first": 1})) == []


def test_a_damaged_file_is_a_warning(stated, tmp_path):
    stated()
    (tmp_path / "meta/stats.json").write_text("{")
    (line,) = compare_statistics(tmp_path, SPEC, None)  # pyright: ignore[reportArgumentType]
    assert "stats.json: not JSON" in line


@pytest.fixture
def of_episodes(tmp_path):
    """A function (changes of the lines) -> what is said of a dataset of version 2.1, with three episodes."""
    random = np.random.default_rng(0)
    lengths = (40, 1, 59)
    columns = {"action": random.normal(size=(100, 3)), "joints": random.normal(size=(100, 2)), "finger": random.normal(size=(100, 1))}
    stats = compute_stats(columns["action"], np.concatenate([columns["joints"], columns["finger"]], axis=1), 3, SPEC.action_mask)

    def said(change=lambda rows: None):
        rows = []
        for number, (start, length) in enumerate(zip((0, 40, 41), lengths, strict=True)):
            parts = {key: column[start : start + length] for key, column in columns.items()}
            moments = {
                key: {name: getattr(part, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")} | {"count": [length]}
                for key, part in parts.items()
            }
            rows.append({"episode_index": number, "stats": moments})
        change(rows)
        (tmp_path / "meta").mkdir(exist_ok=True)
        (tmp_path / "meta/episodes_stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return compare_statistics(tmp_path, SPEC, stats)

    return said


def test_the_statistics_of_episodes_are_pooled(of_episodes):
    assert of_episodes() == []

    def change(rows):
        rows[1]["stats"]["action"]["max"][0] = 50.0  # of one episode
        rows[2]["stats"]["finger"]["count"] = [1]

    action, state = of_episodes(change)
    assert action.startswith("meta/episodes_stats.jsonl: action: differs from the frames: max by ")
    assert "(dimension 0)" in action
    assert state.startswith("meta/episodes_stats.jsonl: state: differs from the frames: mean by ")
    assert "(dimension 2)" in state


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[1]["stats"].pop("finger"), "line 2: stats: finger: expected min, max, mean, std, count, as many numbers"),
        (lambda rows: rows[2].pop("stats"), "line 3: stats: "),
        (lambda rows: rows[1]["stats"]["action"].update(mean=["a"]), "line 2: stats: action"),
        (lambda rows: rows[1]["stats"]["action"].update(mean=[1.0]), "line 2: stats: action"),
        (lambda rows: rows[0]["stats"]["action"].update(mean=1.0), "line 1: stats: action"),
        (lambda rows: [row["stats"]["action"].update(std=[1.0, 2.0]) for row in rows], "as many numbers for mean as for std"),
        (lambda rows: rows.clear(), "expected a line for each episode, got none"),
    ],
)
def test_damaged_statistics_of_episodes_are_a_warning(of_episodes, change, says):
    (line,) = of_episodes(change)
    assert says in line
    assert line.endswith("; not compared with the frames")
