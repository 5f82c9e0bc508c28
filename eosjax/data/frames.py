"""The frame store: an RLDS dataset as random-access frames on disk, built once and then read without TensorFlow.

A store is a folder with `frames.array_record` (a record a frame: the encoded images), `columns.npz` (actions, proprio,
episode starts) and `store.json` (texts). It gets its final name in one rename: a store that exists is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from tqdm import tqdm

from eosjax.data.rlds import DatasetError, Episode, dataset_dir, num_episodes, read_episodes
from eosjax.data.specs import spec_for
from eosjax.data.tf_process import exit_with, run_module
from eosjax.types import UserError

FORMAT_VERSION = 1  # part of the fingerprint: raise it when the files of a store change their meaning
_LENGTH = struct.Struct("<I")


def default_cache_dir() -> Path:
    """The folder of the frame stores: the environment variable EOSJAX_CACHE, or `~/.cache/eosjax`."""
    return Path(os.environ.get("EOSJAX_CACHE") or "~/.cache/eosjax").expanduser()


class FrameStore:
    """All frames of a dataset; N frames in E episodes. Thread-safe and picklable (a copy opens the file again).

    Attributes:
        name: the dataset.
        actions: f32 [N a], gripper 1 = open, not normalised.
        proprio: f32 [N p], not normalised.
        episode_starts: i64 [E + 1]; episode e is the frames `episode_starts[e]` to `episode_starts[e + 1]` (exclusive).
        tasks: the task instruction of each episode.
        file_paths: the dataset's `file_path` of each episode.
    """

    def __init__(self, folder: str | Path):
        """Opens the store in `folder`; `DatasetError` when its files are damaged."""
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / "store.json").read_text())
            with np.load(self.folder / "columns.npz") as columns:
                self.actions: np.ndarray = columns["actions"]
                self.proprio: np.ndarray = columns["proprio"]
                self.episode_starts: np.ndarray = columns["episode_starts"]
        except (OSError, ValueError, KeyError) as error:
            raise DatasetError(f"frame store {self.folder}: unreadable ({error}); delete this folder to build it again") from error
        size = self._frames_file.stat().st_size if self._frames_file.exists() else 0
        if size != meta["frames_bytes"]:
            raise DatasetError(
                f"{self._frames_file}: expected {meta['frames_bytes']} bytes, got {size}; delete {self.folder} to build it again"
            )
        self.name: str = meta["name"]
        self.tasks: list[str] = meta["tasks"]
        self.file_paths: list[str] = meta["file_paths"]
        self._reader: Any = None

    @property
    def _frames_file(self) -> Path:
        return self.folder / "frames.array_record"

    @property
    def num_frames(self) -> int:
        """N."""
        return len(self.actions)

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.tasks)

    def locate(self, frame: int) -> tuple[int, int]:
        """(episode, step) of a frame."""
        episode = int(np.searchsorted(self.episode_starts, frame, side="right")) - 1
        return episode, int(frame - self.episode_starts[episode])

    def images(self, frame: int) -> tuple[bytes, ...]:
        """The encoded images of a frame, in the order of the description's `image_keys`; `IndexError` for no frame."""
        if not 0 <= frame < self.num_frames:
            raise IndexError(f"frame {frame} of {self.name}: expected 0 to {self.num_frames - 1}")
        if self._reader is None:  # two threads may both open one; either will do
            # Options for random access: nothing is read ahead.
            self._reader = array_record_module.ArrayRecordReader(str(self._frames_file), "readahead_buffer_size:0,max_parallelism:0")
        try:
            return _unpack(self._reader.read([int(frame)])[0])
        except (RuntimeError, ValueError, struct.error) as error:
            episode, step = self.locate(frame)
            raise DatasetError(f"{self._frames_file}: episode {episode}, step {step}: unreadable record: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}


def open_store(data_root: str | Path, name: str, cache_dir: str | Path | None = None) -> FrameStore:
    """The frame store of dataset `name` under `data_root`; a process of its own builds it unless it is in the cache.

    The store is found by a fingerprint of its source, so that a changed dataset gets a new one.

    Args:
        data_root: folder of the datasets.
        name: dataset name, one that `eosjax.data.specs` describes.
        cache_dir: folder of the stores; None for `default_cache_dir()`.

    Raises:
        DatasetError: see `eosjax.data.rlds.read_episodes`; or a damaged store.
    """
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    folder = cache / f"{name}-{fingerprint(data_root, name)[:16]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock")):
            if not folder.exists():  # another process may have built it meanwhile
                _build_in_subprocess(data_root, name, folder)
    return FrameStore(folder)


