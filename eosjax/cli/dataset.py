"""What commands on a dataset share: the flags that name it, opening it, and columns of its state."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eosjax.cli.common import integers, to_path
from eosjax.config import DEMO_DATASET, TrainConfig
from eosjax.data.frames.store import FrameStore, open_store
from eosjax.data.labels import FORMATS
from eosjax.data.sources import describe, own_labels
from eosjax.data.specs import DatasetSpec
from eosjax.demo import dataset
from eosjax.flag_values import ConfigError
from eosjax.names import check_dataset_name
from eosjax.types import UserError


class Opened(NamedTuple):
    """A dataset ready to be read."""

    store: FrameStore
    spec: DatasetSpec
    labels: Path | None  # labels that come with it: those of the demo, or of an annotated LeRobot dataset


def add_dataset_flags(parser: argparse.ArgumentParser, dataset_help: str = "dataset in that folder") -> None:
    """Adds the flags that say which data to read, with the names and defaults that `train.py` has."""
    add = parser.add_argument_group("dataset").add_argument
    add(
        "--data_root_dir",
        type=to_path,
        default=TrainConfig.data_root_dir,
        metavar="DIR",
        help="folder with the RLDS/TFDS and LeRobot datasets (%(default)s)",
    )
    add("--dataset_name", required=True, metavar="NAME", help=f"{dataset_help}; {DEMO_DATASET} is generated on first use")
    add("--dataset_specs", type=to_path, metavar="FILE", help="YAML file with the descriptions of your own datasets")
    add("--cache_dir", type=to_path, metavar="DIR", help="where frame stores are kept ($EOSJAX_CACHE or ~/.cache/eosjax)")


def add_format_flag(parser: argparse._ActionsContainer) -> None:
    """Adds the flag for the format of a label file."""
    parser.add_argument(
        "--substep_labels_format", choices=FORMATS, default="auto", help="format of the label file (auto: recognised by content)"
    )


def open_dataset(args: argparse.Namespace, name: str) -> Opened:
    """The dataset `name` of the flags that `add_dataset_flags` added; its frame store is built if it is not there.

    Raises:
        eosjax.types.UserError: no plain name, no description or no dataset of that name, or one that cannot be read.
    """
    check_dataset_name("--dataset_name", name, ConfigError)
    spec = describe(args.data_root_dir, name, args.dataset_specs)
    root = args.data_root_dir
    if name == DEMO_DATASET:
        generated = dataset.ensure_demo(args.data_root_dir)
        root, labels = generated.data_root, generated.labels
    else:
        labels = own_labels(root, name)
    return Opened(open_store(root, name, spec, args.cache_dir), spec, labels)


def add_position_flag(parser: argparse._ActionsContainer) -> None:
    """Adds the flag that says where in the state the position of the hand is."""
    parser.add_argument(
        "--position_columns",
        type=integers,
        default=(0, 1, 2),
        metavar="0,1,2",
        help="columns of the state that hold the position of the hand",
    )


def take_columns(flag: str, store: FrameStore, columns: Sequence[int]) -> np.ndarray:
    """f32 [N len(columns)]: columns of the state; a `UserError` naming the flag if the state has fewer."""
    size = store.proprio.shape[1]
    if max(columns, default=0) >= size:
        raise UserError(f"{flag} {','.join(map(str, columns))}: expected columns 0 to {size - 1}: the state of {store.name} has {size}")
    return store.proprio[:, list(columns)]
