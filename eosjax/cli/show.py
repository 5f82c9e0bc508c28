"""Describes a training run: policy, data, checkpoints with their figures, and the operating point of its EOS head.

Checks whether its tokenizer, base weights and data are here. Reads only the records of the run."""

from __future__ import annotations

import argparse
import json

from eosjax.cli.common import to_path
from eosjax.cli.trained import add_step_flag
from eosjax.reports.tables import table
from eosjax.runs.describe import RunDescription, describe_run


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument("run_dir", type=to_path, metavar="RUN", help="folder of the training run")
    add_step_flag(parser)
    parser.add_argument("--vla_path", metavar="PATH", help="look for the frozen base weights here")
    parser.add_argument("--data_root_dir", type=to_path, metavar="DIR", help="look for the datasets here")
    parser.add_argument("--substep_labels_path", type=to_path, metavar="PATH", help="look for the labels here")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, with the whole record of the checkpoint")


def run(args: argparse.Namespace) -> int:
    """Prints the description."""
    description = describe_run(args.run_dir, args.step, args.vla_path, args.data_root_dir, args.substep_labels_path)
    print(json.dumps(description.to_json(), indent=1) if args.json else _text(description))
    return 0


def _text(description: RunDescription) -> str:
    sections = (
        ("", description.facts()),
        ("checkpoints", description.checkpoint_rows()),
        ("datasets", description.dataset_rows()),
        ("here", description.presence_rows()),
    )
    return "\n\n".join("\n".join([*([title] if title else []), table(rows)]) for title, rows in sections)
