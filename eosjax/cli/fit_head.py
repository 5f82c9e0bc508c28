"""Trains the EOS head of a training run anew, on the hidden states of its policy, which stands still: minutes instead of a training.

Also for other labels (--substep_labels_path), and for a policy that was trained without an EOS head. Writes a new run: the same policy, the
new head, its calibration and its operating point. The hidden states are computed once and kept, so that another fit begins at once."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eosjax.cli.cache_hidden import describe
from eosjax.cli.common import integers, to_path
from eosjax.cli.trained import add_checkpoint_flags
from eosjax.cli.trained_data import add_place_flags, placed
from eosjax.config import BALANCED_BUFFER, TrainConfig
from eosjax.data.labels import FORMATS
from eosjax.ends.measure import DEPLOYED
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import ChunkedEpisode
from eosjax.reports.end_of_training import write_comparison
from eosjax.reports.tables import table
from eosjax.runs.data import RunData, dataset_records, label_fingerprint, relabel_data, share_of_ends
from eosjax.runs.hidden import CacheError, HiddenCache, check_new, open_cache
from eosjax.runs.load import SavedRun, load_run, open_tokenizer
from eosjax.runs.record import HeadFit, RunRecord, Validation
from eosjax.runs.refit import discard, finish, scratch_folder, write_refitted
from eosjax.training.data_checks import check_ends, check_plausible, unlikely_labels
from eosjax.training.head_fit import EVENT_AP, FRAME_AP, FitPlan, FittedHead, Pass, episodes_by, fit_heads
from eosjax.training.hidden_states import all_episodes, columns_of, states_fingerprint, store_hidden
from eosjax.training.logging import MetricWriter
from eosjax.training.validation import operate
from eosjax.types import UserError

_PASSES, _BATCH, _RATE = 12, 512, 1e-3
_LOSSES = (BALANCED_BUFFER, "bce", "pos_weight", "focal", "logit_adjust")
_OF_HEAD = ("eos_hidden_dim", "eos_dropout", "eos_operating_point", "eos_threshold")
_SHOWN = {
    "frame AP": FRAME_AP,
    "event AP@2": EVENT_AP,
    "F1@2": "event/f1@2",
    "as deployed: F1@2": f"{DEPLOYED}event/f1@2",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_checkpoint_flags(parser)
    parser.add_argument("--out", type=to_path, required=True, metavar="DIR", help="folder of the new run; must be new or empty")
    parser.add_argument(
        "--hidden",
        type=to_path,
        metavar="DIR",
        help="folder of the hidden states, as of `eosjax cache-hidden`; made if it is not there (RUN/hidden/STEP-FINGERPRINT)",
    )
    fit = parser.add_argument_group("the fit")
    fit.add_argument(
        "--eos_loss",
        choices=_LOSSES,
        help=f"as in train.py, on all training rows: {BALANCED_BUFFER} draws from all of them; the others take them as they are (that of "
        f"the run; {BALANCED_BUFFER} for one with fresh rows beside the buffer, or without a head)",
    )
    fit.add_argument("--passes", type=int, default=_PASSES, metavar="N", help="passes over the training rows (%(default)s)")
    fit.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="early stopping: end after N passes without a better event AP on the held-out episodes, and keep the head of the best pass "
        "(not given: all passes are made, and the last head is kept)",
    )
    fit.add_argument("--batch_size", type=int, default=_BATCH, metavar="N", help="rows of an update (%(default)s)")
    fit.add_argument("--learning_rate", type=float, default=_RATE, metavar="R", help="a tenth of it in the last third (%(default)g)")
    fit.add_argument(
        "--seeds",
        type=integers,
        metavar="A,B",
        help="fit a head for each, and keep that of the best held-out event AP (that of the run)",
    )
    fit.add_argument("--eos_hidden_dim", type=int, metavar="N", help="width of the head (that of the run)")
    fit.add_argument("--eos_dropout", type=float, metavar="P", help="dropout in the head (that of the run)")
    fit.add_argument("--eos_threshold", type=float, metavar="P", help="as in train.py (that of the run)")
    fit.add_argument("--eos_operating_point", metavar="RULE", help="as in train.py, such as f1:2 or false_alarms:1 (that of the run)")
    places = add_place_flags(parser)
    places.add_argument("--substep_labels_format", choices=FORMATS, help="format of the labels (that of the run)")
    places.add_argument("--allow", metavar="NAMES", help="exceptions, as in train.py (those of the run)")


def run(args: argparse.Namespace) -> int:
    """Fits, measures and writes."""
    _check_flags(args)
    check_new(args.out)
    saved = load_run(args.checkpoint, args.step, with_base=False, vla_path=args.vla_path)
    print(f"{args.checkpoint}: {saved.chosen.sentence()}")
    config = _config(args, saved)
    data = relabel_data(config, saved.record.run, open_tokenizer(saved.folder, saved.record))
    _check_labels(saved, data)
    cache = _states(args, saved, data)
    share = share_of_ends(data.train)
    plan = FitPlan(args.seeds or (config.seed,), args.passes, args.patience, args.batch_size, args.learning_rate)
    scratch = scratch_folder(args.out)
    try:
        scratch.mkdir(parents=True)
        heads = _fit(cache, config, plan, scratch)
        kept = max(heads, key=lambda head: head.event_ap)
        episodes = episodes_by(cache, config, kept.params)
        point, figures = operate(episodes, config, share, data.train)
        validation = Validation(saved.step, _action_loss(saved, data) | figures, point)
        record = _record(saved, config, data, share, _how(saved, cache, plan, kept))
        write_refitted(scratch, saved, record, data.mixture.stats, kept.params, validation)
        report = _report(scratch, data, episodes, point)
        finish(scratch, args.out)
    finally:
        discard(scratch)
    before = _before(saved, cache, data)
    print("\n\n".join([_seeds_table(heads), _comparison(before, figures), point.sentence(), report, f"run: {args.out}"]))
    return 0


def _check_flags(args: argparse.Namespace) -> None:
    least = {"passes": 1, "patience": 1, "batch_size": 2}
    for name, smallest in least.items():
        if (value := getattr(args, name)) is not None and value < smallest:
            raise UserError(f"--{name}: expected {smallest} or more, got {value}")
    if not 0 < args.learning_rate < float("inf"):
        raise UserError(f"--learning_rate: expected a number above 0, got {args.learning_rate:g}")
    if args.seeds and len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds: expected different numbers, got {','.join(map(str, args.seeds))}")


def _config(args: argparse.Namespace, saved: SavedRun) -> TrainConfig:
    """The flags of the new run: those of the old one but for its EOS head, its labels and its place. Raises `ConfigError`."""
    old = saved.config
    loss = args.eos_loss or (BALANCED_BUFFER if old.uses_buffer or not old.use_eos_classification else old.eos_loss)
    given = {name: value for name in (*_OF_HEAD, "substep_labels_format", "allow") if (value := getattr(args, name)) is not None}
    out = args.out.absolute()
    head = {"use_eos_classification": True, "use_substep_eos": True, "eos_loss": loss, "eos_backbone_grad": False}
    of_buffer = {"eos_age_match": False, "eos_tune": "manual", "lambda_eos_policy": TrainConfig.lambda_eos_policy}
    place = {"run_root_dir": out.parent, "run_id_override": out.name, "run_id_note": None, "resume": False}
    return dataclasses.replace(placed(args, saved), **head, **of_buffer, **place, **given)


def _check_labels(saved: SavedRun, data: RunData) -> None:
    """Refuses labels without ends or that cannot be; says whether they are those of the run."""
    check_ends(data)
    for dataset, recorded in zip(data.mixture.datasets, saved.record.run.datasets, strict=True):
        check_plausible(dataset)
        for line in unlikely_labels(dataset):
            print(line)
        if (found := label_fingerprint(dataset.labels)) != recorded.labels:
            ends = int(dataset.labels.ends.sum())
            print(f"{dataset.name}: other labels than those of the run ({found[:12]}, was {recorded.labels[:12]}): {ends:,} ends")
    if not saved.config.use_substep_eos:
        print("note: the policy was trained on the instructions of whole tasks; from now on it is told those of the sub-steps")


def _states(args: argparse.Namespace, saved: SavedRun, data: RunData) -> HiddenCache:
    """The hidden states of all episodes, with the labels to be learnt; computed if they are not there.

    Raises:
      CacheError: the folder holds those of another policy, or of other samples.
    """
    source = all_episodes(args.checkpoint, data)
    states = states_fingerprint(saved.record, source)
    folder = args.hidden or args.checkpoint / "hidden" / f"{saved.step}-{states[:8]}"
    if not folder.exists():
        whole = load_run(args.checkpoint, saved.step, vla_path=args.vla_path)
        store_hidden(folder, whole, data)
    cache = open_cache(folder)
    if (found := cache.facts.get("states")) != states:
        raise CacheError(
            f"--hidden {folder}: hidden states of another policy, or of other samples: expected {states}, got {found}; name "
            "a folder that is not there, and they are computed"
        )
    print(f"hidden states: {describe(folder, cache)}")
    return dataclasses.replace(cache, columns=columns_of(source, data))


def _fit(cache: HiddenCache, config: TrainConfig, plan: FitPlan, folder: Path) -> list[FittedHead]:
    """The heads, with a bar on a terminal, a line after each pass, and the same in the metrics of the run."""
    writer = MetricWriter(dataclasses.replace(config, use_wandb=False), folder, 0, enabled=True)
    made = 0
    with tqdm(unit="update", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:

        def advanced(updates: int, total: int) -> None:
            nonlocal made
            made += updates
            bar.total = total
            bar.update(updates)

        def report(done: Pass) -> None:
            mean = {name: float(np.mean([each[name] for each in done.figures])) for name in (FRAME_AP, EVENT_AP)}
            loss = float(np.mean(done.loss))
            writer.write(made, {"train/eos_loss": loss} | {f"val/{name}": value for name, value in mean.items() if np.isfinite(value)})
            shown = f"frame AP {mean[FRAME_AP]:.3f}, event AP@2 {mean[EVENT_AP]:.3f}"
            tqdm.write(f"pass {done.number}/{plan.passes}: eos_loss {loss:.4f}, held out: {shown}", file=sys.stdout)

        try:
            return fit_heads(cache, config, plan, advanced, report)
        finally:
            writer.close()


def _how(saved: SavedRun, cache: HiddenCache, plan: FitPlan, kept: FittedHead) -> HeadFit:
    facts = {"run": saved.folder.absolute().name, "checkpoint": saved.record.fingerprint, "states": cache.facts["states"]}
    shape = {"batch_size": plan.batch_size, "learning_rate": plan.learning_rate, "passes": plan.passes, "patience": plan.patience}
    return HeadFit(**facts, **shape, seed=kept.seed, passes_kept=kept.passes)


def _record(saved: SavedRun, config: TrainConfig, data: RunData, share: float, how: HeadFit) -> RunRecord:
    """That of the old run with what is new."""
    new = {"config": config, "datasets": dataset_records(data), "share_of_ends": share, "wandb_id": None, "head_fit": how}
    return dataclasses.replace(saved.record.run, **new)


def _action_loss(saved: SavedRun, data: RunData) -> dict[str, float]:
    """That of the policy, if it was measured at this checkpoint and on these held-out episodes."""
    validation, name = saved.record.validation, "val/action_loss"
    same = [each.held_out for each in dataset_records(data)] == [each.held_out for each in saved.record.run.datasets]
    if validation is None or validation.step != saved.step or not same or name not in validation.figures:
        return {}
    return {name: validation.figures[name]}


def _before(saved: SavedRun, cache: HiddenCache, data: RunData) -> dict[str, float]:
    """Figures of the head that the run had, on the same episodes and labels, at a point chosen there in the same way; none without one."""
    if saved.operating_point is None:
        return {}
    episodes = episodes_by(cache, saved.config, saved.params["eos_head"])
    return operate(episodes, saved.config, saved.record.run.share_of_ends, data.train)[1]


def _report(folder: Path, data: RunData, episodes: list[ChunkedEpisode], point: OperatingPoint) -> str:
    """The files and the table that a training ends with."""
    assert data.val is not None
    return write_comparison(folder, data.train, data.val, episodes, point)


def _comparison(before: dict[str, float], after: dict[str, float]) -> str:
    def cells(figures: dict[str, float]) -> list[str]:
        return [f"{figures[f'val/{name}']:.3f}" if f"val/{name}" in figures else "–" for name in _SHOWN.values()]

    rows = [("EOS head, held-out episodes", *_SHOWN), ("before", *cells(before)), ("after", *cells(after))]
    return table(rows)


def _seeds_table(heads: list[FittedHead]) -> str:
    rows: list[Any] = [("seed", "passes", "frame AP", "event AP@2")]
    for head in heads:
        rows.append((str(head.seed), str(head.passes), *(f"{head.figures[name]:.3f}" for name in (FRAME_AP, EVENT_AP))))
    return table(rows)
