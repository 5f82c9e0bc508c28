"""An RLDS/TFDS dataset as a source of training data (`eosjax.data.sources.Source`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosjax.data.episode import Episode
from eosjax.data.rlds.episodes import read_episodes
from eosjax.data.rlds.info import FEATURES, INFO, num_episodes
from eosjax.data.rlds.tfrecord import record_checksums
from eosjax.data.specs import DatasetSpec

_SAMPLE_BYTES = 1 << 16


class RldsSource:
    """The version of a dataset that is in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def num_episodes(self) -> int:
        """Number of episodes that the metadata announce."""
        return num_episodes(self.folder)

    def read_episodes(self, spec: DatasetSpec, start: int = 0) -> Iterator[Episode]:
        """See `eosjax.data.rlds.episodes.read_episodes`."""
        return read_episodes(self.folder, spec, start)

    def content(self, spec: DatasetSpec) -> Iterator[bytes]:
        """What changes when the dataset does.

        A TFRecord file has a checksum of every record (CRC-32C) beside its length: together they change with any byte of the records,
        and are 16 bytes to read for an episode. Their times do not count, so that a copy of the dataset has its fingerprint. Of other
        formats the size, the time of the last change and three samples count: a copy may get a store of its own.
        """
        for path in sorted(path for path in self.folder.iterdir() if path.is_file()):
            is_metadata = path.name in (INFO, FEATURES)
            if path.suffix == ".json" and not is_metadata:
                continue  # programs put their statistics beside a dataset
            yield f"\n{path.name} {path.stat().st_size}\n".encode()
            if is_metadata:
                yield path.read_bytes()
            elif ".tfrecord" in path.name:
                yield record_checksums(path)
            else:
                yield from _samples(path)


def _samples(path: Path) -> Iterator[bytes]:
    """The time of the last change of a file, its beginning, middle and end."""
    size, changed = path.stat().st_size, path.stat().st_mtime_ns
    yield changed.to_bytes(8, "little", signed=True)
    with open(path, "rb") as file:
        for start in (0, size // 2, max(size - _SAMPLE_BYTES, 0)):
            file.seek(start)
            yield file.read(_SAMPLE_BYTES)
