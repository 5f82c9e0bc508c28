"""Makes sub-step labels for a pick-and-place dataset that has none, from the gripper command and the motion of the hand.

Every episode is read as cycles of reach, pick, carry and place, and a last leave. An episode that does not fit these cycles or its plan
gets no labels and is listed. --compare scores the ends against labels made by hand; use it to check the thresholds on a few episodes."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from eosjax.cli import common, dataset
from eosjax.data.frames.store import FrameStore
from eosjax.data.labels import LEFT_OUT_BY, SegmentTable, export_labels, export_lerobot, import_labels, join_labels
from eosjax.data.labels.labeller import Thresholds
from eosjax.data.labels.labelling import examine, label_dataset
from eosjax.data.labels.plans import read_plans
from eosjax.data.labels.plausibility import check_gripper, check_positions, refuse_impossible
from eosjax.data.sources import lerobot_folder
from eosjax.data.specs import DatasetSpec
from eosjax.flag_values import ConfigError
from eosjax.names import split_revision
from eosjax.reports.agreement import measure_agreement
from eosjax.reports.dataset_tables import agreement_text, findings_text, labelling_text
from eosjax.types import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    dataset.add_dataset_flags(parser)
    labels = parser.add_argument_group("labels")
    labels.add_argument("--out", type=common.to_path, metavar="FILE", help="label file to write; an existing file is not overwritten")
    labels.add_argument(
        "--lerobot_copy",
        type=common.to_path,
        metavar="DIR",
        help="copy of the LeRobot dataset to write, with the labels as sub-tasks of its frames; its videos are links to the original's",
    )
    labels.add_argument(
        "--plan", type=common.to_path, metavar="FILE", help="JSON file with the sub-steps of each task in words (default: 'pick: <task>')"
    )
    labels.add_argument(
        "--compare", type=common.to_path, metavar="PATH", help="labels of the same dataset to score the detected ends against"
    )
    dataset.add_format_flag(labels)
    state = parser.add_argument_group("state")
    dataset.add_position_flag(state)
    state.add_argument(
        "--finger_columns",
        type=lambda text: () if text == "none" else common.integers(text),
        default=(6, 7),
        metavar="6,7",
        help="column of the state with the opening of the fingers, or two whose difference is the opening; none: no such column (6,7)",
    )
    thresholds = parser.add_argument_group("thresholds")
    for field in dataclasses.fields(Thresholds):
        text = f"{field.metadata['meaning']} ({field.default:g} {field.metadata['unit']})"
        thresholds.add_argument(f"--{field.name}", type=float, default=field.default, metavar="X", help=text.replace("%", "%%"))


def run(args: argparse.Namespace) -> int:
    """Labels the dataset, writes the file, prints what was and was not labelled, and the score."""
    if args.out is None and args.compare is None and args.lerobot_copy is None:
        raise ConfigError("expected --out FILE or --lerobot_copy DIR (the labels), --compare PATH (their score), or several of them")
    for flag, path in (("out", args.out), ("lerobot_copy", args.lerobot_copy)):
        if path is not None and path.exists():
            raise ConfigError(f"--{flag} {path}: exists; labels are not overwritten")
    original = lerobot_folder(args.data_root_dir, args.dataset_name)
    if args.lerobot_copy is not None and original is None:
        raise ConfigError(f"--lerobot_copy: {args.dataset_name} is no LeRobot dataset; write the labels to a file with --out")
    plans = read_plans(args.plan, split_revision(args.dataset_name)[0]) if args.plan else None
    store, spec, _ = dataset.open_dataset(args, args.dataset_name)
    thresholds = Thresholds(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Thresholds)})
    truth = None
    if args.compare is not None:
        compared = import_labels(args.compare, store.name, args.substep_labels_format, spec.kept_steps)
        truth = join_labels(compared, store, LEFT_OUT_BY.values())
        if not truth.ends.any():
            raise UserError("--compare: no end of a sub-step in these labels")
    position, opening = _state(args, store)
    motion = [*check_positions(position, store.episode_starts), *check_gripper(store.actions[:, -1], store.episode_starts, opening)]
    refuse_impossible(motion, store.name)
    labelling = label_dataset(store, position, opening, spec.control_hz, thresholds, plans)
    findings = examine(store, labelling, spec.control_hz)
    print(labelling_text(store, labelling, spec.control_hz) + findings_text([*motion, *findings]))
    refuse_impossible(findings, f"the labels found in {store.name}")
    if truth is not None:
        print(f"\nagainst {args.compare}: " + agreement_text(measure_agreement(store, labelling, truth)))
    for write, path in ((_write_file, args.out), (_write_copy, args.lerobot_copy)):
        if path is None:
            continue
        if not labelling.found:
            raise UserError("no episode could be labelled: nothing is written")
        path.parent.mkdir(parents=True, exist_ok=True)
        write(args, store, labelling.to_table(store), spec)
        print(f"\nwritten: {path}" + (" (train with --allow unlabelled)" if labelling.reasons else ""))
    return 0


def _write_file(args: argparse.Namespace, store: FrameStore, table: SegmentTable, spec: DatasetSpec) -> None:
    export_labels(table, split_revision(store.name)[0], args.out)


def _write_copy(args: argparse.Namespace, store: FrameStore, table: SegmentTable, spec: DatasetSpec) -> None:
    original = lerobot_folder(args.data_root_dir, store.name)
    assert original is not None, "checked before the work"
    export_lerobot(table, original, args.lerobot_copy, spec.kept_steps)


def _state(args: argparse.Namespace, store: FrameStore) -> tuple[np.ndarray, np.ndarray | None]:
    """Position of the hand f32 [N 3] and opening of its fingers f32 [N], None if the state does not have it."""
    position = dataset.take_columns("--position_columns", store, args.position_columns)
    fingers = dataset.take_columns("--finger_columns", store, args.finger_columns)
    if position.shape[1] != 3 or fingers.shape[1] > 2:
        raise ConfigError("expected three --position_columns, and at most two --finger_columns")
    if not fingers.shape[1]:
        return position, None
    return position, np.abs(fingers[:, 0] - fingers[:, 1]) if fingers.shape[1] == 2 else fingers[:, 0]
