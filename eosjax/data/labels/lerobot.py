"""Format 3, LeRobot: sub-steps stored with the frames of a dataset folder: 3.0 as an index per frame, 3.1 as rows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eosjax.data.labels.files import read_batches, read_columns
from eosjax.data.labels.lerobot_folder import Dataset, frames_of, numbers_of, texts_by_index
from eosjax.data.labels.table import Problem, Segment, SegmentTable, make_table
from eosjax.fields import show

_LANGUAGE = "language_persistent"
_NO_ROWS = np.zeros(0, np.int64)


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
    texts = texts_by_index(dataset.root / "meta" / "subtasks.parquet", "subtask_index", "subtask")
    columns = read_columns(dataset.data_files, ["episode_index", "frame_index", "subtask_index"])
    frame, index = numbers_of(dataset.root, columns, "frame_index"), numbers_of(dataset.root, columns, "subtask_index", null=-1)
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
    frame = numbers_of(dataset.root, columns, "frame_index")
    # A frame whose time, at this fps, is nearer to another frame's.
    off = frames_of(numbers_of(dataset.root, columns, "timestamp", pa.float64()), dataset.fps) != frame
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


def _language_rows(dataset: Dataset) -> tuple[dict[int, list[dict[str, Any]]], set[int]]:
    """The rows of each episode, from its first frame, and the episodes in which another frame has different rows."""
    found: dict[int, list[dict[str, Any]]] = {}
    changing: set[int] = set()
    for file in dataset.data_files:
        for batch in read_batches(file, ["episode_index"], _LANGUAGE, ["style", "content", "timestamp"]):
            episode, rows = numbers_of(dataset.root, batch, "episode_index"), batch[_LANGUAGE]
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
    episode = numbers_of(dataset.root, columns, "episode_index")
    order = np.lexsort((numbers_of(dataset.root, columns, "frame_index"), episode))
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


def _no_column(column: str, dataset: Dataset) -> str:
    return f"expected the column {column} in data, found {', '.join(dataset.data_columns) or 'none'}"
