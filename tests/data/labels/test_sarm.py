"""Format 4: the sub-steps of SARM in LeRobot's metadata."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eosjax.data.labels import LabelError, import_labels
from tests.data.labels.builders import dataset, ends_of, kinds, lerobot, rows_of, sarm, write_parquet

EPISODE = [("pick", 0, 3), ("place", 4, 9)]


def folder_of(path, lengths, columns, **options):
    return lerobot(path, lengths, episodes=columns, **options)


def test_the_end_frame_belongs_to_its_sub_step(tmp_path):
    table = import_labels(folder_of(tmp_path, [10], sarm(EPISODE)), "any")
    assert rows_of(table) == [(0, 3, True, "pick"), (4, 9, True, "place")]
    assert ends_of(table, dataset(10)) == [3, 9]


def test_a_frame_that_ends_one_and_starts_the_next_belongs_to_the_earlier(tmp_path):
    """As the annotator writes them: each end is the next start, and the last is the number of frames."""
    table = import_labels(folder_of(tmp_path, [10], sarm([("pick", 0, 4), ("place", 4, 10)])), "any")
    assert rows_of(table) == [(0, 4, True, "pick"), (5, 9, True, "place")]


def test_the_same_sub_step_twice_in_a_row_and_gaps(tmp_path):
    table = import_labels(folder_of(tmp_path, [10], sarm([("pick", 1, 2), ("pick", 3, 4), ("place", 7, 8)])), "any")
    assert rows_of(table) == [(1, 2, True, "pick"), (3, 4, True, "pick"), (7, 8, True, "place")]


def test_an_episode_that_is_not_annotated(tmp_path):
    table = import_labels(folder_of(tmp_path, [10, 5], sarm(EPISODE, None)), "any")
    assert kinds(table, dataset(10, 5)) == [("episode without labels", 1)]
    assert kinds(table, dataset(10, 6), allow=["unlabelled"]) == [("length mismatch", 1)]


def test_levels(tmp_path):
    columns = sarm([("task", 0, 9)]) | sarm(EPISODE, level="dense")
    folder = folder_of(tmp_path, [10], columns)
    assert len(rows_of(import_labels(folder, "any", "sarm-dense"))) == 2
    assert len(rows_of(import_labels(folder, "any", "sarm-sparse"))) == 1
    with pytest.raises(LabelError, match="more than one fits: sarm-sparse, sarm-dense; name the one to read"):
        import_labels(folder, "any")


def test_columns_without_level_are_sparse(tmp_path):
    assert len(rows_of(import_labels(folder_of(tmp_path, [10], sarm(EPISODE, level="")), "any"))) == 2


def test_times_alone_are_rounded_to_frames(tmp_path):
    columns = sarm(EPISODE) | {"sparse_subtask_start_times": [[0.0, 0.44]], "sparse_subtask_end_times": [[0.36, 0.85]]}
    del columns["sparse_subtask_start_frames"], columns["sparse_subtask_end_frames"]
    table = import_labels(folder_of(tmp_path, [10], columns), "any")
    assert rows_of(table) == [(0, 4, True, "pick"), (5, 9, True, "place")]


def test_times_of_the_same_fps_are_fine(tmp_path):
    columns = sarm(EPISODE, times=10)
    columns["sparse_subtask_end_times"][0][0] += 0.09  # the annotator rounds down
    assert len(rows_of(import_labels(folder_of(tmp_path, [10], columns), "any"))) == 2


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (sarm([("pick", 0, 5), ("place", 3, 9)]), "overlap"),
        (sarm([("pick", 0, 11)]), "end outside the episode"),
        (sarm([("pick", 5, 4)]), "empty segment"),
        (sarm([("pick", 0, 4), ("place", 4, 4)]), "empty segment"),  # all of it is the end of the other
        (sarm([("pick", 0, 3), ("place", 4, 9)], times=30), "fps mismatch"),
        (sarm(EPISODE) | {"sparse_subtask_end_frames": [[3]]}, "wrong shape"),
        (sarm(EPISODE) | {"sparse_subtask_end_frames": [None]}, "wrong shape"),
        (sarm(EPISODE) | {"sparse_subtask_end_frames": [[3, None]]}, "wrong shape"),
        (sarm(EPISODE) | {"sparse_subtask_end_frames": [[3.5, 9.0]]}, "wrong shape"),
        (sarm(EPISODE) | {"sparse_subtask_end_frames": [["3", "9"]]}, "wrong shape"),
        (sarm(EPISODE) | {"sparse_subtask_names": [[1, 2]]}, "wrong shape"),
        (sarm(EPISODE) | {"sparse_subtask_start_times": [[0.0, float("nan")]]}, "wrong shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, columns, expected):
    table = import_labels(folder_of(tmp_path, [10], columns), "any")
    assert kinds(table, dataset(10))[0] == (expected, 0)


def test_missing_columns(tmp_path):
    columns = sarm(EPISODE)
    del columns["sparse_subtask_end_frames"]
    with pytest.raises(LabelError, match=r"missing columns: expected sparse_subtask_end_frames; found .*sparse_subtask_names"):
        import_labels(folder_of(tmp_path, [10], columns), "any")


def test_a_file_without_any_annotation(tmp_path):
    """Its columns have no type of their own."""
    folder = folder_of(tmp_path, [10, 5], sarm(EPISODE, None))
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path)
    write_parquet(path.with_name("file-001.parquet"), pa.Table.from_pylist(rows.slice(1).to_pylist()))
    write_parquet(path, rows.slice(0, 1))
    assert kinds(import_labels(folder, "any"), dataset(10, 5)) == [("episode without labels", 1)]
