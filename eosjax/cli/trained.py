"""What commands on a training run share: the flags that name it, and opening it with its data."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from eosjax.config import TrainConfig
from eosjax.data.stats import stats_to_json
from eosjax.runs.data import RunData, open_data
from eosjax.runs.load import SavedRun, load_run
from eosjax.runs.policy_source import PolicySource
from eosjax.types import UserError

# Where the data are may have changed since the run; what they are may not.
_PLACES = ("data_root_dir", "dataset_specs", "substep_labels_path", "cache_dir")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a checkpoint, and the places of its data."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="folder of the training run")
    parser.add_argument("--step", type=int, metavar="N", help="which of its checkpoints (the newest)")
    places = parser.add_argument_group("where the data are now, if not where they were (as in train.py)")
    for name in _PLACES:
        places.add_argument(f"--{name}", type=Path, metavar="PATH")


def load_with_eos(args: argparse.Namespace) -> SavedRun:
    """The checkpoint that the flags name.

    Raises:
      UserError: it has no EOS head.
      eosjax.runs.checkpoint.CheckpointError: see `load_run`.
    """
    saved = load_run(args.checkpoint, args.step)
    if not saved.config.use_eos_classification:
        raise UserError(f"--checkpoint {args.checkpoint}: the run has no EOS head, it was trained with --use_eos_classification False")
    return saved


def open_run_data(args: argparse.Namespace, saved: SavedRun) -> tuple[TrainConfig, RunData]:
    """The run's configuration with the places that the flags name, and its data.

    Raises:
      UserError: other data than those of the run.
    """
    config = dataclasses.replace(saved.config, **{name: path for name in _PLACES if (path := getattr(args, name)) is not None})
    data = open_data(config, PolicySource.open(config))
    if stats_to_json(data.mixture.stats) != saved.statistics:
        raise UserError(f"the data are not those that {args.checkpoint} was trained on: their statistics differ")
    return config, data
