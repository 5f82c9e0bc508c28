"""A LeRobot dataset as a source of training data (`eosjax.data.sources.Source`).

Columns and pictures are read forward, some rows or one frame at a time: memory does not grow with the length of the episodes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eosjax.data.episode import DatasetError, Episode, check_image, matrix
from eosjax.data.lerobot.episodes import EpisodeTable, read_episode_table
from eosjax.data.lerobot.info import INFO, TOLERANCE, Feature, Info, read_info
from eosjax.data.lerobot.tables import Rows, open_parquet
from eosjax.data.specs import DatasetSpec, SpecError
from eosjax.fields import show

TASK = "task"  # the `instruction_key` that stands for the text of `task_index`; any other is a column of texts
_ROWS = 4096  # small columns that are read at once
_PICTURES = 16  # encoded images that are read at once
_ENCODERS = min(os.cpu_count() or 1, 8)  # threads that encode frames of videos


class LeRobotSource:
    """The dataset in a folder, version 2 or 3."""

    def __init__(self, folder: Path):
        self.folder = folder

    def num_episodes(self) -> int:
        """Number of episodes that the metadata announce."""
        return read_info(self.folder).total_episodes

    def content(self, spec: DatasetSpec) -> Iterator[bytes]:
        """What changes when the dataset does: the descriptive metadata, and name, size and time of the last change of the files.

        A dataset may have a hundred thousand files, of which opening each would take minutes. So a copy without these times gets a
        store of its own.
        """
        yield (self.folder / INFO).read_bytes()
        cameras = set(spec.image_keys)
        for pattern in ("meta/tasks.*", "meta/episodes.jsonl", "meta/episodes/*/*.parquet", "data/*/*.parquet", "videos/*/*/*.mp4"):
            for path in sorted(self.folder.glob(pattern)):
                if pattern.startswith("videos") and not cameras & set(path.parts[-3:-1]):
                    continue
                status = path.stat()
                yield f"\n{path.relative_to(self.folder)} {status.st_size} {status.st_mtime_ns}\n".encode()

    def read_episodes(self, spec: DatasetSpec, start: int = 0) -> Iterator[Episode]:
        """The episodes from `start` on, by `episode_index`.

        Raises:
            DatasetError: see `read_episode_table` and `_Reader`; missing files are found before the first episode is read.
        """
        info = read_info(self.folder)
        features = check_features(info, spec)
        table = read_episode_table(info, tuple(key for key in spec.image_keys if features[key].dtype == "video"))
        _check_files(table, start)
        reader = _Reader(table, spec)
        for index in range(start, len(table.length)):
            yield reader.episode(index)


def check_features(info: Info, spec: DatasetSpec) -> dict[str, Feature]:
    """The features of a dataset, which has all that its description names.

    Raises:
        DatasetError: a missing feature, or one of another kind; names those that exist.
    """
    path, features = info.folder / INFO, info.features
    wanted = {"image_keys": spec.image_keys, "state_keys": spec.state_keys, "action_key": (spec.action_key,)}
    if spec.instruction_key != TASK:
        wanted["instruction_key"] = (spec.instruction_key,)
    for field, keys in wanted.items():
        for key in keys:
            if key not in features:
                raise DatasetError(f"{path}: {field}: expected a feature {key!r}; found: {', '.join(sorted(features))}")
            feature = features[key]
            if field == "image_keys" and feature.is_depth:
                raise DatasetError(f"{path}: {field}: {key} is a depth map (video.is_depth_map): expected colour pictures")
            expected = "a video or images" if field == "image_keys" else "texts" if field == "instruction_key" else "a vector of numbers"
            fits = {
                "image_keys": feature.is_camera and len(feature.shape) == 3 and 3 in (feature.shape[0], feature.shape[-1]),
                "instruction_key": feature.dtype == "string",
            }.get(field, feature.dtype.startswith(("float", "int", "uint", "bool")) and len(feature.shape) <= 1)
            if not fits:
                raise DatasetError(f"{path}: {field}: {key}: expected {expected}, got {feature.dtype} {list(feature.shape)}")
    return features


def _check_files(table: EpisodeTable, start: int) -> None:
    """Finds files that are missing, and data files and videos with fewer rows or frames than their episodes, before any work."""
    last: dict[Path, int] = {}
    frames: dict[Path, tuple[str, int]] = {}
    for episode in range(start, len(table.length)):
        last[table.data_file(episode)] = episode
        for camera in table.videos:
            path = table.video_file(camera, episode)
            frames[path] = camera, frames.get(path, ("", 0))[1] + int(table.length[episode])
    missing = [path for path in (*last, *frames) if not path.is_file()]
    if missing:
        raise DatasetError(f"{missing[0]}: this file of the dataset is missing ({len(missing)} of {len(last) + len(frames)} files are)")
    for path, episode in last.items():
        rows, expected = open_parquet(path).metadata.num_rows, int(table.row[episode] + table.length[episode])
        if rows != expected:
            raise DatasetError(f"{path}: expected {expected} frames up to episode {episode}, as the metadata have them, got {rows} rows")
    from eosjax.data.lerobot.video import Video  # loads FFmpeg, which only the process that builds a store needs

    for path, (camera, expected) in frames.items():
        video = Video(path)
        announced = video.num_frames
        video.close()
        if announced and (announced < expected or (table.info.legacy and announced != expected)):
            raise DatasetError(f"{path}: {camera}: expected {expected} frames, as the metadata have them, got {announced}")


class _Reader:
    """Reads episode after episode; the file that the last one was in stays open."""

    def __init__(self, table: EpisodeTable, spec: DatasetSpec):
        self._table, self._spec, self._info = table, spec, table.info
        self._numbers = [*dict.fromkeys((*spec.state_keys, spec.action_key))]
        texts = [spec.instruction_key] if spec.instruction_key != TASK else []
        self._columns = ["episode_index", "frame_index", "timestamp", "task_index", *self._numbers, *texts]
        self._path: Path | None = None
        self._rows: Rows | None = None
        self._pictures: dict[str, Rows] = {}
        self._videos: dict[str, Any] = {}  # of class Video
        self._threads = ThreadPoolExecutor(_ENCODERS, "encode")

    def episode(self, index: int) -> Episode:
        """The episode `index`, which is not before the last one that was read.

        Raises:
            DatasetError: rows of another episode, frames or times that are not in order, no task or several, numbers or pictures that
                cannot be trained on. Names file, episode and step.
        """
        table, spec = self._table, self._spec
        path, first, length = table.data_file(index), int(table.row[index]), int(table.length[index])
        if path != self._path:
            self._path, self._rows, self._pictures = path, Rows(path, self._columns, _ROWS), {}
        assert self._rows is not None
        where = f"{path}: episode {index}"
        frames = self._rows.table(first, length)
        if len(frames) != length:
            raise DatasetError(f"{where}: expected {length} frames, as the metadata have them, got {len(frames)}")
        self._check_order(frames, index, where)
        stored_actions = self._matrix(frames, (spec.action_key,), "actions", spec.action_size, where)
        stored_proprio = self._matrix(frames, spec.state_keys, "proprio", spec.proprio_size, where)
        kept = spec.kept_steps(length)
        try:
            actions = spec.standard_actions(stored_actions, stored_proprio)
        except SpecError as error:
            raise DatasetError(f"{where}: actions: {error}") from error
        steps = range(*kept.indices(length))
        return Episode(
            index=index,
            images=tuple(self._camera(camera, index, steps, where) for camera in spec.image_keys),
            actions=actions,
            proprio=stored_proprio[kept],
            task=self._task(frames, where),
            file_path="",
        )

    def _check_order(self, frames: pa.Table, index: int, where: str) -> None:
        episodes, steps = (_column(frames, name, pa.int64(), where) for name in ("episode_index", "frame_index"))
        wrong = np.flatnonzero(episodes != index)
        if wrong.size:
            raise DatasetError(f"{where}: expected its frames in these rows, got one of episode {episodes[wrong[0]]} as frame {wrong[0]}")
        wrong = np.flatnonzero(steps != np.arange(len(steps)))
        if wrong.size:
            raise DatasetError(f"{where}: frame_index: expected 0 to {len(steps) - 1} in order, got {steps[wrong[0]]} as frame {wrong[0]}")
        times = _column(frames, "timestamp", pa.float64(), where)
        expected = np.arange(len(steps)) / self._info.fps
        wrong = np.flatnonzero(~(np.abs(times - expected) <= TOLERANCE + np.spacing(expected.astype(np.float32))))
        if wrong.size:
            what = f"expected {expected[wrong[0]]:.4f} s at fps {self._info.fps:g}, got {times[wrong[0]]:.4f} s: is its rate variable?"
            raise DatasetError(f"{where}, step {wrong[0]}: timestamp: {what}")

    def _matrix(self, frames: pa.Table, keys: Sequence[str], field: str, size: int, where: str) -> np.ndarray:
        """The columns of numbers side by side, f32 [T size]."""
        parts = [_vectors(frames[key].combine_chunks(), key, self._info.features[key].size, where) for key in keys]
        return matrix(np.concatenate(parts, axis=1), field, size, where)

    def _task(self, frames: pa.Table, where: str) -> str:
        """The one task of an episode; "" if it has no frames."""
        if self._spec.instruction_key == TASK:
            found = set(_column(frames, "task_index", pa.int64(), where).tolist())
            unknown = sorted(found - self._table.tasks.keys())
            if unknown:
                raise DatasetError(f"{where}: task_index: expected one of meta/tasks, got {unknown[0]}")
            tasks = {self._table.tasks[number] for number in found}
        else:
            tasks = set(frames[self._spec.instruction_key].to_pylist())
        if len(tasks) > 1 or not all(isinstance(task, str) for task in tasks):
            raise DatasetError(f"{where}: expected one task instruction, got {show(sorted(map(str, tasks)))}")
        return tasks.pop() if tasks else ""

    def _camera(self, camera: str, index: int, steps: range, where: str) -> Iterator[bytes]:
        """The encoded images of some steps of an episode, read as they are asked for."""
        if camera in self._table.videos:
            return self._decoded(camera, index, steps)
        return self._stored(camera, index, steps, f"{where}, {camera}")

    def _stored(self, camera: str, index: int, steps: range, where: str) -> Iterator[bytes]:
        """Images of the data file, byte by byte as they are."""
        if camera not in self._pictures:
            self._pictures[camera] = Rows(self._table.data_file(index), [camera], _PICTURES)
        step = steps.start
        for batch in self._pictures[camera].read(int(self._table.row[index]) + steps.start, len(steps)):
            for picture in batch[camera].to_pylist():
                data = picture.get("bytes") if isinstance(picture, dict) else picture
                if not isinstance(data, bytes):
                    raise DatasetError(f"{where}, step {step}: expected the bytes of an image, got {show(picture)}")
                check_image(data, step - steps.start, where)
                yield data
                step += 1

    def _decoded(self, camera: str, index: int, steps: range) -> Iterator[bytes]:
        """Frames of a video, encoded anew one by one."""
        from eosjax.data.lerobot.video import Video, to_jpeg  # as above

        path, where = self._table.video_file(camera, index), f"episode {index}, {camera}"
        video = self._videos.get(camera)
        if video is None or video.path != path:
            if video is not None:
                video.close()
            video = self._videos[camera] = Video(path)
        shape, length = self._info.features[camera].shape, int(self._table.length[index])
        size = (shape[1], shape[2]) if shape[0] == 3 else (shape[0], shape[1])
        start = float(self._table.videos[camera].start[index])
        frames = video.pictures(start, length, self._info.fps, size, where)
        yield from self._side_by_side(to_jpeg, (frame for step, frame in enumerate(frames) if step in steps))
        if self._info.legacy and not video.ends(where):
            raise DatasetError(f"{path}: {where}: expected {length} frames, as the metadata have them, but the video goes on")

    def _side_by_side(self, encode: Callable[[Any], bytes], frames: Iterator[Any]) -> Iterator[bytes]:
        """The frames encoded, in order, by threads: encoding takes four times as long as decoding. A few frames are in memory."""
        waiting: deque[Future[bytes]] = deque()
        for frame in frames:
            waiting.append(self._threads.submit(encode, frame))
            if len(waiting) > _ENCODERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _column(frames: pa.Table, name: str, type: pa.DataType, where: str) -> np.ndarray:
    """A column of numbers without gaps. Datasets of one frame a row may hold them as lists of one."""
    try:
        column = frames[name]
        if column.null_count:
            raise pa.ArrowInvalid(f"{column.null_count} values are missing")
        return column.cast(type).to_numpy()
    except pa.ArrowException as error:
        raise DatasetError(f"{where}: column {name}: expected numbers ({type}): {error}") from error


def _vectors(column: pa.Array, name: str, size: int, where: str) -> np.ndarray:
    """A column of vectors, or of numbers for a size of 1, as f64 [T size]."""
    what = f"{where}: column {name}: expected vectors of {size} numbers"
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    values = column.flatten() if lists else column
    if lists:
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != size)
        if wrong.size:
            raise DatasetError(f"{what}, got {lengths[wrong[0]]:g} in step {wrong[0]}")
    if column.null_count or values.null_count:
        raise DatasetError(f"{what}, and some are missing")
    numbers = pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)
    if not numbers or len(values) != len(column) * size:
        raise DatasetError(f"{what}, got {column.type}")
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False).reshape(len(column), size)
