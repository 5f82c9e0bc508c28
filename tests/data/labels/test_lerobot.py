"""Format 3: LeRobot 3.0 and 3.1."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.labels import LabelError, import_labels, join_labels
from eosjax.data.labels.lerobot_folder import frames_of
from tests.data.labels.builders import dataset, ends_of, kinds, language, lerobot, rows_of, write_parquet

TEXTS = ["pick", "place", "lift"]


def indexed(folder, *episodes, index=None, **options):
    """A 3.0 folder: the subtask_index of every frame of every episode."""
    flat = np.concatenate([np.array(episode) for episode in episodes]) if index is None else index
    return lerobot(folder, [len(episode) for episode in episodes], data={"subtask_index": flat}, **{"subtasks": TEXTS} | options)


def spoken(folder, lengths, *episodes, **options):
    """A 3.1 folder: the (time, content) of every sub-step of every episode."""
    return lerobot(folder, lengths, data=language(lengths, *episodes), **options)


def test_an_end_is_where_the_index_changes_and_at_the_last_frame(tmp_path):
    table = import_labels(indexed(tmp_path, [0, 0, 1, 1, 1], [1, 0, 0], [2]), "any")
    assert rows_of(table, 0) == [(0, 1, True, "pick"), (2, 4, True, "place")]
    assert rows_of(table, 1) == [(0, 0, True, "place"), (1, 2, True, "pick")]
    assert ends_of(table, dataset(5, 3, 1)) == [1, 4, 5, 7, 8]


def test_frames_without_index_have_no_sub_step(tmp_path):
    table = import_labels(indexed(tmp_path, [-1, 0, 0, -1, 1, -1], [-1, -1]), "any")
    assert rows_of(table, 0) == [(1, 2, True, "pick"), (4, 4, True, "place")]
    assert kinds(table, dataset(6, 2)) == [("episode without labels", 1)]


def test_missing_indices_kept_as_floats(tmp_path):
    index = pa.array([None, 1.0, 1.0], pa.float64())
    assert rows_of(import_labels(indexed(tmp_path, [0, 0, 0], index=index), "any")) == [(1, 2, True, "place")]


def test_one_sub_step_twice_in_a_row_is_one_in_3_0(tmp_path):
    """The format cannot tell; 3.1 can."""
    assert rows_of(import_labels(indexed(tmp_path, [0, 0, 0, 0]), "any")) == [(0, 3, True, "pick")]


def test_texts_in_the_index_of_pandas(tmp_path):
    folder = indexed(tmp_path, [1, 1, 0], subtasks=None)
    write_parquet(folder / "meta/subtasks.parquet", {"subtask_index": [1, 0], "__index_level_0__": ["late", "early"]})
    assert rows_of(import_labels(folder, "any")) == [(0, 1, True, "late"), (2, 2, True, "early")]


def test_frames_in_any_order(tmp_path):
    folder = indexed(tmp_path, [0, 0, 1], [1, 0])
    path = folder / "data/chunk-000/file-000.parquet"
    shuffled = pq.read_table(path).take([4, 2, 0, 3, 1])
    pq.write_table(shuffled, path)
    table = import_labels(folder, "any")
    assert rows_of(table, 0) == [(0, 1, True, "pick"), (2, 2, True, "place")]
    assert rows_of(table, 1) == [(0, 0, True, "place"), (1, 1, True, "pick")]


def test_an_index_without_text(tmp_path):
    assert kinds(import_labels(indexed(tmp_path, [0, 7], [0]), "any"), dataset(2, 1)) == [("unknown sub-step", 0)]


def test_frames_that_are_missing(tmp_path):
    folder = indexed(tmp_path, [0, 0, 1], [1, 0])
    path = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).take([0, 2, 3, 4]), path)
    table = import_labels(folder, "any")
    assert kinds(table, dataset(3, 2)) == [("length mismatch", 0)]
    assert "3 frames in meta/episodes, 2 in data, from 0 to 2" in table.problems[0].what


def test_frames_of_an_episode_without_metadata(tmp_path):
    folder = indexed(tmp_path, [0, 0], [1])
    meta = folder / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(meta).slice(0, 1), meta)
    assert kinds(import_labels(folder, "any"), dataset(2)) == [("labels without episode", 1)]


def test_length_and_task_are_those_of_the_metadata(tmp_path):
    table = import_labels(indexed(tmp_path, [0, 0], [0], tasks=["Lift it", "open it"]), "any")
    assert kinds(table, dataset(2, 2, tasks=["lift it", "close it"])) == [("length mismatch", 1), ("instruction mismatch", 1)]


def test_several_tasks_in_one_episode(tmp_path):
    folder = indexed(tmp_path, [0, 0], [0], episodes={"tasks": [["a", "b"], ["c"]]})
    assert kinds(import_labels(folder, "any"), dataset(2, 1, tasks=["a", "c"])) == [("instruction mismatch", 0)]


def test_a_sub_step_lasts_to_the_frame_before_the_next(tmp_path):
    folder = spoken(tmp_path, [8, 3], [(0.0, "pick"), (0.4, "place")], [(0.0, "lift")])
    table = import_labels(folder, "any")
    assert rows_of(table, 0) == [(0, 3, True, "pick"), (4, 7, True, "place")]
    assert rows_of(table, 1) == [(0, 2, True, "lift")]
    assert ends_of(table, dataset(8, 3)) == [3, 7, 10]


def test_the_same_sub_step_twice_in_a_row_in_3_1(tmp_path):
    table = import_labels(spoken(tmp_path, [6], [(0.3, "pick"), (0.0, "pick")]), "any")
    assert rows_of(table) == [(0, 2, True, "pick"), (3, 5, True, "pick")]


def test_partial_cover_in_3_1(tmp_path):
    folder = spoken(tmp_path, [6, 2], [(0.2, "pick")], [])
    table = import_labels(folder, "any")
    assert rows_of(table, 0) == [(2, 5, True, "pick")]
    assert kinds(table, dataset(6, 2)) == [("episode without labels", 1)]


def test_rows_of_other_styles_are_no_sub_steps(tmp_path):
    rows = [(0.0, "first pick, then place", "plan"), (0.0, "pick"), (0.2, "picked it", "memory"), (0.3, "place")]
    assert rows_of(import_labels(spoken(tmp_path, [5], rows), "any")) == [(0, 2, True, "pick"), (3, 4, True, "place")]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from([10, 20, 29.97, 30, 50, 15]), st.integers(0, 30_000), st.sampled_from([np.float32, np.float64]))
def test_the_time_of_a_frame_is_that_frame(fps, frame, dtype):
    assert frames_of([dtype(frame / fps)], fps).tolist() == [frame]


def test_times_between_frames_go_to_the_nearest_and_halves_up():
    times = np.array([0.14, 0.15, 0.25, 0.16, 0.35], np.float32)  # 0.15 and 0.35 are a bit less in float32
    assert frames_of(times, 10).tolist() == [1, 2, 3, 2, 4]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([(0.0, "pick"), (0.8, "place")], "end outside the episode"),  # frame 8 of 8
        ([(-0.1, "pick")], "end outside the episode"),
        ([(0.0, "pick"), (0.31, "place"), (0.29, "lift")], "overlap"),  # both are frame 3
        ([(0.0, None)], "wrong shape"),
        ([(float("nan"), "pick")], "wrong shape"),
    ],
)
def test_rows_that_fit_no_frame(tmp_path, rows, kind):
    assert kinds(import_labels(spoken(tmp_path, [8], rows), "any"), dataset(8)) == [(kind, 0)]


def test_an_fps_that_the_frames_do_not_have(tmp_path):
    folder = spoken(tmp_path, [8, 1], [(0.0, "pick"), (0.4, "place")], [(0.0, "pick")])
    (folder / "meta/info.json").write_text(json.dumps({"codebase_version": "v3.0", "fps": 20}))
    assert kinds(import_labels(folder, "any"), dataset(8, 1)) == [("fps mismatch", 0)]


def test_rows_that_change_within_an_episode(tmp_path):
    lengths = [3, 2]
    rows = language(lengths, [(0.0, "pick")], [(0.0, "pick")])["language_persistent"].to_pylist()
    rows[1] = [rows[1][0] | {"content": "place"}]
    folder = lerobot(tmp_path, lengths, data={"language_persistent": pa.array(rows)})
    assert kinds(import_labels(folder, "any"), dataset(3, 2)) == [("wrong shape", 0)]


@pytest.mark.parametrize("times", [["0", "x"], [0.0, None]])
def test_frames_without_times(tmp_path, times):
    folder = spoken(tmp_path, [2], [(0.0, "pick")])
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", pa.array(times)), path)
    with pytest.raises(LabelError, match="column timestamp: expected numbers .double."):
        import_labels(folder, "any")


def test_a_file_without_any_row(tmp_path):
    folder = spoken(tmp_path, [2, 2, 2], [(0.0, "pick")], [(0.0, "place")], [])
    path = folder / "data/chunk-000/file-001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("language_persistent"), "language_persistent", pa.array([[], []])), path)
    assert kinds(import_labels(folder, "any"), dataset(2, 2, 2)) == [("episode without labels", 2)]


@pytest.mark.parametrize(
    ("file", "columns", "message"),
    [
        ("meta/subtasks.parquet", {"subtask": ["a"]}, "missing columns: expected subtask_index; found subtask"),
        ("meta/subtasks.parquet", {"subtask_index": [0, 0], "subtask": ["a", "b"]}, "expected one text for each subtask_index"),
        (
            "data/chunk-000/file-000.parquet",
            {"subtask_index": [0]},
            "expected episode_index, frame_index; found subtask_index",
        ),
        (
            "meta/episodes/chunk-000/file-000.parquet",
            {"episode_index": [0]},
            "expected length; found episode_index",
        ),
        (
            "meta/episodes/chunk-000/file-000.parquet",
            {"episode_index": [0, 0], "length": [1, 1], "tasks": [["a"], ["a"]]},
            "an episode_index is there twice",
        ),
        (
            "meta/episodes/chunk-000/file-000.parquet",
            {"episode_index": [0], "length": [None], "tasks": [["a"]]},
            "expected whole numbers",
        ),
        (
            "data/chunk-000/file-000.parquet",
            {"episode_index": [0, 0], "frame_index": [0, 1], "subtask_index": [0.5, 1.0]},
            "column subtask_index: expected numbers .int64.",
        ),
    ],
)
def test_files_of_another_shape(tmp_path, file, columns, message):
    folder = indexed(tmp_path, [0, 1])
    write_parquet(folder / file, columns)
    with pytest.raises(LabelError, match=rf"(?s)^{folder}.*{message}"):
        import_labels(folder, "any")


@pytest.mark.parametrize("file", ["meta/subtasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"])
@pytest.mark.parametrize("keep", [0, 3, 0.6])
def test_damaged_files(tmp_path, file, keep):
    path = indexed(tmp_path, [0, 1]) / file
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(LabelError, match=rf"(?s){path}.*unreadable file: expected a Parquet file"):
        import_labels(tmp_path, "any")


def test_damage_within_a_file(tmp_path):
    """The end of the file, which is read first, is whole; the values are not."""
    path = indexed(tmp_path, np.random.default_rng(0).integers(0, 3, 4000)) / "data/chunk-000/file-000.parquet"
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(LabelError, match=rf"(?s){path}.*unreadable file: expected a Parquet file"):
        import_labels(tmp_path, "any")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"fps": None}, "fps: expected a number above 0, got None"),
        ({"fps": 0}, "fps: expected a number above 0, got 0"),
        ({"fps": "10"}, "fps: expected a number above 0, got '10'"),
        ({"fps": float("inf")}, "fps: expected a number above 0, got inf"),
        ({"fps": 10**400}, "fps: expected a number above 0, got 10000"),
        ({"codebase_version": "v2.1"}, "codebase_version: expected v3, got 'v2.1'; convert the dataset with lerobot"),
        ({"data_path": "../other/{chunk_index}.parquet"}, "data_path: expected 'data/chunk-.* or None, got '../other"),
        ({"frame_rate": 20}, "frame_rate: unknown field"),
    ],
)
def test_faulty_info_is_named(tmp_path, info, message):
    folder = indexed(tmp_path, [0])
    (folder / "meta/info.json").write_text(json.dumps({"codebase_version": "v3.0", "fps": 10} | info))
    with pytest.raises(LabelError, match=f"(?s){folder}/meta/info.json.*{message}"):
        import_labels(folder, "any")


def test_the_info_that_lerobot_writes(tmp_path):
    folder = indexed(tmp_path, [0])
    info = {
        "codebase_version": "v3.0", "robot_type": "so100_follower", "total_episodes": 1, "total_frames": 1, "total_tasks": 1,
        "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": 10, "splits": {"train": "0:1"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "features": {},
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }  # fmt: skip
    (folder / "meta/info.json").write_bytes(json.dumps(info).encode("utf-8-sig"))
    assert import_labels(folder, "any").lengths == {0: 1}


def without_tasks(folder, tasks, index, column="task"):
    """The folder without the tasks of the episodes, but with those of the frames."""
    meta = folder / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(meta).drop_columns(["tasks"]), meta)
    data = folder / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(data).append_column("task_index", pa.array(index)), data)
    write_parquet(folder / "meta/tasks.parquet", {"task_index": list(range(len(tasks))), column: tasks})
    return folder


@pytest.mark.parametrize("column", ["task", "__index_level_0__"])
def test_tasks_of_the_frames_where_the_episodes_have_none(tmp_path, column):
    folder = without_tasks(indexed(tmp_path, [0, 0], [1]), ["open it", "lift it"], [1, 1, 0], column)
    assert import_labels(folder, "any").tasks == {0: "lift it", 1: "open it"}


def test_frames_of_several_tasks_or_an_unknown_one(tmp_path):
    folder = without_tasks(indexed(tmp_path, [0, 0], [1]), ["open it", "lift it"], [1, 0, 0])
    assert kinds(import_labels(folder, "any"), dataset(2, 1, tasks=["", "open it"])) == [("instruction mismatch", 0), ("blank task", 0)]
    write_parquet(folder / "meta/tasks.parquet", {"task_index": [0], "task": ["open it"]})
    with pytest.raises(LabelError, match="task_index 1 is not in meta/tasks.parquet"):
        import_labels(folder, "any")


def test_nan_in_a_row_of_another_style(tmp_path):
    folder = spoken(tmp_path, [3], [(float("nan"), "a plan", "plan"), (0.0, "pick")])
    assert rows_of(import_labels(folder, "any")) == [(0, 2, True, "pick")]


@pytest.mark.parametrize(
    "column", [["a", "b"], [{"style": "subtask"}] * 2, [["subtask"]] * 2, [[{"style": 1, "content": 2, "timestamp": "x"}]] * 2]
)
def test_a_language_column_of_another_kind(tmp_path, column):
    folder = lerobot(tmp_path, [2], data={"language_persistent": pa.array(column)})
    with pytest.raises(LabelError):
        join_labels(import_labels(folder, "any"), dataset(2))


def test_texts_that_are_no_utf8(tmp_path):
    folder = indexed(tmp_path, [0], subtasks=None)
    text = pa.array([b"pick \xff"]).view(pa.string())
    write_parquet(folder / "meta/subtasks.parquet", pa.table({"subtask_index": [0], "subtask": text}))
    with pytest.raises(LabelError, match=r"(?s)subtasks.parquet.*Invalid UTF8"):
        import_labels(folder, "any")
