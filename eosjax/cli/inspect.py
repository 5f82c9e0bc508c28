"""Reports the content of a dataset and whether its sub-step labels fit: on the terminal, as JSON, and as a page with images of the ends.

Exit status: 0 the labels fit (or none were given), 1 they do not fit (the report is still written), 2 a wrong flag or an unreadable
dataset."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from eosjax.cli import common, dataset
from eosjax.config import ConfigError, TrainConfig, parse_mixture
from eosjax.reports.episode_view import view_episode
from eosjax.reports.inspect_page import dimension_rows, render
from eosjax.reports.survey import JoinedLabels, Survey, join_what_fits, spread_over_tasks, survey
from eosjax.reports.tables import table
from eosjax.types import UserError

_DO_NOT_FIT = 1
_LISTED_PROBLEMS, _LISTED_INSTRUCTIONS = 10, 15


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    dataset.add_dataset_flags(parser)
    labels = parser.add_argument_group("labels")
    labels.add_argument(
        "--substep_labels_path", type=Path, metavar="PATH", help="sub-step labels (default: none, the dataset alone; the demo has its own)"
    )
    dataset.add_format_flag(labels)
    common.add_boolean_flag(labels, "--allow_unlabelled", "accept episodes without labels")
    labels.add_argument(
        "--batch_size",
        type=int,
        default=TrainConfig.batch_size,
        metavar="N",
        help="batch size of the planned training, for the advice (%(default)s)",
    )
    report = parser.add_argument_group("report")
    report.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file, replacing it")
    report.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page to this file, replacing it")
    report.add_argument(
        "--episodes", type=common.integers, metavar="0,7", help="episodes to show on the page (default: four, spread over the tasks)"
    )
    dataset.add_position_flag(report)


def run(args: argparse.Namespace) -> int:
    """Makes the report; 1 if the labels do not fit."""
    if args.batch_size < 1:
        raise ConfigError(f"--batch_size must be greater than 0, got {args.batch_size}")
    member, *others = parse_mixture(args.dataset_name)
    if others:
        raise ConfigError(f"--dataset_name {args.dataset_name}: expected one dataset; inspect those of a mixture one by one")
    opened = dataset.open_dataset(args, member.name)
    source = args.substep_labels_path or opened.labels
    if source is not None and not source.exists():
        raise UserError(f"--substep_labels_path {source}: no such file or folder")
    joined = JoinedLabels(None, [])
    if source is not None:
        joined = join_what_fits(source, opened.store, args.substep_labels_format, args.allow_unlabelled)
    result = survey(opened.store, opened.spec, source, joined, args.batch_size)
    files = []
    if args.html:
        files.append((args.html, _page(args, result, opened, joined)))
    if args.json:
        files.append((args.json, json.dumps(result.to_json(), indent=1) + "\n"))
    for path, text in files:
        common.write_text(path, text)
    print("\n\n".join([_terminal(result), *(f"written: {path}" for path, _ in files)]))
    return _DO_NOT_FIT if result.problems else 0


def _page(args: argparse.Namespace, result: Survey, opened: dataset.Opened, joined: JoinedLabels) -> str:
    store = opened.store
    position = dataset.take_columns("--position_columns", store, args.position_columns)
    if args.episodes is None:
        labelled = None if joined.labels is None else np.flatnonzero(joined.labels.labelled).tolist()
        chosen = spread_over_tasks(store.tasks, labelled or range(store.num_episodes))
    else:
        chosen = args.episodes
        unknown = [episode for episode in chosen if episode >= store.num_episodes]
        if unknown:
            raise UserError(f"--episodes: expected numbers from 0 to {store.num_episodes - 1}, got {', '.join(map(str, unknown))}")
    views = [view_episode(store, joined.labels, episode, position, opened.spec.control_hz) for episode in chosen]
    return render(result, store, views)


def _terminal(result: Survey) -> str:
    """The report as text."""
    blocks = [_summary(result)]
    if result.problems:
        blocks.append(_problems(result))
    if result.instructions:
        rows = [(f"{each.steps:,}", f"{each.ends:,}", each.text) for each in result.instructions[:_LISTED_INSTRUCTIONS]]
        hidden = len(result.instructions) - len(rows)
        more = f"\n… and {hidden} more (--json and --html have all)" if hidden else ""
        blocks.append(table([("steps", "ends", "instruction"), *rows], right="rr") + more)
    header = ("", "mean", "std", "min", "1 %", "99 %", "max", "clipped", "")
    for name, dimensions in (("action", result.action), ("state", result.proprio)):
        blocks.append(table([(name, *header[1:]), *dimension_rows(dimensions)], right="rrrrrrrr"))
    return "\n\n".join(blocks)


def _summary(result: Survey) -> str:
    rows = [
        ("dataset", f"{result.dataset}: {result.episodes:,} episodes of {len(result.tasks)} task(s), {result.steps:,} steps"),
        ("cameras", ", ".join(result.cameras)),
    ]
    if result.labels is None:
        return table([*rows, ("labels", "none given")])
    verdict = "fit" if not result.problems else f"DO NOT FIT: {len(result.problems)} problem(s)"
    rows += [
        ("labels", f"{result.labels}: {verdict}"),
        ("matched", f"{result.matched_episodes:,} of {result.episodes:,} episodes ({result.matched_episodes / result.episodes:.1%})"),
    ]
    if result.share_of_ends is not None:
        counts = ", ".join(f"{ends} in {episodes:,}" for ends, episodes in result.ends_per_episode[:6])
        more = ", …" if len(result.ends_per_episode) > 6 else ""
        rows.append(("ends", f"{result.ends:,}, {result.share_of_ends:.2%} of the steps; in an episode: {counts}{more}"))
    if result.substep_steps is not None:
        lengths = result.substep_steps
        seconds = f"{lengths.median / result.control_hz:.2f} s"
        rows.append(("sub-steps", f"{lengths.min} to {lengths.max} steps, median {lengths.median:g} ({seconds}), mean {lengths.mean:.1f}"))
    if result.buffer is not None:
        rows += _advice(result)
    return table(rows)


def _advice(result: Survey) -> list[tuple[str, str]]:
    buffer = result.buffer
    assert buffer is not None
    count = buffer.suggested_positives
    return [
        (
            "buffer",
            f"--batch_size {buffer.batch_size} x {result.chunk} actions: about {buffer.ends_per_step:.1f} ends in the "
            f"{buffer.rows_per_step} rows of a step; first EOS update after about {buffer.first_update} step(s) with the defaults",
        ),
        (
            "suggested",
            f"--eos_sample_positive {count} --eos_min_positive {count} ({buffer.why}); then after about {buffer.suggested_first_update}",
        ),
    ]


def _problems(result: Survey) -> str:
    totals = Counter(problem["kind"] for problem in result.problems)
    rows = [
        (problem["kind"], "" if problem["episode"] is None else f"episode {problem['episode']}", problem["what"])
        for problem in result.problems[:_LISTED_PROBLEMS]
    ]
    hidden = len(result.problems) - len(rows)
    more = f"\n… and {hidden} more (--json has all)" if hidden else ""
    return "problems: " + ", ".join(f"{count} x {kind}" for kind, count in totals.most_common()) + "\n" + table(rows) + more
