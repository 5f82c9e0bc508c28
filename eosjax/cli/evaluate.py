"""Runs the policy of a training run over the episodes that it was validated on, and measures how well it tells the ends of sub-steps.

Writes metrics.json and report.html, like `eosjax score`, with pictures: by what every step is judged in (dense protocol), and by what fires
where a robot would plan (deployed protocol), at the operating point that is stored with the checkpoint; and baselines without images."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from eosjax.cli.score import refuse_results, write_report
from eosjax.cli.trained import add_run_flags, load_with_eos, open_run_data
from eosjax.config import TrainConfig
from eosjax.data.samples.loader import EvalLoader
from eosjax.data.samples.source import SampleSource
from eosjax.ends.baselines import baselines_on
from eosjax.ends.measure import NMS_WINDOW
from eosjax.ends.operating_points import OperatingPoint, cross_fit, selection
from eosjax.models.parts import split_params
from eosjax.reports.evaluation import PolicyEvaluation
from eosjax.reports.pages import evaluate_page
from eosjax.runs.data import RunData, episode_ends
from eosjax.runs.load import SavedRun
from eosjax.training.parallel import DataParallel, choose_devices
from eosjax.training.state import make_learner
from eosjax.training.validation import Predictions, predict_split
from eosjax.types import Batch, UserError

SPLITS = ("val", "train")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_run_flags(parser)
    parser.add_argument("--split", choices=SPLITS, default="val", help="episodes that were held out, or those of training (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results (RUN/evaluation/STEP-SPLIT); must not have any yet")
    parser.add_argument("--threshold", type=float, metavar="P", help="probability from which a step ends a sub-step (the stored one)")
    parser.add_argument(
        "--nms", type=int, default=NMS_WINDOW, metavar="W", help="a firing rules out lower ones up to W steps away (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the policy, measures and writes."""
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise UserError(f"--threshold: expected a probability above 0, up to 1, got {args.threshold:g}")
    if args.nms < 0:
        raise UserError(f"--nms: expected 0 steps or more, got {args.nms}")
    saved = load_with_eos(args)
    point = saved.operating_point
    assert point is not None
    if args.threshold is not None:
        point = point.at(args.threshold)
    out = args.out or args.checkpoint / "evaluation" / f"{saved.step}-{args.split}"
    refuse_results(out)
    config, data = open_run_data(args, saved)
    source = _split(args, data)
    found = _predict(saved, config, source)
    title = f"{args.checkpoint.name}, step {saved.step}, {args.split} split"
    without = _points_without(args, saved, data, found, point)
    report = PolicyEvaluation.of(
        title, found.episodes, point, without, baselines_on(data.mixture, data.train.anchors, source.episodes), args.nms
    )
    pictures = functools.partial(_pictures, source)
    paths = write_report(out, report.to_json(), evaluate_page(report, pictures))
    action_loss = f"action loss              {found.action_loss:.4f}"
    print("\n\n".join([report.to_text(), action_loss, "\n".join(f"written: {path}" for path in paths)]))
    return 0


def _split(args: argparse.Namespace, data: RunData) -> SampleSource:
    """The samples to judge."""
    source = data.val if args.split == "val" else data.train
    if source is None:
        raise UserError(f"--split val: {args.checkpoint} held out no episodes (--use_val_set False)")
    return source


def _predict(saved: SavedRun, config: TrainConfig, source: SampleSource) -> Predictions:
    """All samples of a split through the policy."""
    devices = choose_devices(config.num_devices)
    parallel = DataParallel(make_learner(config, saved.vla_config), devices)
    trainable, frozen = (parallel.replicate(tree) for tree in split_params(saved.params))

    def predict(batch: Batch) -> Any:
        return jax.device_get(parallel.predict(trainable, frozen, parallel.split(batch)))

    loader = EvalLoader(source, config.batch_size * len(devices), threads=config.num_loader_threads)
    batches = tqdm(loader, desc="evaluating", unit="batch", disable=not sys.stderr.isatty())
    return predict_split(predict, batches, source.anchors, source.data.labels.ends, source.data.episode_of)


def _points_without(
    args: argparse.Namespace, saved: SavedRun, data: RunData, found: Predictions, point: OperatingPoint
) -> list[OperatingPoint]:
    """For each episode a point that was chosen without it; none where the episodes had no part in the choice, or are too few."""
    if args.split != "val" or args.threshold is not None or not point.episodes or len(found.episodes) < 2:
        return []
    return cross_fit(found.episodes, selection(saved.config, saved.record["share_of_ends"], episode_ends(data.train)))


def _pictures(source: SampleSource, episode: int, step: int) -> tuple[bytes, ...]:
    """The pictures of a step, as files."""
    return tuple(source.data.images(int(source.data.episode_starts[source.episodes[episode]]) + step))
