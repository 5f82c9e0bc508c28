"""Runs the policy of a training run once over all its episodes and stores the hidden states of every predicted action.

`eosjax bench eos` trains heads on them without running the policy again. The folder is complete without the run and its data."""

from __future__ import annotations

import argparse
from pathlib import Path

from eosjax.cli.common import to_path
from eosjax.cli.trained import add_checkpoint_flags, load_with_eos
from eosjax.cli.trained_data import add_place_flags, open_run_data
from eosjax.runs.hidden import HiddenCache, check_new, open_cache
from eosjax.training.hidden_states import store_hidden


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_checkpoint_flags(parser)
    add_place_flags(parser)
    parser.add_argument("--out", type=to_path, required=True, metavar="DIR", help="folder for the hidden states; must be new or empty")


def run(args: argparse.Namespace) -> int:
    """Runs the policy and writes."""
    check_new(args.out)
    saved = load_with_eos(args)
    store_hidden(args.out, saved, open_run_data(args, saved))
    print(describe(args.out, open_cache(args.out)))
    return 0


def describe(folder: Path, cache: HiddenCache) -> str:
    """What hidden states there are, in a line."""
    shape, held_out = cache.hidden.shape, cache.columns.held_out
    return (
        f"{shape[0]:,} steps of {held_out.size} episodes ({held_out.sum()} held out), {shape[1]} x {shape[2]} x {shape[3]} numbers each, "
        f"{cache.hidden.nbytes / 1e9:.2f} GB: {folder}"
    )
