"""What commands on a training run share: the flags that name a checkpoint, and opening it with its data."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from eosjax.config import TrainConfig
from eosjax.runs.data import RunData, reopen_data
from eosjax.runs.load import BEST, NEWEST, SavedRun, load_run, open_tokenizer
from eosjax.types import UserError


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a checkpoint, and where its base weights are."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="folder of the training run")
    add_step_flag(parser)
    parser.add_argument("--vla_path", metavar="PATH", help="where the frozen base weights are now, if not where the run found them")


def add_step_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that says which checkpoint of a run."""
    parser.add_argument(
        "--step",
        metavar=f"{BEST}|{NEWEST}|N",
        help=f"which checkpoint: {BEST} by validation, {NEWEST}, or a number of updates ({BEST}, or {NEWEST} without a validation)",
    )


def add_place_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the flags that say where the data of the run are now."""
    places = parser.add_argument_group("where the data are now, if not where they were (as in train.py)")
    for name, metavar in (("data_root_dir", "DIR"), ("substep_labels_path", "PATH"), ("cache_dir", "DIR")):
        places.add_argument(f"--{name}", type=Path, metavar=metavar)
    return places


def load(args: argparse.Namespace, *, with_base: bool = True) -> SavedRun:
    """The checkpoint that the flags name; says which it is. Raises as `eosjax.runs.load.load_run`."""
    saved = load_run(args.checkpoint, args.step, with_base=with_base, vla_path=args.vla_path)
    print(f"{args.checkpoint}: {saved.chosen.sentence()}")
    return saved


def load_with_eos(args: argparse.Namespace) -> SavedRun:
    """As `load`, and raises `UserError` if the run has no EOS head."""
    saved = load(args)
    if saved.operating_point is None:
        raise UserError(f"--checkpoint {args.checkpoint}: the run has no EOS head, it was trained with --use_eos_classification False")
    return saved


def placed(args: argparse.Namespace, saved: SavedRun) -> TrainConfig:
    """The run's configuration with the places that the flags name."""
    places = ("data_root_dir", "substep_labels_path", "cache_dir")
    return dataclasses.replace(saved.config, **{name: path for name in places if (path := getattr(args, name)) is not None})


def open_run_data(args: argparse.Namespace, saved: SavedRun) -> RunData:
    """The data that the run was trained on; raises `UserError` for other data, as `eosjax.runs.data.reopen_data`."""
    return reopen_data(placed(args, saved), saved.record.run, open_tokenizer(saved.folder, saved.record))
