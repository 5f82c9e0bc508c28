import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.substeps import LabelError, import_labels, join_labels, task_labels

TASK = "put the bowl on the plate"
KEY = TASK.replace(" ", "_")


def dataset(*lengths: int, tasks: list[str] | None = None) -> Any:
    """What the join reads of a frame store."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SimpleNamespace(episode_starts=starts, tasks=tasks or [TASK] * len(lengths))


def entry(step: Any, instruction: str = "pick", end: Any = False) -> dict[str, Any]:
    return {"timestep": step, "APD_step": instruction, "is_substep_end": end}


def body(length, *entries, instruction=TASK):
    return {"instruction": instruction, "total_timesteps": length, "timestep_labels": list(entries)}


@pytest.fixture
def write(tmp_path):
    def write(episodes, suite="libero_goal", task=KEY):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps({suite: {task: episodes}}))
        return path

    return write


def kinds(table, store):
    with pytest.raises(LabelError) as raised:
        join_labels(table, store)
    return [(problem.kind, problem.episode) for problem in raised.value.problems]


def test_the_lookup_of_the_original(golden, write):
    """The recorded (instruction, end) of every step inside the two well-formed episodes with labels."""
    recorded = json.loads((golden / "data" / "substep_lookup.json").read_text())
    lengths = {4: 41, 10: 4}
    episodes = {}
    for index, (number, length) in enumerate(lengths.items()):
        entries = recorded["labels"]["libero_goal"][KEY][f"episode_{number}"]["timestep_labels"]
        episodes[f"episode_{index}"] = body(length, *entries)
    path = write(episodes)
    checked = 0
    for case in recorded["cases"]:
        episode, step = case["episode_id"], case["timestep"]
        if not 0 <= step < lengths.get(episode, 0) or case["result"][0] == "DEFAULT":
            continue
        # "double space" is no case of ours: the task of an unknown key is refused by the join, not looked up.
        store = dataset(*lengths.values(), tasks=[case["task_instruction"]] * 2)
        labels = join_labels(import_labels(path, case["dataset_name"]), store)
        frame = store.episode_starts[list(lengths).index(episode)] + step
        assert (labels.instructions[labels.instruction_ids[frame]], labels.ends[frame]) == (
            case["result"][0],
            bool(case["result"][1]),
        ), case
        checked += 1
    assert checked >= 18


def test_chunks_of_ends_as_recorded(golden, write):
    recorded = json.loads((golden / "data" / "substep_lookup.json").read_text())
    entries = recorded["labels"]["libero_goal"][KEY]["episode_4"]["timestep_labels"]
    expected = recorded["eos_episode4"]
    length = expected["episode_len"]
    labels = join_labels(import_labels(write({"episode_0": body(length, *entries)}), "libero_goal"), dataset(length))
    padded = np.concatenate([labels.ends, np.zeros(7, bool)])
    chunks = np.lib.stride_tricks.sliding_window_view(padded, 8)
    np.testing.assert_array_equal(chunks, expected["eos_labels_by_start"])


def test_sparse_entries_fill_gaps_and_only_entries_end(write):
    entries = (entry(2, "pick"), entry(4, "pick", True), entry(7, "place"), entry(9, "lift", True))
    table = import_labels(write({"episode_0": body(12, *entries)}), "libero_goal")
    rows = list(zip(table.first, table.last, table.is_end, table.instruction, strict=True))
    expected = [(2, 4, True, "pick"), (5, 6, False, "pick"), (7, 8, False, "place"), (9, 9, True, "lift")]
    assert rows == [*expected, (10, 11, False, "lift")]
    assert table.segment.tolist() == [0, 1, 2, 3, 4]
    labels = join_labels(table, dataset(12))
    words = [labels.instructions[index] for index in labels.instruction_ids]
    assert words == [TASK] * 2 + ["pick"] * 5 + ["place"] * 2 + ["lift"] * 3
    assert np.flatnonzero(labels.ends).tolist() == [4, 9]


def test_the_same_substep_twice_in_a_row(write):
    entries = [entry(step, "pick", step in (2, 5)) for step in range(6)]
    table = import_labels(write({"episode_0": body(6, *entries)}), "libero_goal")
    assert list(zip(table.first, table.last, table.is_end, strict=True)) == [(0, 2, True), (3, 5, True)]


@pytest.mark.parametrize(("value", "expected"), [(True, True), (1, True), (False, False), (0, False), (None, False), ("absent", False)])
def test_styles_of_the_end_flag(write, value, expected):
    last = entry(1, "pick", value)
    if value == "absent":
        del last["is_substep_end"]
    labels = join_labels(import_labels(write({"episode_0": body(2, last)}), "libero_goal"), dataset(2))
    assert labels.ends.tolist() == [False, expected]


@pytest.mark.parametrize("suite", ["libero_goal", "libero_goal_no_noops", "LIBERO_goal", "LIBERO_GOAL_no_noops"])
@pytest.mark.parametrize("name", ["libero_goal", "libero_goal_no_noops"])
def test_spellings_of_the_suite(write, suite, name):
    path = write({"episode_0": body(2, entry(0))}, suite=suite)
    assert import_labels(path, name).lengths == {0: 2}


@st.composite
def segmented_episodes(draw):
    """Per episode: its instruction and end at every step."""
    episodes = []
    for _ in range(draw(st.integers(1, 4))):
        steps = draw(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=20))
        episodes.append(steps)
    return episodes


@settings(deadline=None, derandomize=True)
@given(segmented_episodes())
def test_every_end_and_instruction_lands_on_its_step(tmp_path_factory, episodes):
    path = tmp_path_factory.mktemp("labels") / "labels.json"
    bodies = {
        f"episode_{number}": body(len(steps), *(entry(step, text, end) for step, (text, end) in enumerate(steps)))
        for number, steps in reversed(list(enumerate(episodes)))  # the order of the file means nothing
    }
    path.write_text(json.dumps({"libero_goal": {KEY: bodies}}))
    labels = join_labels(import_labels(path, "libero_goal"), dataset(*map(len, episodes)))
    flat = [step for steps in episodes for step in steps]
    assert [labels.instructions[index] for index in labels.instruction_ids] == [text for text, _ in flat]
    assert labels.ends.tolist() == [end for _, end in flat]
    assert labels.instructions == sorted({text for text, _ in flat})


def test_without_substeps_there_is_the_task_and_no_end():
    labels = task_labels(dataset(2, 1, 2, tasks=["Put it", "Close it", "Put it"]))
    assert labels.instructions == ["close it", "put it"]
    assert labels.instruction_ids.tolist() == [1, 1, 0, 1, 1]
    assert not labels.ends.any()


@pytest.mark.parametrize(
    ("episodes", "lengths", "expected"),
    [
        ({"episode_0": body(2, entry(0))}, (2, 3), [("episode without labels", 1)]),
        ({"episode_0": body(2)}, (2,), [("episode without labels", 0)]),
        ({f"episode_{n}": body(2, entry(0)) for n in (0, 7)}, (2,), [("labels without episode", 7)]),
        ({"episode_0": body(4, entry(0))}, (3,), [("length mismatch", 0), ("end outside the episode", 0)]),
        ({"episode_0": body(2, entry(0), instruction="open it")}, (2,), [("instruction mismatch", 0)]),
        ({"episode_0": body(2, entry(2, end=True))}, (2,), [("end outside the episode", 0)]),
        ({"episode_0": body(3, entry(1), entry(1, "place"))}, (3,), [("overlap", 0)]),
        ({"episode_0": body(3, entry(2), entry(1, "place"))}, (3,), [("overlap", 0)]),
        ({"episode_0": body(2, {"timestep": 1, "is_substep_end": True})}, (2,), [("wrong shape", 0)]),
        ({"episode_0": body(2, entry(0, end="yes"))}, (2,), [("wrong shape", 0)]),
        ({"episode_0": body(2, entry(True))}, (2,), [("wrong shape", 0)]),
        ({"episode_0": {"timestep_labels": [entry(0)]}}, (2,), [("wrong shape", 0)]),
        ({"episode_0": []}, (2,), [("wrong shape", 0)]),
        ({"episode_0": body(2, entry(0)), "episode_x": {}}, (2,), [("wrong shape", None)]),
    ],
)
def test_what_does_not_fit_is_refused(write, episodes, lengths, expected):
    assert kinds(import_labels(write(episodes), "libero_goal"), dataset(*lengths)) == expected


def test_task_of_the_dataset_must_agree(write):
    table = import_labels(write({"episode_0": body(2, entry(0))}), "libero_goal")
    assert kinds(table, dataset(2, tasks=["open the drawer"])) == [("instruction mismatch", 0)]


def test_one_episode_under_two_tasks(tmp_path):
    path = tmp_path / "labels.json"
    other = {"episode_0": body(2, entry(0), instruction="open it")}
    path.write_text(json.dumps({"libero_goal": {KEY: {"episode_0": body(2, entry(0))}, "open_it": other}}))
    assert kinds(import_labels(path, "libero_goal"), dataset(2)) == [("overlap", 0)]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("last", 9, "end outside the episode"),
        ("first", -1, "end outside the episode"),
        ("first", 1, "overlap"),
    ],
)
def test_segments_of_any_table_are_checked(write, column, value, expected):
    entries = [entry(step, end=step in (1, 4)) for step in range(5)]
    table = import_labels(write({"episode_0": body(5, *entries)}), "libero_goal")
    changed = getattr(table, column).copy()
    changed[-1] = value
    assert (expected, 0) in kinds(dataclasses.replace(table, **{column: changed}), dataset(5))


def test_all_problems_are_counted_and_ten_are_listed(write):
    path = write({f"episode_{number}": body(2, entry(0)) for number in range(12)})
    with pytest.raises(LabelError) as raised:
        join_labels(import_labels(path, "libero_goal"), dataset(*[3] * 12, 5))
    text = str(raised.value)
    assert len(raised.value.problems) == 13
    assert text.startswith(f"{path}: labels refused: 12 x length mismatch, 1 x episode without labels")
    assert text.count("length mismatch: episode") == 10
    assert "length mismatch: episode 9: 3 steps in the dataset, 2 in the labels" in text
    assert text.endswith("… and 3 more")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"libero_goal": {\n "a": oops}}', "not JSON: Expecting value at line 2, column 7"),
        ("[1, 2]", r"expected an object of suites, got \[1, 2\]"),
        ('{"libero_10": {}}', r"no such suite: expected one for dataset 'libero_goal', found \[\] among: libero_10"),
        ('{"libero_goal": [1]}', r"libero_goal: expected tasks, got \[1\]"),
        ('{"libero_goal": {"a": 3}}', "a: expected episodes, got 3"),
        ('{"libero_goal": {"a": {"episode_1": {}, "episode_1": {}}}}', "repeated key: 'episode_1' twice"),
        (b"\xff\xfe{", "not UTF-8"),
    ],
)
def test_files_that_are_no_label_files(tmp_path, content, message):
    path = tmp_path / "labels.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelError, match=rf"(?s){path}.*{message}"):
        import_labels(path, "libero_goal")


def test_missing_file(tmp_path):
    with pytest.raises(LabelError, match=r"unreadable file: .*labels\.json"):
        import_labels(tmp_path / "labels.json", "libero_goal")
