"""The frame store: a dataset as random-access frames on disk, built once and then read without TensorFlow and video decoders.

A store is a folder of parts, each some hundred megabytes of whole episodes: `part-N.array_record` (a record a frame: the encoded
images), `part-N.npz` (actions, proprio, lengths of the episodes) and `part-N.json` (texts, file sizes), and of `store.json`, which
tells how many parts there are. It gets its final name in one rename: a store that exists is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from eosjax.data.episode import DatasetError
from eosjax.data.process import run_module
from eosjax.data.sources import find_source
from eosjax.data.specs import DatasetSpec
from eosjax.documents import read_json
from eosjax.names import folder_name
from eosjax.runtime import cache_root
from eosjax.types import UserError

FORMAT_VERSION = 4  # part of the fingerprint: raise it when the files of a store change their meaning, or are checked for more
# Fields of a description that say how a store is used, not what is in it.
_NOT_STORED = ("action_mask", "normalisation", "chunk", "control_hz")
_LENGTH = struct.Struct("<I")
_DAMAGED = "delete this folder to build it again"
# What reading a file of a store raises if something else has written to it (`DocumentError` is a ValueError).
_DAMAGES = (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a store but for its images: n frames in e episodes."""

    actions: np.ndarray  # f32 [n a]
    proprio: np.ndarray  # f32 [n p]
    lengths: np.ndarray  # i64 [e]
    tasks: list[str]
    file_paths: list[str]
    digests: list[str]  # of the content of each episode, see `EpisodeDigest`

    @classmethod
    def load(cls, folder: Path, number: int) -> Part:
        """Reads part `number` of a store; `DatasetError` if a file of it is missing or has not the size it was written with."""
        try:
            meta = read_json(part_file(folder, number, "json"))
            for kind, expected in dict(meta["bytes"]).items():
                path = part_file(folder, number, kind)
                size = path.stat().st_size
                if size != expected:
                    raise OSError(f"{path}: expected {expected} bytes, got {size}")
            with np.load(part_file(folder, number, "npz")) as columns:
                return cls(columns["actions"], columns["proprio"], columns["lengths"], meta["tasks"], meta["file_paths"], meta["digests"])
        except _DAMAGES as error:
            raise DatasetError(f"frame store {folder}: part {number} is unreadable ({error}); {_DAMAGED}") from error


def part_file(folder: Path, number: int, kind: str) -> Path:
    """The file of a part of a store; `kind` is "array_record", "npz" or "json"."""
    return folder / f"part-{number:05d}.{kind}"


class FrameStore:
    """All frames of a dataset; N frames in E episodes. Thread-safe and picklable (a copy opens the files again).

    Attributes:
        folder: where the store is.
        fingerprint: SHA-256 of all images, actions, states and tasks, in hex. Two stores of one content have the same, whatever the
            files were that they were made of.
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
            meta = read_json(self.folder / "store.json")
            self.name: str = meta["name"]
            parts = [Part.load(self.folder, number) for number in range(meta["parts"])]
        except DatasetError:
            raise
        except _DAMAGES as error:
            raise DatasetError(f"frame store {self.folder}: unreadable ({error}); {_DAMAGED}") from error
        self.actions = np.concatenate([part.actions for part in parts])
        self.proprio = np.concatenate([part.proprio for part in parts])
        self.episode_starts = np.cumsum(np.concatenate([[0], *(part.lengths for part in parts)]))
        self.tasks = [task for part in parts for task in part.tasks]
        self.file_paths = [file_path for part in parts for file_path in part.file_paths]
        self.fingerprint = hashlib.sha256("\n".join(digest for part in parts for digest in part.digests).encode()).hexdigest()
        self._part_starts = np.cumsum([0] + [len(part.actions) for part in parts])
        self._readers: list[Any] = [None] * len(parts)

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
        part = int(np.searchsorted(self._part_starts, frame, side="right")) - 1
        path = part_file(self.folder, part, "array_record")
        if self._readers[part] is None:  # two threads may both open one; either will do
            # Options for random access: nothing is read ahead.
            self._readers[part] = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        try:
            return unpack_images(self._readers[part].read([int(frame - self._part_starts[part])])[0])
        except (RuntimeError, ValueError, struct.error) as error:
            episode, step = self.locate(frame)
            raise DatasetError(f"{path}: episode {episode}, step {step}: unreadable record: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": [None] * len(self._readers)}


def open_store(data_root: str | Path, name: str, spec: DatasetSpec, cache_dir: str | Path | None = None) -> FrameStore:
    """The frame store of dataset `name` under `data_root`; a process of its own builds it unless it is in the cache.

    The store is found by a fingerprint of its source, so that a changed dataset or description gets a new one. A build that was
    killed is taken up where it stopped; of several processes one builds and the others wait.

    Args:
        data_root: folder of the datasets.
        name: dataset name.
        spec: its description; see `eosjax.data.sources.describe`.
        cache_dir: folder of the stores; None for `cache_root()`.

    Raises:
        DatasetError: what the source refuses; or a damaged store.
    """
    try:
        folder = store_folder(data_root, name, spec, cache_dir)
    except OSError as error:
        raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatasetError(f"--cache_dir {folder.parent}: cannot be made: {error.strerror}") from error
        try:
            run_module("eosjax.data.frames.build", data_root, name, spec.to_json(), folder)
        except UserError as error:
            raise DatasetError(str(error)) from error
    return FrameStore(folder)


def store_folder(data_root: str | Path, name: str, spec: DatasetSpec, cache_dir: str | Path | None = None) -> Path:
    """Where the store of a dataset is, or will be once it is built; arguments and errors as in `open_store`."""
    cache = Path(cache_dir).expanduser() if cache_dir is not None else cache_root()
    return cache / f"{folder_name(name)}-{source_fingerprint(data_root, name, spec)[:16]}"


def source_fingerprint(data_root: str | Path, name: str, spec: DatasetSpec) -> str:
    """Hex digest of what a store is made of: the dataset's metadata and contents, and the description.

    Reading all of a dataset at each start would take longer than anything else there: see `content` of its source.
    """
    stored = dataclasses.replace(spec, motion="as_stored") if spec.from_anchor else spec  # a store has the targets
    fields = {field: value for field, value in dataclasses.asdict(stored).items() if field not in _NOT_STORED}
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, fields], sort_keys=True).encode())
    for piece in find_source(data_root, name).content(spec):
        digest.update(piece)
    return digest.hexdigest()


class EpisodeDigest:
    """SHA-256 of the content of an episode, record by record; see `pack_images`."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, record: bytes) -> None:
        """The next part of the content."""
        self._digest.update(len(record).to_bytes(8, "little"))
        self._digest.update(record)

    def close(self, actions: np.ndarray, proprio: np.ndarray, task: str) -> None:
        """What follows the images: actions f32 [T a], proprio f32 [T p] and the task instruction."""
        for column in (actions, proprio):
            self.add(np.ascontiguousarray(column, "<f4").tobytes())
        self.add(task.encode())

    @property
    def hex(self) -> str:
        """The digest of what was added."""
        return self._digest.hexdigest()


def pack_images(views: Sequence[bytes]) -> bytes:
    """The record of a frame: each image after its length."""
    return b"".join(part for view in views for part in (_LENGTH.pack(len(view)), view))


def unpack_images(record: bytes) -> tuple[bytes, ...]:
    """Inverse of `pack_images`; `struct.error` for bytes of another kind."""
    views, at = [], 0
    while at < len(record):
        (length,) = _LENGTH.unpack_from(record, at)
        at += _LENGTH.size + length
        views.append(record[at - length : at])
    return tuple(views)
