"""The command `eosjax`: one module of this package a subcommand, loaded only when it is called.

A command's module has `add_flags(parser)` and `run(args) -> int`, the exit status: 0 for success, others as its help says.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from eosjax import runtime
from eosjax.extras import check_train_extra
from eosjax.reports.texts import literal_lines
from eosjax.types import UserError

COMMANDS = {
    "prepare": "build the frame store of a dataset ahead of its first use",
    "inspect": "report the content of a dataset, and whether its sub-step labels fit",
    "label": "make sub-step labels for a pick-and-place dataset that has none",
    "show": "describe a training run, and check whether everything it needs is here",
    "export": "write the policy of a training run for PyTorch: heads, PEFT adapter or merged checkpoint",
    "serve": "serve the policy of a training run to robots",
    "evaluate": "measure how well the policy of a training run detects sub-step ends",
    "rollout": "let the policy of a training run act in an environment, and measure who should switch sub-steps",
    "collect": "collect demonstrations by a scripted expert as a dataset",
    "fit-head": "train the EOS head of a training run anew on the hidden states of its policy, also for other labels",
    "cache-hidden": "store the hidden states of the policy of a training run, to train heads on them",
    "bench": "compare ways to train the EOS head",
    "score": "measure how well scores from a file detect sub-step ends",
    "plan": "plan a training run: parameters, memory, arithmetic, the largest batch",
}
# Commands that the default dependencies are enough for. The others need the extra `train`.
WITHOUT_EXTRA = {"show", "export", "serve"}
# 1 is for commands to give a meaning to, so Python's own status of a traceback will not do.
_USER_ERROR, _DEFECT, _INTERRUPTED, _BROKEN_PIPE = 2, 70, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    2: an error that the user can correct, reported on stderr without a traceback; 70: a defect, with one; 130: Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]  # texts of a dataset in an ASCII locale
    try:
        args = _parse(argv)
        return args.run(args)
    except UserError as error:
        print(literal_lines(f"eosjax {argv[0]}: {error}"), file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print(f"eosjax {argv[0]}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still has in its buffer
        return _BROKEN_PIPE
    except Exception:
        traceback.print_exc()
        return _DEFECT


def _parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line with the flags of the command that it names, the only one whose module is loaded."""
    parser = argparse.ArgumentParser(
        prog="eosjax",
        description="Robot policies that know when a sub-step ends: data, runs, evaluation.",
        epilog="Training: python train.py --help.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, allow_abbrev=False)
        if argv[:1] == [name]:
            if name not in WITHOUT_EXTRA:
                check_train_extra()
            runtime.prepare()
            command = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
            subparser.description = command.__doc__
            command.add_flags(subparser)
            subparser.set_defaults(run=command.run)
    return parser.parse_args(argv)
