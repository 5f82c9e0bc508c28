"""Makes sub-step labels for a pick-and-place dataset that has none, from the gripper command and the motion of the hand.

Every episode is read as cycles of reach, pick, carry and place, and a last leave. An episode that does not fit these cycles or its plan
gets no labels and is listed. --compare scores the ends against labels made by hand; use it to check the thresholds on a few episodes."""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np

from eosjax.cli import common, dataset
from eosjax.config import ConfigError
from eosjax.data.frames.store import FrameStore
from eosjax.data.labels import Labels, Segment, export_labels, import_labels, join_labels, make_table
from eosjax.data.labels.agreement import COLLARS, match_ends
from eosjax.data.labels.labeller import KINDS, FoundSegment, NotFound, Thresholds, find_segments
from eosjax.data.labels.plans import Plans, plan_instructions, read_plans
from eosjax.reports.tables import table
from eosjax.types import UserError

_LISTED_EPISODES = 12


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    dataset.add_dataset_flags(parser)
    labels = parser.add_argument_group("labels")
    labels.add_argument("--out", type=Path, metavar="FILE", help="label file to write; an existing file is not overwritten")
    labels.add_argument(
        "--plan", type=Path, metavar="FILE", help="JSON file with the sub-steps of each task in words (default: 'pick: <task>')"
    )
    labels.add_argument("--compare", type=Path, metavar="PATH", help="labels of the same dataset to score the detected ends against")
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
    if args.out is None and args.compare is None:
        raise ConfigError("expected --out FILE (the labels), --compare PATH (their score), or both")
    if args.out is not None and args.out.exists():
        raise ConfigError(f"--out {args.out}: exists; label files are not overwritten")
    plans = read_plans(args.plan, args.dataset_name) if args.plan else None
    opened = dataset.open_dataset(args, args.dataset_name)
    thresholds = Thresholds(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Thresholds)})
    truth = None
    if args.compare is not None:
        truth = join_labels(import_labels(args.compare, opened.store.name, args.substep_labels_format), opened.store, allow_unlabelled=True)
    found, reasons = _find(opened, args, thresholds, plans)
    print(_summary(opened.store, found, reasons))
    if truth is not None:
        print(f"\nagainst {args.compare}: " + _score(opened.store, found, truth))
    if args.out is not None:
        _write(opened.store, found, args.out)
        print(f"\nwritten: {args.out}" + (" (train with --allow_unlabelled True)" if reasons else ""))
    return 0


Found = dict[int, list[tuple[FoundSegment, str]]]  # by episode: each sub-step and its instruction
Reasons = dict[str, list[int]]  # why episodes have no labels


def _find(opened: dataset.Opened, args: argparse.Namespace, thresholds: Thresholds, plans: Plans | None) -> tuple[Found, Reasons]:
    store = opened.store
    position = dataset.take_columns("--position_columns", store, args.position_columns)
    fingers = dataset.take_columns("--finger_columns", store, args.finger_columns)
    if position.shape[1] != 3 or fingers.shape[1] > 2:
        raise ConfigError("expected three --position_columns, and at most two --finger_columns")
    opening = np.abs(fingers[:, 0] - fingers[:, 1]) if fingers.shape[1] == 2 else fingers[:, 0] if fingers.shape[1] else None
    found: Found = {}
    reasons: Reasons = defaultdict(list)
    for episode, task in enumerate(store.tasks):
        frames = slice(*store.episode_starts[episode : episode + 2].tolist())
        gripper = store.actions[frames, -1]
        try:
            segments = find_segments(
                position[frames], gripper, None if opening is None else opening[frames], opened.spec.control_hz, thresholds
            )
            texts = plan_instructions(plans, task, segments) if plans is not None else _generic_instructions(task, segments)
        except NotFound as error:
            reasons[str(error)].append(episode)
            continue
        found[episode] = list(zip(segments, texts, strict=True))
    return found, reasons


def _generic_instructions(task: str, segments: list[FoundSegment]) -> list[str]:
    """Instructions such as "pick: <task>", numbered where there are several cycles."""
    several = segments[-1].cycle > 0
    return [f"{segment.kind}{f' {segment.cycle + 1}' if several and segment.kind != 'leave' else ''}: {task}" for segment in segments]


def _summary(store: FrameStore, found: Found, reasons: Reasons) -> str:
    lengths = np.diff(store.episode_starts)
    ends, steps = sum(map(len, found.values())), int(lengths[list(found)].sum())
    share = f", {ends / steps:.2%} of their steps" if steps else ""
    lines = [f"labelled: {len(found)} of {store.num_episodes} episodes of {store.name}, {ends} ends{share}"]
    if reasons:
        lines.append(f"not labelled: {store.num_episodes - len(found)}")
    for reason, episodes in sorted(reasons.items(), key=lambda item: -len(item[1])):
        listed = ", ".join(map(str, episodes[:_LISTED_EPISODES])) + (", …" if len(episodes) > _LISTED_EPISODES else "")
        lines.append(f"  {len(episodes)}: {reason} (episode {listed})")
    return "\n".join(lines)


def _score(store: FrameStore, found: Found, truth: Labels) -> str:
    """A table of precision and recall over the episodes that `truth` labels, and how far the ends of each kind are off."""
    compared: list[tuple[list[FoundSegment], list[int]]] = []
    for episode in np.flatnonzero(truth.labelled).tolist():
        frames = slice(*store.episode_starts[episode : episode + 2].tolist())
        compared.append(([segment for segment, _ in found.get(episode, [])], np.flatnonzero(truth.ends[frames]).tolist()))
    num_found = sum(len(segments) for segments, _ in compared)
    num_true = sum(len(ends) for _, ends in compared)
    if not num_true:
        raise UserError("--compare: no end of a sub-step in these labels")
    rows: list[tuple[str, ...]] = [("within", "matched", "precision", "recall")]
    offsets: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for collar in COLLARS:
        matched = 0
        for segments, ends in compared:
            pairs = match_ends([segment.last for segment in segments], ends, collar)
            matched += len(pairs)
            for i, j in pairs if collar == max(COLLARS) else ():
                offsets[segments[i].kind].append(segments[i].last - ends[j])
        precision = f"{matched / num_found:.3f}" if num_found else "–"
        rows.append((f"±{collar} steps", str(matched), precision, f"{matched / num_true:.3f}"))
    late: list[tuple[str, ...]] = [("found - true", "matched", "mean", "least", "most")]
    late += [(kind, str(len(off)), f"{np.mean(off):+.1f}", f"{min(off):+d}", f"{max(off):+d}") for kind, off in offsets.items() if off]
    title = f"{num_found} found and {num_true} true ends in {len(compared)} episodes"
    return "\n".join([title, table(rows, " rrr"), "", f"steps between the ends matched within ±{max(COLLARS)}", table(late, " rrrr")])


def _write(store: FrameStore, found: Found, path: Path) -> None:
    if not found:
        raise UserError("no episode could be labelled: nothing is written")
    lengths = dict(zip(found, np.diff(store.episode_starts)[list(found)].tolist(), strict=True))
    segments = {episode: [Segment(part.first, part.last, True, text) for part, text in parts] for episode, parts in found.items()}
    table = make_table(segments, "eosjax label", lengths, {episode: store.tasks[episode] for episode in found})
    path.parent.mkdir(parents=True, exist_ok=True)
    export_labels(table, store.name, path)
