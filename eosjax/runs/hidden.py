"""What a frozen policy sees, on disk: the hidden states at every step of its episodes, so that heads are trained without running it again.

A folder with `hidden.npy` (read in place, never as a whole), `columns.npz` and `cache.json`. It appears complete or not at all.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from eosjax.ends.baselines import BaselineInputs
from eosjax.types import UserError

FORMAT = 1
HIDDEN, COLUMNS, FACTS = "hidden.npy", "columns.npz", "cache.json"
# NumPy files know no bfloat16: its bits are kept.
_BITS = {"bfloat16": (np.dtype(np.uint16), np.dtype(ml_dtypes.bfloat16))}


class CacheError(UserError):
    """A cache of hidden states that cannot be made or read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """What is known of N frames in E whole episodes, in order. A sample starts at every frame.

    Attributes:
      ends: bool [N], whether a sub-step ends there.
      episode_starts: i64 [E + 1], first frame of each episode, and N.
      held_out: bool [E], episodes that the policy was not trained on.
      gripper: f32 [N], command.
      proprio: f32 [N p], state of the robot, normalised.
      instruction_ids: i32 [N], what the policy is told.
    """

    ends: np.ndarray
    episode_starts: np.ndarray
    held_out: np.ndarray
    gripper: np.ndarray
    proprio: np.ndarray
    instruction_ids: np.ndarray

    @functools.cached_property
    def episode_of(self) -> np.ndarray:
        """i64 [N]: the episode of each frame."""
        return np.repeat(np.arange(self.held_out.size), np.diff(self.episode_starts))

    def valid(self, chunk: int) -> np.ndarray:
        """bool [N k]: whether the slot of the chunk that starts at each frame lies within the episode."""
        left = self.episode_starts[self.episode_of + 1] - np.arange(self.ends.size)
        return np.arange(chunk) < left[:, None]

    def labels(self, chunk: int) -> np.ndarray:
        """bool [N k]: whether a sub-step ends with the slot; False past the end of the episode."""
        frames = np.minimum(np.arange(self.ends.size)[:, None] + np.arange(chunk), self.ends.size - 1)
        return self.ends[frames] & self.valid(chunk)

    def frames_of(self, episodes: np.ndarray) -> np.ndarray:
        """i64: the frames of some episodes, ascending; `episodes` i64 [e]."""
        return np.flatnonzero(np.isin(self.episode_of, episodes))

    @property
    def baseline_inputs(self) -> BaselineInputs:
        """What the baselines look at."""
        return BaselineInputs(self.ends, self.gripper, self.proprio, self.instruction_ids, self.episode_starts)


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenCache:
    """An open cache.

    Attributes:
      hidden: [N k a d] in the dtype of the policy, on disk: the hidden states of each action of the chunk predicted at each frame.
      columns: of the same frames.
      facts: where it comes from: `run`, `step`, `dataset`, `fingerprint`, and the sizes of the run's EOS head.
    """

    hidden: np.ndarray
    columns: Columns
    facts: Mapping[str, Any]

    @property
    def chunk(self) -> int:
        """k."""
        return self.hidden.shape[1]

    @property
    def train_frames(self) -> np.ndarray:
        """i64: frames of the episodes that the policy was trained on."""
        return self.columns.frames_of(np.flatnonzero(~self.columns.held_out))

    @property
    def share_of_ends(self) -> float:
        """Of the training frames."""
        return float(np.mean(self.columns.ends[self.train_frames]))


def write_cache(folder: Path, shape: tuple[int, ...], dtype: str, blocks: Iterable[np.ndarray], columns: Columns, facts: dict) -> None:
    """Writes a cache block by block.

    Args:
      folder: must be new or empty.
      shape: of the hidden states, [N k a d].
      dtype: their name, such as bfloat16.
      blocks: [b k a d] each, N rows together, in order.
      columns: of the N frames.
      facts: JSON values; see `HiddenCache`.

    Raises:
      CacheError: something is in the folder, or the blocks are not N rows.
    """
    check_new(folder)
    folder = folder.absolute()
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        held, _ = _BITS.get(dtype, (np.dtype(dtype), None))
        hidden = np.lib.format.open_memmap(scratch / HIDDEN, mode="w+", dtype=held, shape=shape)
        done = 0
        for block in blocks:
            if done + len(block) > len(hidden):
                raise CacheError(f"{folder}: expected {len(hidden)} rows of hidden states, got more")
            hidden[done : done + len(block)] = np.ascontiguousarray(block).view(held)
            done += len(block)
        if done != len(hidden):
            raise CacheError(f"{folder}: expected {len(hidden)} rows of hidden states, got {done}")
        hidden.flush()
        del hidden
        arrays = {field.name: getattr(columns, field.name) for field in dataclasses.fields(columns)}
        np.savez(scratch / COLUMNS, **arrays)
        (scratch / FACTS).write_text(
            json.dumps({"format": FORMAT, "dtype": dtype, "shape": list(shape), **facts}, indent=1) + "\n", encoding="utf-8"
        )
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raises `CacheError` unless the folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CacheError(f"--out {folder}: exists; expected a folder that is new or empty")


def open_cache(folder: Path) -> HiddenCache:
    """Opens a cache; reads the columns, but of the hidden states only the head of the file.

    Raises:
      CacheError: no cache, one of another format, or one that is damaged.
    """
    if not (folder / FACTS).is_file():
        raise CacheError(f"{folder}: no {FACTS}; expected a folder that `eosjax cache-hidden` wrote")
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if facts["format"] != FORMAT:
        raise CacheError(f"{folder}: expected format {FORMAT}, got {facts['format']}")
    try:
        with open(folder / COLUMNS, "rb") as file, np.load(file) as arrays:
            columns = Columns(**arrays)
        hidden = np.load(folder / HIDDEN, mmap_mode="r")
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:  # whatever half a file makes NumPy raise
        raise CacheError(f"{folder}: damaged: {error}") from error
    if facts["dtype"] in _BITS:
        hidden = hidden.view(_BITS[facts["dtype"]][1])
    if list(hidden.shape) != facts["shape"] or hidden.dtype.name != facts["dtype"] or columns.ends.size != len(hidden):
        raise CacheError(f"{folder}: damaged: expected {facts['dtype']} {facts['shape']}, got {hidden.dtype} {list(hidden.shape)}")
    return HiddenCache(hidden, columns, facts)


def fingerprint(*parts: Any) -> str:
    """A short hash of JSON values and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()[:16]
