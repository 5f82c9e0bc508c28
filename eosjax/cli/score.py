"""Measures how well the scores of any system detect the ends of sub-steps. Writes a table, metrics.json, and a page with charts.

FILE has one row per control step: episode,step,score,label. The score is the probability that a sub-step ends at this step. It may also be
the decision log of a robot (.jsonl) in which true ends are marked; a page of its decisions is then written, too."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eosjax.cli import common
from eosjax.ends.decision_file import read_decisions
from eosjax.ends.events import NMS_WINDOW
from eosjax.ends.score_file import LOG_SUFFIX, read_scores
from eosjax.reports.evaluation import ScoreEvaluation
from eosjax.types import UserError

METRICS, PAGE, DECISIONS = "metrics.json", "report.html", "decisions.html"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument(
        "file", type=common.to_path, metavar="FILE", help="CSV with the columns episode, step, score, label; or a decision log (.jsonl)"
    )
    parser.add_argument(
        "--out", type=common.to_path, required=True, metavar="DIR", help=f"folder for {METRICS} and {PAGE}; it must not contain them yet"
    )
    parser.add_argument("--threshold", type=float, default=0.5, metavar="P", help="score from which a step may fire (%(default)s)")
    parser.add_argument(
        "--nms", type=int, default=NMS_WINDOW, metavar="W", help="a firing suppresses lower scores up to W steps away (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measures and writes."""
    if not 0 < args.threshold <= 1:
        raise UserError(f"--threshold: expected a probability above 0, up to 1, got {args.threshold:g}")
    if args.nms < 0:
        raise UserError(f"--nms: expected 0 steps or more, got {args.nms}")
    refuse_results(args.out)
    if args.file.suffix == LOG_SUFFIX:
        _show_decisions(args)
    evaluation = ScoreEvaluation.of(args.file.name, read_scores(args.file), args.threshold, args.nms)
    from eosjax.reports.pages import score_page  # loads matplotlib: after the flags and the file, a wrong one is answered at once

    paths = write_report(args.out, evaluation.to_json(), score_page(evaluation))
    print("\n\n".join([evaluation.to_text(), "\n".join(f"written: {path}" for path in paths)]))
    return 0


def _show_decisions(args: argparse.Namespace) -> None:
    """Writes the page of a decision log, which needs no true ends."""
    decided = read_decisions(args.file)
    from eosjax.reports.closed_loop import decisions_page  # loads matplotlib

    common.write_text(args.out / DECISIONS, decisions_page(args.file.name, decided))
    print(f"written: {args.out / DECISIONS}\n")


def refuse_results(folder: Path) -> None:
    """Raises a `UserError` if the folder has results that would be overwritten, or if none can be written to it."""
    nearest = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise UserError(f"--out {folder}: expected a folder, {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"--out {folder}: no permission to write to {nearest}")
    found = [name for name in (METRICS, PAGE, DECISIONS) if (folder / name).exists()]
    if found:
        raise UserError(f"--out {folder}: expected a folder without results, it has {' and '.join(found)}; choose another or move them")


def write_report(folder: Path, figures: Mapping[str, Any], page: str) -> list[Path]:
    """Writes the figures and the page, and returns where."""
    files = [(folder / METRICS, json.dumps(figures, indent=1, allow_nan=False) + "\n"), (folder / PAGE, page)]
    for path, text in files:
        common.write_text(path, text)
    return [path for path, _ in files]
