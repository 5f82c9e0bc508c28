"""Runs the policy of a training run over its held-out episodes, or over another labelled dataset (--dataset_name), and measures how well
it detects the ends of sub-steps.

Writes metrics.json and report.html, like `eosjax score`, with images. Measures the dense protocol (every step has a score) and the deployed
protocol (the policy plans as on a robot), at the operating point stored with the checkpoint, beside baselines without images."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from eosjax.cli.common import to_path
from eosjax.cli.score import refuse_results, write_report
from eosjax.cli.trained import add_checkpoint_flags, load_with_eos
from eosjax.cli.trained_data import add_place_flags, open_run_data, placed
from eosjax.data.labels import FORMATS
from eosjax.data.samples.loader import EvalLoader
from eosjax.data.samples.source import SampleSource
from eosjax.ends.baselines import baselines_on
from eosjax.ends.events import NMS_WINDOW
from eosjax.ends.operating_points import OperatingPoint, cross_fit, selection
from eosjax.models.parts import split_params
from eosjax.names import check_dataset_name, folder_name
from eosjax.reports.evaluation import PolicyEvaluation
from eosjax.reports.pages import evaluate_page
from eosjax.runs.data import RunData, episode_ends, open_other_data
from eosjax.runs.load import SavedRun, open_tokenizer
from eosjax.training.data_checks import check_plausible, unlikely_labels
from eosjax.training.parallel import DataParallel, Device, choose_devices
from eosjax.training.state import make_learner
from eosjax.training.validation import Predictions, predict_split
from eosjax.types import Batch, UserError

VAL = "val"
SPLITS = (VAL, "train")
_OF_OTHER = ("dataset_specs", "substep_labels_format", "statistics_of")  # flags that say something of another dataset


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_checkpoint_flags(parser)
    parser.add_argument("--split", choices=SPLITS, help="of the run's own data: episodes that were held out, or those of training (val)")
    parser.add_argument(
        "--out", type=to_path, metavar="DIR", help="folder for the results (RUN/evaluation/STEP-SPLIT); must not have any yet"
    )
    parser.add_argument("--threshold", type=float, metavar="P", help="probability from which a step ends a sub-step (the stored one)")
    parser.add_argument(
        "--nms", type=int, default=NMS_WINDOW, metavar="W", help="a firing silences lower scores up to W steps away (%(default)s)"
    )
    parser.add_argument("--num_devices", type=int, default=0, metavar="N", help="devices to run on (0: all)")
    add_place_flags(parser)
    other = parser.add_argument_group("another labelled dataset, instead of the run's own")
    other.add_argument("--dataset_name", metavar="NAME", help="evaluate on all labelled episodes of this dataset, in --data_root_dir")
    other.add_argument("--dataset_specs", type=to_path, metavar="FILE", help="YAML file with its description")
    other.add_argument("--substep_labels_format", choices=FORMATS, help="format of its labels (auto)")
    other.add_argument("--statistics_of", metavar="NAME", help="dataset of the run whose statistics it is normalised with (the only one)")


class _Subject(NamedTuple):
    """What is evaluated on."""

    name: str  # of the folder of the results
    title: str
    source: SampleSource
    own: RunData | None  # the data of the run, if they are those


def run(args: argparse.Namespace) -> int:
    """Runs the policy, measures and writes."""
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise UserError(f"--threshold: expected a probability above 0, up to 1, got {args.threshold:g}")
    if args.nms < 0:
        raise UserError(f"--nms: expected 0 steps or more, got {args.nms}")
    _check_subject(args)
    if args.out is not None:
        refuse_results(args.out)
    devices = choose_devices(args.num_devices)
    saved = load_with_eos(args)
    point = saved.operating_point
    assert point is not None
    if args.threshold is not None:
        point = point.at(args.threshold)
    out = args.out or args.checkpoint / "evaluation" / f"{saved.step}-{folder_name(args.dataset_name or args.split or VAL)}"
    refuse_results(out)
    subject = _other(args, saved) if args.dataset_name else _own(args, saved)
    found = _predict(saved, subject.source, devices)
    baselines = baselines_on(subject.own.mixture, subject.own.train.anchors, subject.source.episodes) if subject.own else {}
    without = _points_without(args, saved, subject, found, point)
    report = PolicyEvaluation.of(subject.title, found.episodes, point, without, baselines, args.nms)
    paths = write_report(out, report.to_json(), evaluate_page(report, functools.partial(_pictures, subject.source)))
    action_loss = f"action loss              {found.action_loss:.4f}"
    print("\n\n".join([report.to_text(), action_loss, "\n".join(f"written: {path}" for path in paths)]))
    return 0


def _check_subject(args: argparse.Namespace) -> None:
    """Raises `UserError` for flags about the run's own data with another dataset, and the other way round."""
    if args.dataset_name is not None:
        check_dataset_name("--dataset_name", args.dataset_name, UserError)
        if args.split is not None:
            raise UserError(f"--split {args.split}: is about the run's own data; of --dataset_name all labelled episodes are measured")
        return
    for name in _OF_OTHER:
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: is about another dataset; name it with --dataset_name. The run's own are described in its record")


