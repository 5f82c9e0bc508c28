"""Format 4, LeRobot SARM: lists of sub-steps in the columns `{sparse|dense}_subtask_*` of `meta/episodes`.

The boundaries are read as in SARM (lerobot, `rewards/sarm/sarm_utils.py`): the end frame belongs to its sub-step, and a
frame that is the end of one and the start of the next belongs to the earlier one. An end at the number of frames, which
SARM's annotator writes where the video ends, is the last frame.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eosjax.data.labels.files import read_columns
from eosjax.data.labels.lerobot import episode_table
from eosjax.data.labels.lerobot_folder import Dataset, frames_of
from eosjax.data.labels.table import Problem, Segment, SegmentTable
from eosjax.fields import show

_FIELDS = ("names", "start_frames", "end_frames", "start_times", "end_times")


def mismatch(content: Any, level: str) -> str | None:
    """Why what was read has no sub-steps of `level` ("sparse" or "dense"); None when it has."""
    if not isinstance(content, Dataset):
        return "expected a LeRobot folder"
    if "names" in _columns(content, level):
        return None
    return f"expected the column {level}_subtask_names in meta/episodes, found {', '.join(content.episode_columns)}"


def read_subtasks(source: object, dataset: Dataset, name: str, level: str) -> SegmentTable:
    """The table of the sub-steps of `level`. Frames take precedence over times, which are then only checked.

    Raises:
        LabelError: damaged files, missing columns. Faults within single episodes are kept in the table.
    """
    columns = _columns(dataset, level)
    needed = ("start_frames", "end_frames") if "start_frames" in columns else ("start_times", "end_times")
    wanted = {field: columns.get(field, f"{level}_subtask_{field}") for field in _FIELDS if field in columns or field in needed}
    rows = read_columns(dataset.episode_files, ["episode_index", *wanted.values()]).to_pylist()
    row_of = {row["episode_index"]: {field: row[column] for field, column in wanted.items()} for row in rows}
    return episode_table(source, dataset, lambda number, length: _segments(number, length, dataset.fps, row_of[number]))


def _columns(dataset: Dataset, level: str) -> dict[str, str]:
    """The columns that the files have, by field. In the older form with one level, the columns of `sparse` had no prefix."""
    prefixes = [f"{level}_subtask_", *(["subtask_"] if level == "sparse" else [])]
    prefix = next((prefix for prefix in prefixes if f"{prefix}names" in dataset.episode_columns), prefixes[0])
    return {field: prefix + field for field in _FIELDS if prefix + field in dataset.episode_columns}


def _segments(number: int, length: int, fps: float, row: dict[str, Any]) -> list[Segment] | Problem:
    """The segments of one episode; none when it is not annotated."""
    names = row["names"]
    if not names:
        return []
    if not isinstance(names, list) or not all(_fits(field, values, len(names)) for field, values in row.items()):
        return Problem("wrong shape", number, f"expected lists of one length ({', '.join(row)}), got {show(row)}")
    starts, ends = _frames(row, "start", fps), _frames(row, "end", fps)
    for side, frames in (("start", starts), ("end", ends)):
        if f"{side}_times" in row:
            exact = np.clip(row[f"{side}_times"], -1e9, 1e9) * fps
            off = np.flatnonzero(~(np.abs(exact - frames) <= 1.0))  # the annotator rounds down
            if len(off):
                what = f"{side} of {names[off[0]]!r}: frame {frames[off[0]]}, but {exact[off[0]] / fps:g} s at fps {fps:g}"
                return Problem("fps mismatch", number, what)
    segments, before = [], -1
    for text, start, end in zip(names, starts, ends, strict=True):
        first = start + 1 if start == before else start
        last = end - 1 if end == length else end
        segments.append(Segment(first, last, True, text))
        before = end
    return segments


def _fits(field: str, values: Any, count: int) -> bool:
    """Whether a list has `count` texts, whole numbers or finite numbers, depending on the field."""
    if not isinstance(values, list) or len(values) != count:
        return False
    if field == "names":
        return all(isinstance(value, str) for value in values)
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    return numbers and (field.endswith("_times") or all(value == int(value) for value in values))


def _frames(row: dict[str, Any], side: str, fps: float) -> list[int]:
    if f"{side}_frames" in row:
        return [int(frame) for frame in row[f"{side}_frames"]]
    return frames_of(row[f"{side}_times"], fps).tolist()
