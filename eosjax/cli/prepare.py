"""Builds the frame stores of one or several datasets ahead of their first use in training, `inspect` or `label`.

A store is built once. A changed dataset gets a new store. If nothing has changed, the command only prints where the store is."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from eosjax.cli.dataset import add_dataset_flags, open_dataset
from eosjax.flag_values import parse_mixture
from eosjax.reports.tables import table


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_dataset_flags(parser, "dataset in that folder, or several: a,b (weights are ignored)")


def run(args: argparse.Namespace) -> int:
    """Builds what is missing and prints a line a dataset."""
    rows: list[tuple[str, ...]] = [("dataset", "episodes", "steps", "hours", "size", "frame store")]
    for member in parse_mixture(args.dataset_name):
        store, spec, _ = open_dataset(args, member.name)
        hours = store.num_frames / spec.control_hz / 3600
        megabytes = np.sum([file.stat().st_size for file in Path(store.folder).rglob("*") if file.is_file()]) / 1e6
        rows.append(
            (member.name, f"{store.num_episodes:,}", f"{store.num_frames:,}", f"{hours:.2f}", f"{megabytes:,.1f} MB", str(store.folder))
        )
    print(table(rows, right=" rrrr"))
    return 0
