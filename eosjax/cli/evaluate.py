"""Runs the policy of a training run over the episodes that it was validated on, and measures how well it tells the ends of sub-steps.

Writes metrics.json and report.html, like `eosjax score`, with pictures. Dense protocol: every step is judged, by the mean logit of all
chunks that cover it, at the probability corrected to the true share of ends."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from eosjax.cli.event_page import render
from eosjax.cli.score import refuse_results, terminal, write_report
from eosjax.config import TrainConfig
from eosjax.data.loader import EvalLoader, SampleSource
from eosjax.data.stats import stats_to_json
from eosjax.evaluation.event_report import EventReport
from eosjax.evaluation.frame import FrameScores
from eosjax.evaluation.measure import NMS_WINDOW
from eosjax.evaluation.validate import EosSetting, Validation, by_episode, validate
from eosjax.training.parallel import DataParallel, choose_devices
from eosjax.training.saved import SavedRun, load_run
from eosjax.training.setup import PolicySource, RunData, open_data
from eosjax.training.state import make_learner, split_params
from eosjax.types import Batch, UserError

SPLITS = ("val", "train")
# Where the data are may have changed since the run; what they are may not.
_PLACES = ("data_root_dir", "dataset_specs", "substep_labels_path", "cache_dir")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="folder of the training run")
    parser.add_argument("--step", type=int, metavar="N", help="which of its checkpoints (the newest)")
    parser.add_argument("--split", choices=SPLITS, default="val", help="episodes that were held out, or those of training (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results (RUN/evaluation/STEP-SPLIT); must not have any yet")
    parser.add_argument("--threshold", type=float, metavar="P", help="probability from which a step may fire (eos_threshold of the run)")
    parser.add_argument(
        "--nms", type=int, default=NMS_WINDOW, metavar="W", help="a firing rules out lower ones up to W steps away (%(default)s)"
    )
    places = parser.add_argument_group("where the data are now, if not where they were (as in train.py)")
    for name in _PLACES:
        places.add_argument(f"--{name}", type=Path, metavar="PATH")


def run(args: argparse.Namespace) -> int:
    """Runs the policy, measures and writes."""
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise UserError(f"--threshold: expected a probability above 0, up to 1, got {args.threshold:g}")
    if args.nms < 0:
        raise UserError(f"--nms: expected 0 steps or more, got {args.nms}")
    saved = load_run(args.checkpoint, args.step)
    eos = saved.eos_setting
    if eos is None:
        raise UserError(f"--checkpoint {args.checkpoint}: the run has no EOS head, it was trained with --use_eos_classification False")
    if args.threshold is not None:
        eos = eos._replace(threshold=args.threshold)
    out = args.out or args.checkpoint / "evaluation" / f"{saved.step}-{args.split}"
    refuse_results(out)
    config = dataclasses.replace(saved.config, **{name: path for name in _PLACES if (path := getattr(args, name)) is not None})
    source = _split(args, saved, open_data(config, PolicySource.open(config)))
    result = _predict(saved, config, source, eos)
    assert result.scores is not None
    episodes = by_episode(result.scores, source.data.episode_of, eos)
    report = EventReport.of(f"{args.checkpoint.name}, step {saved.step}, {args.split} split", episodes, eos.threshold, args.nms)
    pictures = functools.partial(_pictures, source, _first_frames(result.scores, source))
    paths = write_report(out, report, render("eosjax evaluate", report, pictures))
    action_loss = f"action loss              {result.row['val/action_loss']:.4f}"
    print("\n\n".join([terminal(report), action_loss, "\n".join(f"written: {path}" for path in paths)]))
    return 0


def _split(args: argparse.Namespace, saved: SavedRun, data: RunData) -> SampleSource:
    """The samples to judge."""
    if stats_to_json(data.mixture.stats) != saved.statistics:
        raise UserError(f"the data are not those that {args.checkpoint} was trained on: their statistics differ")
    source = data.val if args.split == "val" else data.train
    if source is None:
        raise UserError(f"--split val: {args.checkpoint} held out no episodes (--use_val_set False)")
    return source


def _predict(saved: SavedRun, config: TrainConfig, source: SampleSource, eos: EosSetting) -> Validation:
    """All samples of a split through the policy."""
    devices = choose_devices(config.num_devices)
    parallel = DataParallel(make_learner(config, saved.vla_config), devices)
    trainable, frozen = (parallel.replicate(tree) for tree in split_params(saved.params))

    def predict(batch: Batch) -> Any:
        return jax.device_get(parallel.predict(trainable, frozen, parallel.split(batch)))

    loader = EvalLoader(source, config.batch_size * len(devices), threads=config.num_loader_threads)
    batches = tqdm(loader, desc="evaluating", unit="batch", disable=not sys.stderr.isatty())
    return validate(predict, batches, source.anchors, source.data.labels.ends, source.data.episode_of, eos)


def _first_frames(scores: FrameScores, source: SampleSource) -> np.ndarray:
    """i64 [e]: the first frame of each episode, in the order of `by_episode`."""
    return source.data.episode_starts[np.unique(source.data.episode_of[scores.frames])]


def _pictures(source: SampleSource, first_frames: np.ndarray, episode: int, step: int) -> tuple[bytes, ...]:
    """The pictures of a step, as files."""
    return tuple(source.data.images(int(first_frames[episode]) + step))
