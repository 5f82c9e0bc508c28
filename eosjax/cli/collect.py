"""Collects demonstrations by a scripted expert into an RLDS/TFDS dataset in LIBERO's layout, with its label file.

The same flags give the same dataset. After Ctrl-C the same command goes on."""

from __future__ import annotations

import argparse
import os

from eosjax.cli import common
from eosjax.data.rlds.write import LABELS_FILE
from eosjax.envs.attempts import FAILURES
from eosjax.envs.collect import Settings, collect
from eosjax.envs.registry import BUILT_IN, open_source
from eosjax.types import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument("--env", required=True, metavar="ENV", help=f"environment: {', '.join(BUILT_IN)}")
    parser.add_argument("--episodes", type=int, required=True, metavar="N", help="attempts")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of scenes and expert (%(default)s)")
    parser.add_argument(
        "--failures", type=float, default=0.0, metavar="SHARE", help=f"share of attempts that go wrong: {', '.join(FAILURES)} (%(default)s)"
    )
    common.add_boolean_flag(parser, "--plain_pictures", "pictures of LIBERO without reflections and antialiasing: half the time on a CPU")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="that make episodes (%(default)s)")
    parser.add_argument(
        "--out", type=common.to_path, required=True, metavar="DIR", help="folder for the dataset, its label file and attempts.json"
    )


def run(args: argparse.Namespace) -> int:
    """Collects."""
    if args.episodes < 1 or args.seed < 0 or args.processes < 1 or not 0 <= args.failures <= 1:
        raise UserError("expected --episodes and --processes of at least 1, --seed of at least 0, and --failures from 0 to 1")
    source = open_source(args.env, args.plain_pictures)
    settings = Settings(args.env, args.episodes, args.seed, args.failures, args.plain_pictures)
    kinds = collect(args.out, settings, source, args.processes)
    print(", ".join(f"{count} {kind}" for kind, count in kinds.items() if count))
    print(f"written: {args.out / source.dataset}\nwritten: {args.out / LABELS_FILE}")
    print(f"train on it: --data_root_dir {args.out} --dataset_name {source.dataset} --substep_labels_path {args.out / LABELS_FILE}")
    return 0
