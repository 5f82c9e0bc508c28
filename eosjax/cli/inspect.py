"""Reports the content of a dataset and whether its sub-step labels fit: on the terminal, as JSON, and as a page with images of the ends.

Exit status: 0 the labels fit (or none were given), 1 they do not fit, or episodes have no steps or no task (the report is still written),
2 a wrong flag or an unreadable dataset."""

from __future__ import annotations

import argparse
import dataclasses
import json

import numpy as np

from eosjax.cli import common, dataset
from eosjax.config import TrainConfig
from eosjax.data.labels import LEFT_OUT_BY, unusable_episodes
from eosjax.data.samples.mixture import stats_of
from eosjax.data.sources import statistics_warnings
from eosjax.flag_values import ConfigError, parse_allowances, parse_mixture
from eosjax.reports.dataset_tables import survey_text
from eosjax.reports.episode_view import view_episode
from eosjax.reports.survey import JoinedLabels, Survey, join_what_fits, spread_over_tasks, survey
from eosjax.types import UserError

_DO_NOT_FIT = 1


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    dataset.add_dataset_flags(parser)
    labels = parser.add_argument_group("labels")
    labels.add_argument(
        "--substep_labels_path",
        type=common.to_path,
        metavar="PATH",
        help="sub-step labels (default: the dataset's own; where it has none, the dataset alone is reported)",
    )
    dataset.add_format_flag(labels)
    labels.add_argument("--allow", metavar="NAMES", help=f"accept episodes that training leaves out: {','.join(LEFT_OUT_BY.values())}")
    labels.add_argument(
        "--batch_size",
        type=int,
        default=TrainConfig.batch_size,
        metavar="N",
        help="batch size of the planned training, for the advice (%(default)s)",
    )
    report = parser.add_argument_group("report")
    report.add_argument("--json", type=common.to_path, metavar="FILE", help="write the numbers to this file, replacing it")
    report.add_argument("--html", type=common.to_path, metavar="FILE", help="write a self-contained page to this file, replacing it")
    report.add_argument(
        "--episodes", type=common.integers, metavar="0,7", help="episodes to show on the page (default: four, spread over the tasks)"
    )
    dataset.add_position_flag(report)


def run(args: argparse.Namespace) -> int:
    """Makes the report; 1 if the labels do not fit."""
    if args.batch_size < 1:
        raise ConfigError(f"--batch_size must be greater than 0, got {args.batch_size}")
    allow = parse_allowances(args.allow)
    member, *others = parse_mixture(args.dataset_name)
    if others:
        raise ConfigError(f"--dataset_name {args.dataset_name}: expected one dataset; inspect those of a mixture one by one")
    opened = dataset.open_dataset(args, member.name)
    source = args.substep_labels_path or opened.labels
    if source is not None and not source.exists():
        raise UserError(f"--substep_labels_path {source}: no such file or folder")
    if source is None:
        joined = JoinedLabels(None, [each for each in unusable_episodes(opened.store) if LEFT_OUT_BY[each.kind] not in allow])
    else:
        joined = join_what_fits(source, opened.store, args.substep_labels_format, allow, opened.spec.kept_steps)
    result = survey(opened.store, opened.spec, source, joined, args.batch_size)
    stated = statistics_warnings(args.data_root_dir, member.name, opened.spec, stats_of(opened.store, opened.spec))
    result = dataclasses.replace(result, warnings=[*result.warnings, *stated])
    files = []
    if args.html:
        files.append((args.html, _page(args, result, opened, joined)))
    if args.json:
        files.append((args.json, json.dumps(result.to_json(), indent=1) + "\n"))
    for path, text in files:
        common.write_text(path, text)
    print("\n\n".join([survey_text(result), *(f"written: {path}" for path, _ in files)]))
    return _DO_NOT_FIT if result.problems else 0


def _page(args: argparse.Namespace, result: Survey, opened: dataset.Opened, joined: JoinedLabels) -> str:
    from eosjax.reports.pages import inspect_page  # loads matplotlib, which only a page needs

    store = opened.store
    position = dataset.take_columns("--position_columns", store, args.position_columns)
    if args.episodes is None:
        labelled = None if joined.labels is None else np.flatnonzero(joined.labels.labelled).tolist()
        chosen = spread_over_tasks(store.tasks, labelled or np.flatnonzero(np.diff(store.episode_starts)).tolist())
    else:
        chosen = args.episodes
        unknown = [episode for episode in chosen if episode >= store.num_episodes]
        if unknown:
            raise UserError(f"--episodes: expected numbers from 0 to {store.num_episodes - 1}, got {', '.join(map(str, unknown))}")
    views = [view_episode(store, joined.labels, episode, position, opened.spec.control_hz) for episode in chosen]
    return inspect_page(result, store, views)
