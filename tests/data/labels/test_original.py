"""Formats 1 and 2."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.labels import LabelError, import_labels, join_labels
from tests.data.labels.builders import KEY, TASK, body, dataset, ends_of, entry, kinds, rows_of


def test_the_lookup_of_the_original(golden, write):
    """The recorded (instruction, end) of every step inside the two well-formed episodes with labels."""
    recorded = json.loads((golden / "data" / "substep_lookup.json").read_text())
    lengths = {4: 41, 10: 4}
    episodes = {}
    for index, (number, length) in enumerate(lengths.items()):
        entries = recorded["labels"]["libero_goal"][KEY][f"episode_{number}"]["timestep_labels"]
        # The original looks blank instructions up as well; here they are refused.
        episodes[f"episode_{index}"] = body(length, *[entry for entry in entries if entry["APD_step"]])
    path = write(episodes)
    checked = 0
    for case in recorded["cases"]:
        episode, step = case["episode_id"], case["timestep"]
        if not 0 <= step < lengths.get(episode, 0) or case["result"][0] in ("DEFAULT", ""):
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


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (5, "episode without labels"),  # no entry
        (6, "wrong shape"),  # no list
        (7, "wrong shape"),  # an entry without instruction
        (8, "overlap"),  # entries in no order
        (9, "overlap"),  # one step twice
        (11, "wrong shape"),  # null for a list
        (12, "wrong shape"),  # an entry without a step
    ],
)
def test_what_the_original_answers_with_no_end_is_refused(golden, write, number, kind):
    """The original takes the task instruction and no end, or half of the entries, for what it cannot read; here it is an error."""
    recorded = json.loads((golden / "data" / "substep_lookup.json").read_text())
    broken = {"total_timesteps": 9} | recorded["labels"]["libero_goal"][KEY][f"episode_{number}"]
    assert kinds(import_labels(write({"episode_0": broken}), "libero_goal"), dataset(9)) == [(kind, 0)]


def test_every_episode_has_its_own_number(golden, write):
    """The original counted episodes in a function that was traced once, so that all of them got the labels of episode 0."""
    recorded = json.loads((golden / "data" / "episode_id_bug.json").read_text())["pairs"]
    assert {number for _, number in recorded} == {0}
    count = len(recorded)
    episodes = {f"episode_{number}": body(count, entry(0), entry(number, end=True)) for number in range(1, count)}
    episodes["episode_0"] = body(count, entry(0, end=True))
    labels = join_labels(import_labels(write(episodes), "libero_goal"), dataset(*[count] * count))
    np.testing.assert_array_equal(labels.ends.reshape(count, count), np.eye(count, dtype=bool))


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
    expected = [(2, 4, True, "pick"), (5, 6, False, "pick"), (7, 8, False, "place"), (9, 9, True, "lift")]
    assert rows_of(table) == [*expected, (10, 11, False, "lift")]
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


@settings(deadline=None, derandomize=True, max_examples=60)
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


def flat(tmp_path, content):
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(content))
    return path


def test_flat_files_have_the_same_body_without_suite_and_task(tmp_path):
    episodes = {
        "so101_yellow_episode_1": body(3, entry(0), entry(2, end=True), instruction="Pick it up"),
        "so101_yellow_episode_0": body(2, entry(1, "place", True)),
        "so101_red_episode_0": body(9),
    }
    table = import_labels(flat(tmp_path, episodes), "so101_yellow")
    assert table.lengths == {0: 2, 1: 3}
    assert table.tasks == {0: TASK, 1: "Pick it up"}
    assert rows_of(table, 1) == [(0, 2, True, "pick")]
    assert ends_of(table, dataset(2, 3, tasks=[TASK, "pick it up"])) == [1, 4]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a_episode_0": body(2, entry(0), instruction=None)}, [("wrong shape", 0)]),
        ({"a_episode_0": body(2, entry(0)), "a_episode_00": body(2, entry(0))}, [("overlap", 0)]),
        ({"a_episode_0": body(2, entry(0)), "a": 1}, [("wrong shape", None)]),
        ({"a_episode_0": body(2, entry(5))}, [("end outside the episode", 0)]),
    ],
)
def test_flat_files_are_checked(tmp_path, content, expected):
    assert kinds(import_labels(flat(tmp_path, content), "a"), dataset(2)) == expected


def test_flat_files_without_the_dataset(tmp_path):
    with pytest.raises(LabelError, match=r"no such suite: expected one for dataset 'b', found \[\] among: a"):
        import_labels(flat(tmp_path, {"a_episode_0": body(2, entry(0))}), "b")
