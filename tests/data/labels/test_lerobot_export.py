"""Labels written back as sub-tasks of LeRobot 3.0, into a copy."""

import itertools
import json

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from eosjax.data.labels import LabelError, Segment, export_lerobot, import_labels, make_table
from eosjax.data.lerobot.info import INFO
from eosjax.types import UserError
from tests.data.labels.builders import rows_of, tables
from tests.data.lerobot.builders import LENGTHS, TASKS, make_lerobot, write_parquet

PARTS = {0: [Segment(0, 2, True, "reach"), Segment(3, 4, True, "lift")], 2: [Segment(1, 3, True, "reach")]}


def table_of(parts, lengths=LENGTHS):
    chosen = {episode: lengths[episode] for episode in parts}
    return make_table(parts, "made", chosen, {episode: TASKS[episode % 2] for episode in parts})


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_has_the_labels_and_the_original_stays(tmp_path):
    source = make_lerobot(tmp_path / "made", kind="video")
    before = contents(source)
    export_lerobot(table_of(PARTS), source, tmp_path / "copy")
    assert contents(source) == before
    assert (tmp_path / "copy/videos").resolve() == source / "videos"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "made"]
    read = import_labels(tmp_path / "copy", "made")
    for episode in range(3):
        assert rows_of(read, episode) == [tuple(part) for part in PARTS.get(episode, ())]
    for path in sorted((source / "data").rglob("*.parquet")):
        copied = pq.read_table(tmp_path / "copy" / path.relative_to(source))
        assert copied.drop_columns("subtask_index").equals(pq.read_table(path))
    assert json.loads((tmp_path / "copy" / INFO).read_text())["features"]["subtask_index"]["dtype"] == "int64"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables(min_labelled=1))
def test_labels_of_every_step_come_back_or_are_refused(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("drawn")
    lengths = [table.lengths[episode] for episode in range(len(table.lengths))]
    source = make_lerobot(folder / "made", lengths=lengths, cameras=())
    unstorable = not table.is_end.all() or any(one == other for parts in _runs(table) for one, other in itertools.pairwise(parts))
    if unstorable:
        with pytest.raises(LabelError, match="wrong shape"):
            export_lerobot(table, source, folder / "copy")
        return
    export_lerobot(table, source, folder / "copy")
    read = import_labels(folder / "copy", "made")
    assert [_covered(read, episode) for episode in range(len(lengths))] == [_covered(table, episode) for episode in range(len(lengths))]


def _runs(table):
    """By episode, the text of each step where a sub-step begins, None for a step without one."""
    for episode in range(len(table.lengths)):
        starts = {first: text for first, *_, text in rows_of(table, episode)}
        covered = [text for text, _ in _covered(table, episode)]
        steps = [starts.get(step, None if text is None else "") for step, text in enumerate(covered)]
        yield [text or step for step, text in enumerate(steps) if text != ""]


def _covered(table, episode):
    """For each step its text and whether it is an end; None and False outside of all segments."""
    steps = [(None, False)] * table.lengths[episode]
    for first, last, is_end, text in rows_of(table, episode):
        steps[first : last + 1] = [(text, is_end and step == last) for step in range(first, last + 1)]
    return steps


def test_what_is_refused_leaves_nothing(tmp_path):
    source = make_lerobot(tmp_path / "made")
    target = tmp_path / "copy"
    cases = [
        ({0: [Segment(0, 2, False, "reach")]}, "steps 0 to 2: a sub-step without an end cannot be stored"),
        ({0: [Segment(0, 1, True, "reach"), Segment(2, 4, True, "reach")]}, "'reach' twice, the second time from step 2"),
        ({0: [Segment(0, 7, True, "reach")]}, "end outside the episode"),
    ]
    for parts, message in cases:
        with pytest.raises(LabelError, match=message):
            export_lerobot(table_of(parts), source, target)
    with pytest.raises(LabelError, match="length mismatch: episode 0: 5 frames in the dataset, 6 in the labels"):
        export_lerobot(table_of({0: [Segment(0, 2, True, "reach")]}, (6, 3, 4)), source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    with pytest.raises(UserError, match=r"made: exists; datasets are not overwritten"):
        export_lerobot(table_of(PARTS), source, source)
    write_parquet(source / "meta/subtasks.parquet", {"subtask_index": [0], "subtask": ["reach"]})
    with pytest.raises(UserError, match="the dataset has sub-steps already"):
        export_lerobot(table_of(PARTS), source, target)
    with pytest.raises(UserError, match=r"info.json: sub-steps are stored in version 3; convert the dataset with lerobot"):
        export_lerobot(table_of(PARTS), make_lerobot(tmp_path / "old", legacy=True), target)
