"""The join of a table with a dataset."""

import dataclasses
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.labels import LabelError, Problem, Segment, import_labels, join_labels, make_table, task_labels
from eosjax.data.labels.table import task_key
from tests.data.labels.builders import TASK, body, dataset, dataset_of, entry, kinds, steps_of, tables

COLUMNS = ("episode", "segment", "first", "last", "is_end")


def test_without_substeps_there_is_the_task_and_no_end():
    labels = task_labels(dataset(2, 1, 2, tasks=["Put it", "Close it", "Put it"]))
    assert labels.instructions == ["close it", "put it"]
    assert labels.instruction_ids.tolist() == [1, 1, 0, 1, 1]
    assert not labels.ends.any()


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


@settings(deadline=None, derandomize=True, max_examples=80)
@given(tables(min_labelled=4))
def test_every_step_has_what_the_table_says(table):
    labels = join_labels(table, dataset_of(table))
    expected = [step for episode in table.lengths for step in steps_of(table, episode)]
    words = [labels.instructions[index] for index in labels.instruction_ids]
    assert list(zip(words, labels.ends.tolist(), strict=True)) == expected
    assert labels.instructions == sorted(set(words))
    assert labels.labelled.all()
    assert (labels.instruction_ids.dtype, labels.ends.dtype, labels.labelled.dtype) == (np.int32, bool, bool)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(tables(min_labelled=4))
def test_ends_are_exactly_the_last_steps(table):
    store = dataset_of(table)
    lasts = store.episode_starts[table.episode] + table.last
    assert np.flatnonzero(join_labels(table, store).ends).tolist() == sorted(lasts[table.is_end].tolist())


def without(episode, columns):
    return {key: value for key, value in columns.items() if key != episode}


def shifted(table, row, first=0, last=0):
    """The table with one segment's bounds moved."""
    moved = np.arange(len(table.episode)) == row
    return dataclasses.replace(table, first=table.first + first * moved, last=table.last + last * moved)


def unsegmented(table, episode):
    """The table with an episode's entry, but without its segments."""
    keep = table.episode != episode
    columns = {name: getattr(table, name)[keep] for name in COLUMNS}
    return dataclasses.replace(table, **columns, instruction=[text for text, kept in zip(table.instruction, keep, strict=True) if kept])


def unlabelled(table, episode):
    """The table without any mention of an episode."""
    rest = unsegmented(table, episode)
    return dataclasses.replace(rest, lengths=without(episode, rest.lengths), tasks=without(episode, rest.tasks))


def row_of(table, episode):
    return int(np.flatnonzero(table.episode == episode)[-1])


def outside(table, episode):
    row = row_of(table, episode)
    return shifted(table, row, last=table.lengths[episode] - table.last[row])


def empty(table, episode):
    row = row_of(table, episode)
    return shifted(table, row, last=table.first[row] - table.last[row] - 1)


def doubled(table, episode):
    """The table with an episode's last segment twice."""
    row = row_of(table, episode)
    columns = {name: np.append(getattr(table, name), getattr(table, name)[row]) for name in COLUMNS}
    return dataclasses.replace(table, **columns, instruction=[*table.instruction, table.instruction[row]])


def renumbered(table, episode):
    """The table with an episode's number changed to one that the dataset has not."""
    number = len(table.lengths)
    return dataclasses.replace(
        table,
        episode=np.where(table.episode == episode, number, table.episode),
        lengths=without(episode, table.lengths) | {number: table.lengths[episode]},
        tasks=without(episode, table.tasks) | {number: table.tasks[episode]},
    )


CORRUPTIONS = {
    "length mismatch": lambda table, e: dataclasses.replace(table, lengths=table.lengths | {e: table.lengths[e] + 1}),
    "instruction mismatch": lambda table, e: dataclasses.replace(table, tasks=table.tasks | {e: table.tasks[e] + "?"}),
    "end outside the episode": outside,
    "empty segment": empty,
    "overlap": doubled,
    "episode without labels": unlabelled,
    "wrong shape": lambda table, e: dataclasses.replace(unlabelled(table, e), problems=(Problem("wrong shape", e, "broken"),)),
}


@settings(deadline=None, derandomize=True, max_examples=80)
@given(tables(min_labelled=4), st.sampled_from(sorted(CORRUPTIONS)), st.integers(0, 3))
def test_one_corruption_is_one_problem_of_its_episode(table, kind, episode):
    store = dataset_of(table)
    corrupted = CORRUPTIONS[kind](table, episode)
    assert kinds(corrupted, store) == [(kind, episode)]
    if kind != "episode without labels":
        assert kinds(corrupted, store, allow=["unlabelled"]) == [(kind, episode)]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(tables(min_labelled=4), st.integers(0, 3))
def test_an_episode_of_another_number_is_missing_and_left_over(table, episode):
    store = dataset_of(table)
    expected = [("episode without labels", episode), ("labels without episode", 4)]
    assert kinds(renumbered(table, episode), store) == expected
    assert kinds(renumbered(table, episode), store, allow=["unlabelled"]) == expected[1:]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(tables(min_labelled=2), st.data())
