"""The folder of a LeRobot dataset: metadata of the episodes, and the columns of its files as numbers and texts.

Layout as in github.com/huggingface/lerobot: `meta/info.json`, `meta/episodes/chunk-*/file-*.parquet` (episode_index, length,
tasks), `data/chunk-*/file-*.parquet` (a row per frame). Only the columns of labels are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eosjax.data.labels.files import column_names, is_count, read_columns, read_json
from eosjax.data.labels.table import Problem, refused
from eosjax.data.lerobot.info import FASTEST, INFO_FIELDS
from eosjax.fields import check_fields, show
from eosjax.types import UserError

_LATEST = 2.0**31  # frame
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
        info = check_fields(info, INFO_FIELDS, path.name, UserError)
    except UserError as error:
        raise refused(path, "wrong shape", str(error)) from error
    version, fps = info.get("codebase_version"), info.get("fps")
    if not isinstance(version, str) or not version.startswith("v3."):
        raise refused(path, "wrong shape", f"codebase_version: expected v3, got {show(version)}; convert the dataset with lerobot")
    if not isinstance(fps, int | float) or not 0 < fps <= FASTEST:
        raise refused(path, "wrong shape", f"fps: expected a number above 0, got {show(fps)}")
    return float(fps)


def _tasks_of_frames(root: Path, data_files: Sequence[Path]) -> dict[int, list[str]]:
    """The tasks of each episode, by the `task_index` of its frames."""
    texts = texts_by_index(root / "meta" / "tasks.parquet", "task_index", "task")
    columns = read_columns(data_files, ["episode_index", "task_index"])
    episode, task = (numbers_of(root, columns, name).tolist() for name in ("episode_index", "task_index"))
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


def texts_by_index(path: Path, index: str, column: str) -> dict[int, str]:
    """The texts of a `column` by `index`; pandas writes an index without a name as the column `__index_level_0__`."""
    names = column_names(path)
    column = "__index_level_0__" if "__index_level_0__" in names and column not in names else column
    rows = [(row[index], row[column]) for row in read_columns([path], [index, column]).to_pylist()]
    if not all(is_count(number) and isinstance(text, str) for number, text in rows) or len(dict(rows)) != len(rows):
        raise refused(path, "wrong shape", f"expected one text for each {index}")
    return dict(rows)


def numbers_of(root: Path, columns: Any, name: str, type: pa.DataType = _WHOLE, null: int | None = None) -> np.ndarray:
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
