"""What the metadata of a LeRobot dataset say of its episodes: lengths, tasks, and the files that they are in.

Only the columns that are needed are read, as arrays: 50,000 episodes take some megabytes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eosjax.data.episode import DatasetError
from eosjax.data.lerobot.info import DATA_PATH, INFO, LEGACY_DATA_PATH, LEGACY_VIDEO_PATH, VIDEO_PATH, Info
from eosjax.data.lerobot.tables import parquet_faults, read_columns, read_json_lines
from eosjax.fields import show

_LARGEST = 2**40
_LONGEST = 1e9  # seconds


class Videos(NamedTuple):
    """Where the episodes are in the videos of one camera."""

    chunk: np.ndarray  # i64 [E]
    file: np.ndarray  # i64 [E]
    start: np.ndarray  # f64 [E]: time of the first frame, in seconds


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeTable:
    """The E episodes of a dataset in their own order.

    Attributes:
        info: of the dataset.
        length: i64 [E], frames of each episode.
        chunk, file: i64 [E], the numbers in the name of its data file.
        row: i64 [E], its first row there.
        videos: by camera.
        tasks: text of each task by its `task_index`.
    """

    info: Info
    length: np.ndarray
    chunk: np.ndarray
    file: np.ndarray
    row: np.ndarray
    videos: dict[str, Videos]
    tasks: dict[int, str]

    def data_file(self, episode: int) -> Path:
        """The Parquet file with the frames of an episode."""
        chunk, file = int(self.chunk[episode]), int(self.file[episode])
        if self.info.legacy:
            return self.info.folder / LEGACY_DATA_PATH.format(episode_chunk=chunk, episode_index=file)
        return self.info.folder / DATA_PATH.format(chunk_index=chunk, file_index=file)

    def video_file(self, camera: str, episode: int) -> Path:
        """The MP4 file with the frames of an episode."""
        videos = self.videos[camera]
        chunk, file = int(videos.chunk[episode]), int(videos.file[episode])
        if self.info.legacy:
            return self.info.folder / LEGACY_VIDEO_PATH.format(episode_chunk=chunk, video_key=camera, episode_index=file)
        return self.info.folder / VIDEO_PATH.format(video_key=camera, chunk_index=chunk, file_index=file)


def read_episode_table(info: Info, cameras: tuple[str, ...] = ()) -> EpisodeTable:
    """Reads the metadata of the episodes.

    Args:
        info: of the dataset.
        cameras: those that are videos and wanted.

    Raises:
        DatasetError: files that are missing or damaged; episodes that are not 0 to E - 1; lengths, indices and times that do not fit
            each other or `meta/info.json`. Names the file and the episode.
    """
    table = _legacy_table(info, cameras) if info.legacy else _table(info, cameras)
    path = info.folder / INFO
    if len(table.length) != info.total_episodes:
        raise DatasetError(f"{path}: total_episodes: expected {len(table.length)}, as meta/episodes has them, got {info.total_episodes}")
    if table.length.sum() != info.total_frames:
        raise DatasetError(f"{path}: total_frames: expected {table.length.sum()}, as meta/episodes has them, got {info.total_frames}")
    return table


def _table(info: Info, cameras: tuple[str, ...]) -> EpisodeTable:
    where = info.folder / "meta/episodes"
    paths = sorted(where.glob("*/*.parquet"))
    if not paths:
        raise DatasetError(f"{where}: expected chunk-*/file-*.parquet, found none")
    fields = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    wanted += [f"videos/{camera}/{field}" for camera in cameras for field in fields]
    columns = read_columns(paths, wanted)
    with parquet_faults(where):
        columns = columns.sort_by("episode_index")
    episode = _numbers(columns, "episode_index", where)
    wrong = np.flatnonzero(episode != np.arange(len(episode)))
    if wrong.size:
        raise DatasetError(f"{where}: expected the episodes 0 to {len(episode) - 1}, got {episode[wrong[0]]} in place of {wrong[0]}")
    length, chunk, file = (_numbers(columns, name, where) for name in wanted[1:4])
    videos = {}
    for camera in cameras:
        first, last = (_times(columns, f"videos/{camera}/{field}", where) for field in fields[2:])
        off = np.flatnonzero(~(np.abs((last - first) * info.fps - length) < 0.5))
        if off.size:
            found = f"{first[off[0]]:g} s to {last[off[0]]:g} s for {length[off[0]]} frames at fps {info.fps:g}"
            raise DatasetError(f"{where}: episode {off[0]}, {camera}: the time in the video and the length do not agree: {found}")
        number, place = (_numbers(columns, f"videos/{camera}/{field}", where) for field in fields[:2])
        videos[camera] = Videos(number, place, first)
    return EpisodeTable(info, length, chunk, file, _first_rows(length, chunk, file, where), videos, _tasks(info))


def _first_rows(length: np.ndarray, chunk: np.ndarray, file: np.ndarray, where: Path) -> np.ndarray:
    """i64 [E]: the first row of each episode in its file; the episodes of a file follow each other."""
    begins = np.ones(len(length), bool)
    begins[1:] = (chunk[1:] != chunk[:-1]) | (file[1:] != file[:-1])
    names = np.stack([chunk[begins], file[begins]], axis=1)
    if len(np.unique(names, axis=0)) != len(names):
        raise DatasetError(f"{where}: expected the episodes of a data file one after the other; a file comes back after another one")
    total = np.cumsum(length) - length
    return total - np.repeat(total[begins], np.diff(np.append(np.flatnonzero(begins), len(length))))


def _legacy_table(info: Info, cameras: tuple[str, ...]) -> EpisodeTable:
    path = info.folder / "meta/episodes.jsonl"
    lengths: list[int] = []
    for number, row in enumerate(read_json_lines(path)):
        episode, length = row.get("episode_index"), row.get("length")
        if episode != number:
            raise DatasetError(f"{path}: expected the episodes in order; got {show(episode)} in place of {number}")
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length < _LARGEST:
            raise DatasetError(f"{path}: episode {number}: length: expected a whole number, got {show(length)}")
        lengths.append(length)
    if info.chunks_size < 1:
        raise DatasetError(f"{info.folder / INFO}: chunks_size: expected a number above 0, got {info.chunks_size}")
    file = np.arange(len(lengths))
    start = np.zeros(len(lengths))
    videos = {camera: Videos(file // info.chunks_size, file, start) for camera in cameras}
    return EpisodeTable(
        info, np.array(lengths, np.int64), file // info.chunks_size, file, np.zeros(len(lengths), np.int64), videos, _tasks(info)
    )


def _tasks(info: Info) -> dict[int, str]:
    """The tasks by their index. Pandas writes the texts as an index, which has a name of its own in Parquet."""
    if info.legacy:
        path = info.folder / "meta/tasks.jsonl"
        rows = [(row.get("task_index"), row.get("task")) for row in read_json_lines(path)]
    else:
        path = info.folder / "meta/tasks.parquet"
        with parquet_faults(path):
            names = pq.read_schema(path).names
        column = next((name for name in ("task", "__index_level_0__") if name in names), "task")
        table = read_columns([path], ["task_index", column])
        rows = list(zip(table["task_index"].to_pylist(), table[column].to_pylist(), strict=True))
    tasks = {index: text for index, text in rows if isinstance(index, int) and isinstance(text, str)}
    if len(tasks) != len(rows):
        raise DatasetError(f"{path}: expected one text for each task_index, got {show(rows)}")
    return tasks


def _numbers(columns: pa.Table, name: str, where: Path) -> np.ndarray:
    """A column of whole numbers from 0 on, i64 [E]."""
    values = _cast(columns, name, pa.int64(), where)
    wrong = np.flatnonzero((values < 0) | (values >= _LARGEST))
    if wrong.size:
        raise DatasetError(f"{where}: episode {wrong[0]}: {name}: expected a number from 0 on, got {values[wrong[0]]}")
    return values


def _times(columns: pa.Table, name: str, where: Path) -> np.ndarray:
    """A column of seconds from 0 on, f64 [E]."""
    values = _cast(columns, name, pa.float64(), where)
    wrong = np.flatnonzero(~((values >= 0) & (values < _LONGEST)))
    if wrong.size:
        raise DatasetError(f"{where}: episode {wrong[0]}: {name}: expected seconds from 0 on, got {values[wrong[0]]}")
    return values


def _cast(columns: pa.Table, name: str, type: pa.DataType, where: Path) -> np.ndarray:
    column = columns[name]
    try:
        if column.null_count:
            raise pa.ArrowInvalid(f"{column.null_count} values are missing")
        return column.cast(type).to_numpy()
    except pa.ArrowException as error:
        raise DatasetError(f"{where}: column {name}: expected numbers ({type}): {error}") from error
