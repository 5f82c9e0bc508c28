"""What several commands share: the flags that name a dataset, opening it, and writing files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eosjax.config import DEMO_DATASET, TrainConfig
from eosjax.data.frames.store import FrameStore, open_store
from eosjax.data.labels import FORMATS
from eosjax.data.specs import DatasetSpec, spec_for
from eosjax.demo import dataset
from eosjax.types import UserError


class Opened(NamedTuple):
    """A dataset ready to be read."""

    store: FrameStore
    spec: DatasetSpec
    labels: Path | None  # label file that comes with it: that of the demo


def add_dataset_flags(parser: argparse.ArgumentParser, dataset_help: str = "dataset in that folder") -> None:
    """Adds the flags that say which data to read, with the names and defaults that `train.py` has."""
    add = parser.add_argument_group("dataset").add_argument
    add(
        "--data_root_dir",
        type=Path,
        default=TrainConfig.data_root_dir,
        metavar="DIR",
        help="folder with the RLDS/TFDS datasets (%(default)s)",
    )
    add("--dataset_name", required=True, metavar="NAME", help=f"{dataset_help}; {DEMO_DATASET} is generated on first use")
    add("--dataset_specs", type=Path, metavar="FILE", help="YAML file with the descriptions of your own datasets")
    add("--cache_dir", type=Path, metavar="DIR", help="where frame stores are kept ($EOSJAX_CACHE or ~/.cache/eosjax)")


def add_format_flag(parser: argparse._ActionsContainer) -> None:
    """Adds the flag for the format of a label file."""
    parser.add_argument(
        "--substep_labels_format", choices=FORMATS, default="auto", help="format of the label file (auto: recognised by content)"
    )


def open_dataset(args: argparse.Namespace, name: str) -> Opened:
    """The dataset `name` of the flags that `add_dataset_flags` added; its frame store is built if it is not there.

    Raises:
        eosjax.types.UserError: no description or no dataset of that name, or one that cannot be read.
    """
    spec = spec_for(name, args.dataset_specs)
    root, labels = args.data_root_dir, None
    if name == DEMO_DATASET:
        generated = dataset.ensure_demo(args.data_root_dir)
        root, labels = generated.data_root, generated.labels
    return Opened(open_store(root, name, spec, args.cache_dir), spec, labels)


def add_boolean_flag(parser: argparse._ActionsContainer, flag: str, help: str) -> None:
    """Adds a flag that is off unless given, as `--flag` or in the spelling of `train.py`, `--flag True`."""

    def truth(text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
        return text.lower() == "true"

    parser.add_argument(flag, nargs="?", type=truth, const=True, default=False, metavar="True", help=help)


def add_position_flag(parser: argparse._ActionsContainer) -> None:
    """Adds the flag that says where in the state the position of the hand is."""
    parser.add_argument(
        "--position_columns",
        type=integers,
        default=(0, 1, 2),
        metavar="0,1,2",
        help="columns of the state that hold the position of the hand",
    )


def integers(text: str) -> tuple[int, ...]:
    """Numbers `0,1,2` of a flag, for `argparse`."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers from 0 on, separated by commas; got {text!r}")
    return tuple(int(part) for part in parts)


def take_columns(flag: str, store: FrameStore, columns: Sequence[int]) -> np.ndarray:
    """f32 [N len(columns)]: columns of the state; a `UserError` naming the flag if the state has fewer."""
    size = store.proprio.shape[1]
    if max(columns, default=0) >= size:
        raise UserError(f"{flag} {','.join(map(str, columns))}: expected columns 0 to {size - 1}: the state of {store.name} has {size}")
    return store.proprio[:, list(columns)]


def write_text(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all, and its folder if need be; `UserError` if that cannot be done."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as a whole or not at all, and its folder if need be; `UserError` if that cannot be done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
