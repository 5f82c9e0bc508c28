"""The exporter to format 1."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.labels import LabelError, Problem, Segment, canonical, export_labels, import_labels, join_labels, make_table
from eosjax.names import is_blank
from eosjax.types import UserError
from tests.data.labels.builders import TASK, cyclevla, dataset_of, kinds, lerobot, rows_of, steps_of, tables


def same(one, other):
    """Two tables say the same, wherever they come from."""
    for column in ("episode", "segment", "first", "last", "is_end"):
        np.testing.assert_array_equal(getattr(one, column), getattr(other, column), column)
    assert one.instruction == other.instruction
    assert (one.lengths, one.tasks, one.problems) == (other.lengths, other.tasks, other.problems)


def there_and_back(folder, table, suite="libero_goal"):
    path = folder / "out.json"
    path.unlink(missing_ok=True)
    export_labels(table, suite, path)
    return import_labels(path, suite)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@settings(deadline=None, derandomize=True, max_examples=80)
@given(tables())
def test_import_after_export_is_the_canonical_table(folder, table):
    same(there_and_back(folder, table), canonical(table))


@settings(deadline=None, derandomize=True, max_examples=80)
@given(tables())
def test_import_after_export_is_the_identity_on_canonical_tables(folder, table):
    table = canonical(table)
    same(canonical(table), table)
    same(there_and_back(folder, table), table)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(tables(min_labelled=1))
def test_training_sees_the_same(folder, table):
    store = dataset_of(table)
    before = join_labels(table, store, allow=["unlabelled"])
    after = join_labels(there_and_back(folder, table), store, allow=["unlabelled"])
    assert before.instructions == after.instructions
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(tables())
def test_the_canonical_table_says_the_same_of_every_step(table):
    for episode in table.lengths:
        assert steps_of(canonical(table), episode) == steps_of(table, episode)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.dictionaries(st.integers(0, 5), st.text(), min_size=1), st.text().filter(lambda text: not is_blank(text)), st.text(min_size=1))
def test_any_text_survives(folder, tasks, instruction, suite):
    segments = {episode: [Segment(0, 1, True, instruction)] for episode in tasks}
    table = make_table(segments, "drawn", dict.fromkeys(tasks, 2), tasks)
    same(there_and_back(folder, table, suite), canonical(table))


def test_a_gap_is_a_segment_of_the_task_but_not_before_the_first():
    table = make_table({0: [Segment(5, 6, True, "place"), Segment(1, 2, True, "pick")]}, "made", {0: 9}, {0: "Put It"})
    assert rows_of(canonical(table)) == [(1, 2, True, "pick"), (3, 4, False, "put it"), (5, 6, True, "place"), (7, 8, False, "put it")]


def test_neighbours_without_an_end_between_them_are_one():
    segments = [Segment(0, 1, False, "pick"), Segment(2, 3, True, "pick"), Segment(4, 4, True, "pick"), Segment(5, 6, False, "lift")]
    table = make_table({0: segments}, "made", {0: 7}, {0: TASK})
    assert rows_of(canonical(table)) == [(0, 3, True, "pick"), (4, 4, True, "pick"), (5, 6, False, "lift")]


def test_the_file_is_of_format_1(tmp_path):
    path = tmp_path / "out.json"
    export_labels(make_table({3: [Segment(1, 2, True, "pick")]}, "made", {3: 3, 4: 1}, {3: TASK, 4: TASK}), "libero_goal", path)
    entries = [{"timestep": step, "APD_step": "pick", "is_substep_end": step == 2} for step in (1, 2)]
    episodes = {
        "episode_3": {"instruction": TASK, "total_timesteps": 3, "timestep_labels": entries},
        "episode_4": {"instruction": TASK, "total_timesteps": 1, "timestep_labels": []},
    }
    assert json.loads(path.read_text()) == {"libero_goal": {"put_the_bowl_on_the_plate": episodes}}
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("precious")
    with pytest.raises(UserError, match=r"out.json: exists; label files are not overwritten"):
        export_labels(make_table({}, "made", {}, {}), "libero_goal", path)
    assert path.read_text() == "precious"


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_labels(make_table({}, "made", {}, {}), "libero_goal", tmp_path / "out.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("segments", "problems", "kind"),
    [
        ([Segment(0, 4, True, "pick")], (), "end outside the episode"),
        ([Segment(-1, 2, True, "pick")], (), "end outside the episode"),
        ([Segment(0, 2, True, "pick"), Segment(2, 3, True, "place")], (), "overlap"),
        ([Segment(3, 2, True, "pick")], (), "empty segment"),
        ([Segment(0, 2, True, "pick")], [Problem("wrong shape", 1, "broken")], "wrong shape"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, segments, problems, kind):
    table = make_table({0: segments}, "made", {0: 4}, {0: TASK}, problems)
    with pytest.raises(LabelError, match=f"made: labels refused: 1 x {kind}"):
        export_labels(table, "libero_goal", tmp_path / "out.json")
    assert not list(tmp_path.iterdir())


def test_other_formats_become_format_1(tmp_path):
    (tmp_path / "0.json").write_text(json.dumps(cyclevla(0, 9, (0, 2, "pick"), (3, 4, None), (5, 7, "place"))))
    table = there_and_back(tmp_path, import_labels(tmp_path, "any"))
    assert rows_of(table) == [(0, 2, True, "pick"), (3, 4, False, TASK), (5, 7, True, "place"), (8, 8, False, TASK)]
    folder = lerobot(tmp_path / "lerobot", [3, 2], data={"subtask_index": [0, 1, -1, -1, -1]}, subtasks=["pick", "place"])
    table = there_and_back(tmp_path, import_labels(folder, "any"))
    assert rows_of(table) == [(0, 0, True, "pick"), (1, 1, True, "place"), (2, 2, False, TASK)]
    assert kinds(table, dataset_of(table)) == [("episode without labels", 1)]
