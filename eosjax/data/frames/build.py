"""Builds frame stores (see `eosjax.data.frames.store`); `python -m eosjax.data.frames.build` is the process that reads the dataset."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from tqdm import tqdm

from eosjax.data.episode import DatasetError, Episode
from eosjax.data.frames.store import EpisodeDigest, Part, pack_images, part_file
from eosjax.data.process import exit_with
from eosjax.data.sources import find_source
from eosjax.data.specs import DatasetSpec
from eosjax.types import UserError

# A part ends with the episode that reaches this size. It bounds what a killed build loses (seconds), and the number of files
# that a reader has open: 250 for a dataset of 128 GB.
_PART_BYTES = 512 << 20


def build_store(data_root: str | Path, name: str, spec: DatasetSpec, folder: Path) -> None:
    """Makes the store `folder` of a dataset unless it exists. Continues a build that was killed.

    A second process waits for the first. The process that writes holds the lock, so the lock survives the death of the process that
    started it. The system releases the lock when this process ends, for whatever reason.

    Raises:
        DatasetError: what the source refuses. The unfinished store is then removed.
    """
    with open(folder.with_name(folder.name + ".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        building = folder.with_name(f".{folder.name}.building")
        building.mkdir(exist_ok=True)
        start = finished_episodes(building)
        source = find_source(data_root, name)
        progress = tqdm(
            source.read_episodes(spec, start),
            total=source.num_episodes(),
            initial=start,
            desc=f"building the frame store of {name}",
            unit="episode",
            disable=not sys.stderr.isatty(),
        )
        try:
            write_store(iter(progress), name, building)
        except UserError:
            shutil.rmtree(building)
            raise
        os.replace(building, folder)


def finished_episodes(folder: Path) -> int:
    """Number of episodes in the finished parts of a store that is being built. Deletes every other file in `folder`."""
    finished = _finished_parts(folder)
    keep = {part_file(folder, number, kind) for number in range(len(finished)) for kind in ("array_record", "npz", "json")}
    for path in set(folder.iterdir()) - keep:
        path.unlink()
    return sum(len(part.lengths) for part in finished)


def write_store(episodes: Iterator[Episode], name: str, folder: Path, part_bytes: int = _PART_BYTES) -> None:
    """Completes the store in the existing `folder`. Holds the images of one step at a time if the episodes read them as they go.

    Args:
        episodes: the episodes that are not in a finished part yet (see `finished_episodes`).
        name: the dataset.
        folder: empty, or with the finished parts of an interrupted build.
        part_bytes: size of a part. Two builds with the same size give the same bytes.

    Raises:
        DatasetError: there is no step.
    """
    number = len(_finished_parts(folder))
    while _write_part(episodes, folder, number, part_bytes):
        number += 1
    if not any(len(part.actions) for part in _finished_parts(folder)):
        raise DatasetError(f"dataset {name}: no step in it, or none that its description keeps")
    _write_text(folder / "store.json", json.dumps({"name": name, "parts": number}))


def _finished_parts(folder: Path) -> list[Part]:
    finished = []
    with contextlib.suppress(DatasetError):  # what the first damaged part says
        for number in itertools.count():
            if not part_file(folder, number, "json").exists():
                break
            finished.append(Part.load(folder, number))
    return finished


def _write_part(episodes: Iterator[Episode], folder: Path, number: int, part_bytes: int) -> bool:
    """Writes the next part; False if no episode was left. Its JSON file is written last and marks the part as finished."""
    first = next(episodes, None)
    if first is None:
        return False
    # One record per group, so that a read decodes only its own record. The images are already compressed.
    path = part_file(folder, number, "array_record")
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    rows, size = [], 0
    try:
        for episode in itertools.chain([first], episodes):
            digest = EpisodeDigest()
            for views in zip(*episode.images, strict=True):
                record = pack_images(views)
                writer.write(record)
                digest.add(record)
                size += len(record)
            digest.close(episode.actions, episode.proprio, episode.task)
            rows.append((episode.actions, episode.proprio, len(episode), episode.task, episode.file_path, digest.hex))
            if size >= part_bytes:
                break
    finally:
        writer.close()
    actions, proprio, lengths, tasks, file_paths, digests = zip(*rows, strict=True)
    columns = part_file(folder, number, "npz")
    np.savez(columns, actions=np.concatenate(actions), proprio=np.concatenate(proprio), lengths=np.array(lengths, np.int64))
    meta = {
        "tasks": tasks,
        "file_paths": file_paths,
        "digests": digests,
        "bytes": {"array_record": path.stat().st_size, "npz": columns.stat().st_size},
    }
    _write_text(part_file(folder, number, "json"), json.dumps(meta))
    return True


def _write_text(path: Path, text: str) -> None:
    """Writes a file that is either absent or complete."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _main(data_root: str, name: str, spec: str, folder: str) -> None:
    try:
        build_store(data_root, name, DatasetSpec.from_json(spec), Path(folder))
    except OSError as error:
        raise UserError(f"the frame store {folder} cannot be built: {error}") from error


if __name__ == "__main__":
    exit_with(lambda: _main(*sys.argv[1:]))
