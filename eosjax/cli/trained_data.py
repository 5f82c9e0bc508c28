"""What commands share that read the data of a training run again: the flags that say where they are now, and opening them."""

from __future__ import annotations

import argparse
import dataclasses

from eosjax.cli.common import to_path
from eosjax.config import TrainConfig
from eosjax.runs.data import RunData, reopen_data
from eosjax.runs.load import SavedRun, open_tokenizer


def add_place_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the flags that say where the data of the run are now."""
    places = parser.add_argument_group("where the data are now, if not where they were (as in train.py)")
    for name, metavar in (("data_root_dir", "DIR"), ("substep_labels_path", "PATH"), ("cache_dir", "DIR")):
        places.add_argument(f"--{name}", type=to_path, metavar=metavar)
    return places


def placed(args: argparse.Namespace, saved: SavedRun) -> TrainConfig:
    """The run's configuration with the places that the flags name."""
    places = ("data_root_dir", "substep_labels_path", "cache_dir")
    return dataclasses.replace(saved.config, **{name: path for name in places if (path := getattr(args, name)) is not None})


def open_run_data(args: argparse.Namespace, saved: SavedRun) -> RunData:
    """The data that the run was trained on; raises `UserError` for other data, as `eosjax.runs.data.reopen_data`."""
    return reopen_data(placed(args, saved), saved.record.run, open_tokenizer(saved.folder, saved.record))
