"""Format 3, LeRobot: sub-steps stored with the frames of a dataset folder: 3.0 as an index per frame, 3.1 as rows of text.

Layout as in github.com/huggingface/lerobot: `meta/info.json`, `meta/episodes/chunk-*/file-*.parquet` (episode_index, length,
tasks), `data/chunk-*/file-*.parquet` (a row per frame). Only the columns of labels are read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eosjax.data.labels.files import column_names, is_count, read_batches, read_columns, read_json
from eosjax.data.labels.table import Problem, Segment, SegmentTable, make_table, refused
from eosjax.fields import Field, check_fields, show, table
from eosjax.types import UserError

INFO = table(
    Field("codebase_version", "honoured", "v3: the layout of the folder"),
    Field("fps", "honoured", "frames per second: assigns times to frames"),
    Field(
        "data_path",
        "refused",
        "frames are looked for in data/*/*.parquet",
        accepts=("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", None),
    ),
    Field("features", "harmless", "the columns of the files themselves are read"),
    *(
        Field(name, "harmless", "for people, or about the making of the dataset")
        for name in (
            "robot_type total_episodes total_frames total_tasks total_videos total_chunks chunks_size data_files_size_in_mb "
            "video_files_size_in_mb splits video_path image_path audio_path"
        ).split()
    ),
)
_FASTEST = 1e6  # frames per second
_LATEST = 2.0**31  # frame
_LANGUAGE = "language_persistent"
_NO_ROWS = np.zeros(0, np.int64)
_WHOLE = pa.int64()


@dataclasses.dataclass(frozen=True, repr=False)
class Dataset:
    """Metadata of the episodes of a LeRobot folder. An episode with a problem is in `problems` only."""

    root: Path
    fps: float
    lengths: dict[int, int]
    tasks: dict[int, str]
    problems: list[Problem]
    episode_files: list[Path]
    episode_columns: list[str]
    data_files: list[Path]
    data_columns: list[str]

    def __repr__(self) -> str:
        return "the folder of a LeRobot dataset"


def open_dataset(root: Path) -> Dataset:
    """Reads the metadata of a LeRobot folder.

    Raises:
        LabelError: damaged or missing files, another version, no fps, a duplicate episode.
    """
    fps = _read_fps(root / "meta" / "info.json")
    episode_files = sorted(root.glob("meta/episodes/*/*.parquet"))
    if not episode_files:
        raise refused(root, "wrong shape", "expected meta/episodes/chunk-*/file-*.parquet (LeRobot 3.0), found none")
    data_files = sorted(root.glob("data/*/*.parquet"))
    episode_columns, data_columns = (column_names(files[0]) if files else [] for files in (episode_files, data_files))
    episodes = read_columns(episode_files, ["episode_index", "length"]).to_pylist()
    if not all(is_count(value) for row in episodes for value in row.values()):
        raise refused(root, "wrong shape", "meta/episodes: expected whole numbers episode_index and length")
    lengths = {row["episode_index"]: row["length"] for row in episodes}
    if len(lengths) != len(episodes):
        raise refused(root, "wrong shape", "meta/episodes: an episode_index is there twice")
    if "tasks" in episode_columns:
        named = {row["episode_index"]: row["tasks"] for row in read_columns(episode_files, ["episode_index", "tasks"]).to_pylist()}
    else:
        named = _tasks_of_frames(root, data_files)
    tasks = {number: named.get(number) for number in lengths}
    problems = [
        Problem("instruction mismatch", number, f"expected one task, got {show(texts)}")
        for number, texts in tasks.items()
        if not isinstance(texts, list) or len(texts) != 1 or not isinstance(texts[0], str)
    ]
    wrong = {problem.episode for problem in problems}
    return Dataset(
        root=root,
        fps=fps,
        lengths={number: length for number, length in lengths.items() if number not in wrong},
        tasks={number: texts[0] for number, texts in tasks.items() if texts and number not in wrong},
        problems=problems,
        episode_files=episode_files,
        episode_columns=episode_columns,
        data_files=data_files,
        data_columns=data_columns,
    )


def _read_fps(path: Path) -> float:
    """Frames per second, of an `info.json` whose other fields are checked."""
    info = read_json(path)
    try:
        info = check_fields(info, INFO, path.name, UserError)
    except UserError as error:
        raise refused(path, "wrong shape", str(error)) from error
    version, fps = info.get("codebase_version"), info.get("fps")
    if not isinstance(version, str) or not version.startswith("v3."):
        raise refused(path, "wrong shape", f"codebase_version: expected v3, got {show(version)}; convert the dataset with lerobot")
    if not isinstance(fps, int | float) or not 0 < fps <= _FASTEST:
        raise refused(path, "wrong shape", f"fps: expected a number above 0, got {show(fps)}")
    return float(fps)


def _tasks_of_frames(root: Path, data_files: Sequence[Path]) -> dict[int, list[str]]:
    """The tasks of each episode, by the `task_index` of its frames."""
    texts = _texts(root / "meta" / "tasks.parquet", "task_index", "task")
    columns = read_columns(data_files, ["episode_index", "task_index"])
    episode, task = (_numbers(root, columns, name).tolist() for name in ("episode_index", "task_index"))
    found: dict[int, list[str]] = {}
    for number, index in dict.fromkeys(zip(episode, task, strict=True)):
        if index not in texts:
            raise refused(root, "wrong shape", f"data: task_index {index} is not in meta/tasks.parquet")
        found.setdefault(number, []).append(texts[index])
    return found


def frames_of(times: Any, fps: float) -> np.ndarray:
    """i64: the frame nearest to each time (seconds since the episode's first frame); halves go up.

    Times are often stored as float32, so a difference below 1/1000 of a frame is ignored. A time that no episode has, or NaN, becomes
    a frame that no episode has.
    """
    frames = np.clip(np.nan_to_num(np.asarray(times, np.float64), nan=-_LATEST) * fps, -_LATEST, _LATEST)
    return np.floor(np.round(frames, 3) + 0.5).astype(np.int64)


def index_mismatch(content: Any) -> str | None:
    """Why what was read has no labels of format 3.0; None when it has."""
    if not isinstance(content, Dataset):
        return "expected a LeRobot folder"
    if not (content.root / "meta" / "subtasks.parquet").exists():
        return "expected meta/subtasks.parquet, found none"
    return None if "subtask_index" in content.data_columns else _no_column("subtask_index", content)


def language_mismatch(content: Any) -> str | None:
    """Why what was read has no labels of format 3.1; None when it has."""
    if not isinstance(content, Dataset):
        return "expected a LeRobot folder"
    return None if _LANGUAGE in content.data_columns else _no_column(_LANGUAGE, content)


def read_indices(source: object, dataset: Dataset, name: str) -> SegmentTable:
    """The table from one `subtask_index` per frame (3.0): a sub-step ends where the index changes, and at the last frame.

    An index of -1 or null is a frame without a sub-step. Two consecutive sub-steps with the same text become one.

    Raises:
        LabelError: damaged files, missing columns. Faults within single episodes are kept in the table.
    """
    texts = _texts(dataset.root / "meta" / "subtasks.parquet", "subtask_index", "subtask")
    columns = read_columns(dataset.data_files, ["episode_index", "frame_index", "subtask_index"])
    frame, index = _numbers(dataset.root, columns, "frame_index"), _numbers(dataset.root, columns, "subtask_index", null=-1)
    rows_of = _rows_of_episodes(dataset, columns)

    def read(number: int, length: int) -> list[Segment] | Problem:
        rows = rows_of.get(number, _NO_ROWS)
        if wrong := _frames_problem(number, length, frame[rows]):
            return wrong
        segments = []
        for run in _runs(index[rows]):
            key = int(index[rows[run[0]]])
            if key != -1 and key not in texts:
                return Problem("unknown sub-step", number, f"frame {run[0]}: subtask_index {key} is not in meta/subtasks.parquet")
            if key != -1:
                segments.append(Segment(int(run[0]), int(run[-1]), True, texts[key]))
        return segments

    return episode_table(source, dataset, read, _strays(dataset, rows_of))


def read_language(source: object, dataset: Dataset, name: str) -> SegmentTable:
    """The table of the rows `language_persistent` of style `subtask` (3.1).

    A row is valid from its time on. A sub-step ends at the frame before the next one begins, or at the last frame of the episode.

    Raises:
        LabelError: damaged files, missing columns. Faults within single episodes are kept in the table.
    """
    columns = read_columns(dataset.data_files, ["episode_index", "frame_index", "timestamp"])
    frame = _numbers(dataset.root, columns, "frame_index")
    # A frame whose time, at this fps, is nearer to another frame's.
    off = frames_of(_numbers(dataset.root, columns, "timestamp", pa.float64()), dataset.fps) != frame
    rows_of = _rows_of_episodes(dataset, columns)
    texts, changing = _language_rows(dataset)

    def read(number: int, length: int) -> list[Segment] | Problem:
        rows = rows_of.get(number, _NO_ROWS)
        if wrong := _frames_problem(number, length, frame[rows]):
            return wrong
        if off[rows].any():
            return Problem("fps mismatch", number, f"the timestamps of the frames do not go with fps {dataset.fps:g} of meta/info.json")
        if number in changing:
            return Problem("wrong shape", number, f"{_LANGUAGE}: expected the same rows at every frame of the episode")
        return _spans(number, length, dataset.fps, [row for row in texts.get(number, ()) if row["style"] == "subtask"])

    return episode_table(source, dataset, read, _strays(dataset, rows_of))


def episode_table(
    source: object, dataset: Dataset, read: Callable[[int, int], list[Segment] | Problem], problems: Sequence[Problem] = ()
) -> SegmentTable:
    """The table of `read(episode, length)` over the episodes of a dataset, with its problems and the `problems` besides."""
    results = {number: read(number, length) for number, length in dataset.lengths.items()}
    segments = {number: result for number, result in results.items() if not isinstance(result, Problem)}
    found = [*dataset.problems, *problems, *(result for result in results.values() if isinstance(result, Problem))]
    lengths = {number: dataset.lengths[number] for number in segments}
    return make_table(segments, source, lengths, {number: dataset.tasks[number] for number in segments}, found)


def _spans(number: int, length: int, fps: float, rows: list[dict[str, Any]]) -> list[Segment] | Problem:
    """The segments of an episode's rows of style `subtask`."""
    unfit = next((row for row in rows if not (isinstance(row["content"], str) and _is_time(row["timestamp"]))), None)
    if unfit:
        return Problem("wrong shape", number, f"{_LANGUAGE}: expected content and timestamp of a subtask, got {show(unfit)}")
    rows = sorted(rows, key=lambda row: row["timestamp"])
    starts = frames_of([row["timestamp"] for row in rows], fps).tolist()
    for row, start, before in zip(rows, starts, [None, *starts], strict=False):
        if start == before:
            return Problem("overlap", number, f"{row['content']!r} begins at frame {start}, as the sub-step before it does")
        if not 0 <= start < length:
            what = f"{row['content']!r} begins at {row['timestamp']:g} s: frame {start} at fps {fps:g}, in an episode of {length} frames"
            return Problem("end outside the episode", number, what)
    lasts = [start - 1 for start in starts[1:]] + [length - 1]
    return [Segment(first, last, True, row["content"]) for first, last, row in zip(starts, lasts, rows, strict=False)]


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _texts(path: Path, index: str, column: str) -> dict[int, str]:
    """The texts of a `column` by `index`; pandas writes an index without a name as the column `__index_level_0__`."""
    names = column_names(path)
    column = "__index_level_0__" if "__index_level_0__" in names and column not in names else column
    rows = [(row[index], row[column]) for row in read_columns([path], [index, column]).to_pylist()]
    if not all(is_count(number) and isinstance(text, str) for number, text in rows) or len(dict(rows)) != len(rows):
        raise refused(path, "wrong shape", f"expected one text for each {index}")
    return dict(rows)


def _language_rows(dataset: Dataset) -> tuple[dict[int, list[dict[str, Any]]], set[int]]:
    """The rows of each episode, from its first frame, and the episodes in which another frame has different rows."""
    found: dict[int, list[dict[str, Any]]] = {}
    changing: set[int] = set()
    for file in dataset.data_files:
        for batch in read_batches(file, ["episode_index"], _LANGUAGE, ["style", "content", "timestamp"]):
            episode, rows = _numbers(dataset.root, batch, "episode_index"), batch[_LANGUAGE]
            for run in _runs(episode):
                number, part = int(episode[run[0]]), rows.slice(run[0], len(run))
                first = [row for row in part[0].as_py() or [] if row is not None]
                # Compared as texts, in which NaN is the same as NaN.
                if repr(found.setdefault(number, first)) != repr(first) or not _all_same(part):
                    changing.add(number)
    return found, changing


def _all_same(rows: pa.Array) -> bool:
    """Whether every frame has the rows of the first one."""
    if rows.equals(rows.take(pa.array(np.zeros(len(rows), np.int64)))):
        return True
    return len(set(map(repr, rows.to_pylist()))) == 1  # slow, but NaN is the same as NaN


def _rows_of_episodes(dataset: Dataset, columns: pa.Table) -> dict[int, np.ndarray]:
    """The rows of each episode, in the order of its frames."""
    episode = _numbers(dataset.root, columns, "episode_index")
    order = np.lexsort((_numbers(dataset.root, columns, "frame_index"), episode))
    return {int(episode[order[run[0]]]): order[run] for run in _runs(episode[order])}


def _strays(dataset: Dataset, rows_of: dict[int, np.ndarray]) -> list[Problem]:
    """Episodes that have frames but no entry in `meta/episodes`."""
    known = {*dataset.lengths, *(problem.episode for problem in dataset.problems)}
    return [Problem("labels without episode", number, "in data, not in meta/episodes") for number in rows_of if number not in known]


def _runs(values: np.ndarray) -> list[np.ndarray]:
    """The indices of the values, split where one differs from the one before it."""
    indices = np.arange(len(values))
    return np.split(indices, np.flatnonzero(np.diff(values)) + 1) if len(values) else []


def _frames_problem(number: int, length: int, frames: np.ndarray) -> Problem | None:
    """The problem if the frames of an episode in `data` are not 0 to length - 1."""
    if np.array_equal(frames, np.arange(length)):
        return None
    span = f", from {frames[0]} to {frames[-1]}" if len(frames) else ""
    return Problem("length mismatch", number, f"{length} frames in meta/episodes, {len(frames)} in data{span}")


def _numbers(root: Path, columns: Any, name: str, type: pa.DataType = _WHOLE, null: int | None = None) -> np.ndarray:
    """A column of `data` as i64 (or another `type`), which pandas may have kept as floats; `null` stands for a missing value.

    `columns` is a table or a record batch.
    """
    try:
        column = columns[name] if null is None else pc.fill_null(columns[name], null)
        if column.null_count:
            raise pa.ArrowInvalid(f"{column.null_count} values are missing")
        return column.cast(type).to_numpy()
    except pa.ArrowException as error:
        raise refused(root / "data", "wrong shape", f"column {name}: expected numbers ({type}): {error}") from error


def _no_column(column: str, dataset: Dataset) -> str:
    return f"expected the column {column} in data, found {', '.join(dataset.data_columns) or 'none'}"