def test_shifted_episodes_are_never_joined_where_they_differ(table, data):
    """Labels of the right dataset in the wrong order are refused wherever length or task tells."""
    store = dataset_of(table)
    order = data.draw(st.permutations(range(len(table.lengths))))
    moved = dataclasses.replace(
        table,
        lengths={new: table.lengths[old] for new, old in enumerate(order)},
        tasks={new: table.tasks[old] for new, old in enumerate(order)},
    )
    keys = [(table.lengths[episode], task_key(table.tasks[episode])) for episode in table.lengths]
    differing = {new for new, old in enumerate(order) if keys[new] != keys[old]}
    if differing:
        assert {episode for kind, episode in kinds(moved, store) if kind.endswith("mismatch")} == differing


@pytest.mark.parametrize("drop", [unlabelled, unsegmented])
def test_unlabelled_episodes_are_told(drop):
    segments = {episode: [Segment(0, 1, True, "pick")] for episode in range(3)}
    table = drop(make_table(segments, "made", dict.fromkeys(range(3), 3), dict.fromkeys(range(3), TASK)), 1)
    assert kinds(table, dataset(3, 3, 3)) == [("episode without labels", 1)]
    labels = join_labels(table, dataset(3, 3, 3), allow=["unlabelled"])
    assert labels.labelled.tolist() == [True, False, True]
    assert np.flatnonzero(labels.ends).tolist() == [1, 7]


@pytest.mark.parametrize("allow", [[], ["unlabelled"]])
def test_no_label_at_all_is_an_error(allow):
    table = make_table({}, "made", {}, {})
    expected = [("episode without labels", 0), ("episode without labels", 1)]
    assert kinds(table, dataset(3, 3), allow=allow) == expected


LEFT_OUT = {
    "unlabelled": ("episode without labels", lambda table, store, e: (unlabelled(table, e), store)),
    "blank_tasks": ("blank task", lambda table, store, e: (with_task(table, e, " ?"), dataset_of(with_task(table, e, " ?")))),
    "empty_episodes": ("empty episode", lambda table, store, e: (unlabelled(table, e), dataset_of(with_length(table, e, 0)))),
}


def with_task(table, episode, task):
    return dataclasses.replace(table, tasks=table.tasks | {episode: task})


def with_length(table, episode, length):
    return dataclasses.replace(table, lengths=table.lengths | {episode: length})


@settings(deadline=None, derandomize=True, max_examples=50)
@given(tables(min_labelled=4), st.sampled_from(sorted(LEFT_OUT)), st.integers(0, 3))
def test_an_episode_is_left_out_only_by_its_own_exception(table, name, episode):
    kind, change = LEFT_OUT[name]
    table, store = change(table, dataset_of(table), episode)
    for allow in ([], LEFT_OUT.keys() - {name}):
        assert kinds(table, store, allow=allow) == [(kind, episode)]
    for allow in ([name], LEFT_OUT):
        labels = join_labels(table, store, allow)
        assert labels.labelled.tolist() == [number != episode for number in range(4)]
        assert len(labels.ends) == store.episode_starts[-1]
    other = task_labels(store, [name])
    assert other.labelled.tolist() == [number != episode or name == "unlabelled" for number in range(4)]
    if name != "unlabelled":
        with pytest.raises(LabelError, match=f"made: labels refused: 1 x {kind}(?s:.*)--allow {name} leaves such episodes out, if others"):
            task_labels(store)


def test_an_empty_episode_may_be_in_the_labels_if_they_say_so():
    tasks = dict.fromkeys(range(2), TASK)
    for length, problems in ((0, [("empty episode", 1)]), (3, [("empty episode", 1), ("length mismatch", 1)])):
        table = make_table({0: [Segment(0, 1, True, "pick")]}, "made", {0: 3, 1: length}, tasks)
        assert kinds(table, dataset(3, 0)) == problems
    assert kinds(table, dataset(3, 0), allow=["empty_episodes"]) == [("length mismatch", 1)]


@settings(max_examples=100)
@given(st.text(), st.sampled_from(["NFC", "NFD"]), st.sampled_from(["NFC", "NFD"]))
def test_tasks_are_compared_in_one_unicode_form(text, one, other):
    assert task_key(unicodedata.normalize(one, text)) == task_key(unicodedata.normalize(other, text))


def test_an_unlabelled_episode_must_fit_too():
    table = make_table({0: [Segment(0, 1, True, "pick")]}, "made", {0: 3, 1: 4}, {0: TASK, 1: TASK})
    assert kinds(table, dataset(3, 3), allow=["unlabelled"]) == [("length mismatch", 1)]


def test_a_length_mismatch_names_its_likely_cause():
    table = make_table({0: [Segment(0, 1, True, "pick")]}, "made", {0: 4}, {0: TASK})
    with pytest.raises(LabelError, match=r"3 steps in the dataset, 4 in the labels \(no-op steps filtered out of one of the two only\?\)"):
        join_labels(table, dataset(3))


def test_a_table_must_know_the_episodes_of_its_segments():
    with pytest.raises(ValueError, match="must have every episode with segments"):
        make_table({0: [Segment(0, 1, True, "pick")]}, "made", {}, {})
    with pytest.raises(ValueError, match="columns of one length expected"):
        dataclasses.replace(make_table({}, "made", {}, {}), instruction=["pick"])


def test_overlaps_with_any_earlier_segment():
    segments = [Segment(0, 8, True, "long"), Segment(2, 3, True, "within"), Segment(5, 6, True, "within too"), Segment(9, 9, True, "after")]
    table = make_table({0: segments}, "made", {0: 10}, {0: TASK})
    assert kinds(table, dataset(10)) == [("overlap", 0)] * 2