def fingerprint(data_root: str | Path, name: str) -> str:
    """Hex digest of a store's source: the dataset's files (names, sizes, times of change), metadata and description."""
    folder = dataset_dir(data_root, name)
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    digest = hashlib.sha256(repr((FORMAT_VERSION, spec_for(name), files)).encode())
    for info in sorted(folder.glob("*.json")):
        digest.update(info.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the system releases even if this process is killed."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_in_subprocess(data_root: str | Path, name: str, folder: Path) -> None:
    """Builds the store `folder`; the caller holds its lock."""
    prefix = f".{folder.name}.building-"
    for leftover in folder.parent.glob(prefix + "*"):  # of builds that were killed: nobody else can hold the lock
        shutil.rmtree(leftover)
    building = folder.with_name(f"{prefix}{os.getpid()}")
    building.mkdir()
    try:
        run_module("eosjax.data.frames", data_root, name, building)
        os.replace(building, folder)
    except UserError as error:
        raise DatasetError(str(error)) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


@dataclasses.dataclass
class _Columns:
    """The small columns while a store is being written."""

    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    proprio: list[np.ndarray] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    tasks: list[str] = dataclasses.field(default_factory=list)
    file_paths: list[str] = dataclasses.field(default_factory=list)

    def append(self, episode: Episode) -> None:
        self.actions.append(episode.actions)
        self.proprio.append(episode.proprio)
        self.lengths.append(len(episode))
        self.tasks.append(episode.task)
        self.file_paths.append(episode.file_path)


def write_store(episodes: Iterator[Episode], name: str, folder: Path) -> None:
    """Writes the files of a store into the existing `folder`, holding one episode's images at a time.

    Raises:
        DatasetError: there is no episode.
    """
    columns = _Columns()
    # One record a group: a read decodes nothing but its own record. The images are compressed already.
    writer = array_record_module.ArrayRecordWriter(str(folder / "frames.array_record"), "group_size:1,uncompressed")
    try:
        for episode in episodes:
            columns.append(episode)
            for views in zip(*episode.images, strict=True):
                writer.write(_pack(views))
    finally:
        writer.close()
    if not columns.lengths:
        raise DatasetError(f"dataset {name}: no episode in it")
    np.savez(
        folder / "columns.npz",
        actions=np.concatenate(columns.actions),
        proprio=np.concatenate(columns.proprio),
        episode_starts=np.concatenate([[0], np.cumsum(columns.lengths)]).astype(np.int64),
    )
    meta = {
        "name": name,
        "tasks": columns.tasks,
        "file_paths": columns.file_paths,
        "frames_bytes": (folder / "frames.array_record").stat().st_size,
    }
    (folder / "store.json").write_text(json.dumps(meta))


def _pack(views: Sequence[bytes]) -> bytes:
    """One record: each image after its length."""
    return b"".join(part for view in views for part in (_LENGTH.pack(len(view)), view))


def _unpack(record: bytes) -> tuple[bytes, ...]:
    views, at = [], 0
    while at < len(record):
        (length,) = _LENGTH.unpack_from(record, at)
        at += _LENGTH.size + length
        views.append(record[at - length : at])
    return tuple(views)


def _main(data_root: str, name: str, folder: str) -> None:
    progress = tqdm(
        read_episodes(data_root, name, spec_for(name)),
        total=num_episodes(data_root, name),
        desc=f"building the frame store of {name}",
        unit="episode",
        disable=not sys.stderr.isatty(),
    )
    write_store(iter(progress), name, Path(folder))


if __name__ == "__main__":
    exit_with(lambda: _main(*sys.argv[1:]))
