"""Checks eosjax on a GPU, and measures it there, within a given time.

    python benchmarks/gpu.py --out DIR

Checks: the buffer, a small policy, attention, updates, donation, checkpoints, and runs that must be equal bit for bit. Figures: updates of
a policy of the shape of openvla-7b with random weights, the share of the EOS part in them, inference, and the buffer alone. Each row is
written to DIR as it comes (rows.jsonl, tables.md); docs/gpu.md says what they mean. Exit status 1 if a check fails. `--tiny` runs all of it
on small shapes, also on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, which need not be installed

from benchmarks.on_gpu import driver


def main(argv: list[str]) -> int:
    """Runs the benchmark, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows")
    parser.add_argument("--seconds", type=float, default=480.0, help="end after this time (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small shapes, whose figures mean nothing")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.task is None:
        return driver.run(args.out.resolve(), args.seconds, tiny=args.tiny)
    from benchmarks.on_gpu.worker import work  # loads JAX

    work(json.loads(args.task), args.out, tiny=args.tiny)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