def _own(args: argparse.Namespace, saved: SavedRun) -> _Subject:
    """A split of the data that the run was trained on."""
    split = args.split or VAL
    data = open_run_data(args, saved)
    source = data.val if split == VAL else data.train
    if source is None:
        raise UserError(f"--split {VAL}: {args.checkpoint} held out no episodes (--use_val_set False)")
    return _Subject(split, f"{args.checkpoint.name}, step {saved.step}, {split} split", source, data)


def _other(args: argparse.Namespace, saved: SavedRun) -> _Subject:
    """All labelled episodes of a dataset that the run was not trained on."""
    record = saved.record.run
    like = record.dataset(args.statistics_of)
    changes = {name: getattr(args, name) for name in ("dataset_name", "dataset_specs", "substep_labels_path")}
    config = dataclasses.replace(placed(args, saved), **changes, substep_labels_format=args.substep_labels_format or "auto")
    source = open_other_data(config, record, like, open_tokenizer(saved.folder, saved.record))
    (dataset,) = source.data.datasets
    check_plausible(dataset)
    for line in unlikely_labels(dataset):
        print(line)
    title = f"{args.checkpoint.name}, step {saved.step}, on {args.dataset_name} with the statistics of {like.name}"
    return _Subject(args.dataset_name, title, source, None)


def _predict(saved: SavedRun, source: SampleSource, devices: list[Device]) -> Predictions:
    """All samples of a split through the policy."""
    config = saved.config
    parallel = DataParallel(make_learner(config, saved.vla_config), devices)
    trainable, frozen = (parallel.replicate(tree) for tree in split_params(saved.params))

    def predict(batch: Batch) -> Any:
        return jax.device_get(parallel.predict(trainable, frozen, parallel.split(batch)))

    loader = EvalLoader(source, config.batch_size * len(devices), threads=config.num_loader_threads)
    batches = tqdm(loader, desc="evaluating", unit="batch", disable=not sys.stderr.isatty())
    return predict_split(predict, batches, source.anchors, source.data.labels.ends, source.data.episode_of)


def _points_without(
    args: argparse.Namespace, saved: SavedRun, subject: _Subject, found: Predictions, point: OperatingPoint
) -> list[OperatingPoint]:
    """For each episode a point that was chosen without it; none where the episodes had no part in the choice, or are too few."""
    if subject.name != VAL or subject.own is None or args.threshold is not None or not point.episodes or len(found.episodes) < 2:
        return []
    return cross_fit(found.episodes, selection(saved.config, saved.record.run.share_of_ends, episode_ends(subject.own.train)))


def _pictures(source: SampleSource, episode: int, step: int) -> tuple[bytes, ...]:
    """The pictures of a step, as files."""
    return tuple(source.data.images(int(source.data.episode_starts[source.episodes[episode]]) + step))
