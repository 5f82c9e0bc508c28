"""What commands on a training run share: the flags that name a checkpoint, and loading it."""

from __future__ import annotations

import argparse

from eosjax.cli.common import to_path
from eosjax.runs.load import BEST, NEWEST, SavedRun, load_run
from eosjax.types import UserError


def add_checkpoint_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the flags that name a checkpoint, and where its base weights are."""
    parser.add_argument("--checkpoint", type=to_path, required=required, metavar="RUN", help="folder of the training run")
    add_step_flag(parser)
    parser.add_argument("--vla_path", metavar="PATH", help="where the frozen base weights are now, if not where the run found them")


def add_step_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that says which checkpoint of a run."""
    parser.add_argument(
        "--step",
        metavar=f"{BEST}|{NEWEST}|N",
        help=f"which checkpoint: {BEST} by validation, {NEWEST}, or a number of updates ({BEST}, or {NEWEST} without a validation)",
    )


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
