"""Where training data come from: the format of a dataset is recognised by its files, and every format is read through one interface."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from eosjax.data.episode import DatasetError, Episode
from eosjax.data.labels import formats_of
from eosjax.data.lerobot.description import describe_lerobot
from eosjax.data.lerobot.info import INFO, read_info
from eosjax.data.lerobot.source import LeRobotSource
from eosjax.data.lerobot.statistics import compare_statistics
from eosjax.data.rlds.info import dataset_dir
from eosjax.data.rlds.source import RldsSource
from eosjax.data.specs import DatasetSpec, spec_for
from eosjax.data.stats import DatasetStats
from eosjax.hub import fetch, is_hub_name
from eosjax.names import split_revision

_HUB_FILES = ["meta/*", "data/*", "videos/*"]


class Source(Protocol):
    """A dataset on disk; `folder` has its metadata."""

    folder: Path

    def num_episodes(self) -> int:
        """Number of episodes that the metadata announce."""
        ...

    def read_episodes(self, spec: DatasetSpec, start: int = 0) -> Iterator[Episode]:
        """The episodes from `start` on, in the dataset's own order; `DatasetError` for whatever cannot be trained on."""
        ...

    def content(self, spec: DatasetSpec) -> Iterator[bytes]:
        """What changes when the dataset does, as far as `spec` reads it; much less than all of its bytes."""
        ...


def find_source(data_root: str | Path, name: str) -> Source:
    """The dataset `name` under `data_root`, an RLDS/TFDS or a LeRobot dataset.

    Raises:
        DatasetError: there is none; the message lists those that are there.
    """
    folder = lerobot_folder(data_root, name)
    return RldsSource(dataset_dir(data_root, name)) if folder is None else LeRobotSource(folder)


def describe(data_root: str | Path, name: str, specs_file: Path | None = None) -> DatasetSpec:
    """The description of dataset `name`: from the user's file, built in, and for LeRobot datasets completed by what their metadata say.

    Args:
        data_root: folder of the datasets.
        name: the dataset.
        specs_file: see `eosjax.data.specs.spec_for`.

    Raises:
        SpecError: no description, or a faulty one.
        DatasetError: metadata that cannot be read.
    """
    folder = lerobot_folder(data_root, name)
    return spec_for(name, specs_file) if folder is None else describe_lerobot(folder, name, specs_file)


def own_labels(data_root: str | Path, name: str) -> Path | None:
    """Where a dataset has labels of sub-steps itself: the folder of a LeRobot dataset with annotations; None for any other.

    Raises:
        LabelError: damaged annotations.
    """
    folder = lerobot_folder(data_root, name)
    if folder is None or read_info(folder).legacy:
        return None
    return folder if formats_of(folder) else None


def statistics_warnings(data_root: str | Path, name: str, spec: DatasetSpec, stats: DatasetStats) -> list[str]:
    """Where a dataset states statistics of its own that are not those of its frames: lines for the user."""
    folder = lerobot_folder(data_root, name)
    return [] if folder is None else compare_statistics(folder, spec, stats)


def lerobot_folder(data_root: str | Path, name: str) -> Path | None:
    """The folder of a LeRobot dataset: below `data_root`, or for a name owner/name that is not there, a copy of it from the hub.

    With owner/name@revision it is the copy of that branch, tag or commit. None if there is none of that name.

    Raises:
        DatasetError: the hub has no such dataset or revision, or cannot be reached.
    """
    folder = Path(data_root).expanduser() / name
    if (folder / INFO).is_file():
        return folder
    repository, revision = split_revision(name)
    return _from_hub(repository, revision) if is_hub_name(repository) else None


@functools.cache
def _from_hub(name: str, revision: str | None) -> Path:
    """A copy in the cache of the hub, all of it: looked for once a process."""
    folder = fetch("--dataset_name", name, DatasetError, revision, "--dataset_name", repo_type="dataset", allow_patterns=_HUB_FILES)
    if not (folder / INFO).is_file():
        raise DatasetError(f"--dataset_name {name}: expected a LeRobot dataset on the hub, found no {INFO} in it")
    return folder
