"""What is impossible or unlikely in labels that fit a dataset, and in the motion that labels are made from. Pure NumPy.

The join checks that labels belong to a dataset. It accepts ends that nobody meant: of a `subtask_index` that flickers, of positions in
millimetres, of an inverted gripper. What no recording of a robot has is *impossible*, and whoever reads it refuses it. What is only
*unlikely* is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eosjax.data.labels.join import Episodes, Labels
from eosjax.types import UserError

MANY_ENDS, MOST_ENDS = 0.15, 1 / 3  # shares of the steps: unlikely above, and impossible (sub-steps of three steps)
SHORT = 0.2  # s: a sub-step that lasts less is unlikely
NARROW, WIDE, WIDEST = 0.02, 3.0, 10.0  # m: how far a hand moves along an axis in an episode
CLOSED_BELOW = 0.5  # of the gripper command, 1 = open
_MOST_CONTRARY = 0.8  # of the changes of the command: fingers that do the contrary more often never obey
_LISTED = 5


class ImplausibleError(UserError):
    """Labels, or the motion that they would be made from, that cannot be those of a robot."""


class Finding(NamedTuple):
    """Something that is impossible, or else unlikely."""

    impossible: bool
    what: str  # with the numbers, and where


def refuse_impossible(findings: Iterable[Finding], source: object) -> None:
    """Raises `ImplausibleError` with all that is impossible; `source` is what the findings are about."""
    found = [finding.what for finding in findings if finding.impossible]
    if found:
        raise ImplausibleError("\n  ".join([f"{source}: cannot be right:", *found]))


def check_dataset(labels: Labels, episodes: Episodes, gripper: np.ndarray, control_hz: float) -> list[Finding]:
    """What can be said of the labels of a dataset without knowing which columns of its state are positions.

    Args:
        labels: of N frames.
        episodes: where they begin, and their tasks.
        gripper: f [N], the command, 1 = open.
        control_hz: steps per second.
    """
    starts = episodes.episode_starts
    return [
        *check_labels(labels, starts, control_hz),
        *check_gripper(gripper, starts),
        *check_release(gripper, starts, episodes.tasks, labels.labelled),
    ]


def check_labels(labels: Labels, episode_starts: np.ndarray, control_hz: float) -> list[Finding]:
    """The share of ends, ends in a row, the shortest sub-steps, and instructions that flicker.

    Args:
        labels: of N frames.
        episode_starts: i64 [E + 1].
        control_hz: steps per second.
    """
    labelled = np.repeat(labels.labelled, np.diff(episode_starts))
    steps, is_end = int(labelled.sum()), labels.ends & labelled
    ends = np.flatnonzero(is_end)
    share = ends.size / steps if steps else 0.0
    findings = []
    if share > MANY_ENDS:
        text = f"{share:.1%} of the steps are ends, a sub-step of {1 / share:.1f} steps on average; expected a few per cent"
        findings.append(Finding(share > MOST_ENDS, text))
    lengths = substep_lengths(is_end, episode_starts)
    in_a_row = np.isin(ends - 1, ends) & ~np.isin(ends, episode_starts)
    short = (lengths < SHORT * control_hz) & ~in_a_row
    if in_a_row.any():
        where = _episodes(ends[in_a_row], episode_starts)
        findings.append(Finding(False, f"{in_a_row.sum()} of {ends.size} ends come right behind another end ({where})"))
    if short.any():
        least, where = lengths[short].min(), _episodes(ends[short], episode_starts)
        text = f"{short.sum()} of {ends.size} sub-steps are shorter than {SHORT:g} s, the shortest {least} step(s) ({where})"
        findings.append(Finding(False, text))
    flickers = flickering(labels.instruction_ids, episode_starts)
    flickers = flickers[labelled[flickers]]
    if flickers.size:
        where = _episodes(flickers, episode_starts)
        text = f"{flickers.size} single step(s) have another instruction than the steps on both sides ({where}): the labels flicker"
        findings.append(Finding(False, text))
    return findings


def check_gripper(gripper: np.ndarray, episode_starts: np.ndarray, opening: np.ndarray | None = None) -> list[Finding]:
    """Whether 1 may mean closed, though it should mean open.

    Args:
        gripper: f [N], the command.
        episode_starts: i64 [E + 1].
        opening: f [N], of the fingers; None if it is not known.
    """
    closed = np.asarray(gripper) < CLOSED_BELOW
    findings = []
    if opening is not None:
        switches, contrary = _contrary_switches(closed, episode_starts, opening)
        if 2 * contrary > switches:
            text = f"the fingers do the contrary of the command at {contrary} of the {switches} times that it changes"
            clear = contrary > _MOST_CONTRARY * switches
            findings.append(Finding(clear, f"{text}: the gripper command (1 = open), or the column of the fingers, is inverted"))
    firsts = np.unique(episode_starts)[:-1]  # of the episodes with steps
    opens_later = closed[firsts] & np.logical_or.reduceat(~closed, firsts)
    if 2 * opens_later.sum() > opens_later.size:
        text = f"{opens_later.sum()} of {opens_later.size} episodes begin with a closed hand that opens later: is the gripper inverted?"
        findings.append(Finding(False, text))
    return findings


def check_release(gripper: np.ndarray, episode_starts: np.ndarray, tasks: Sequence[str], labelled: np.ndarray) -> list[Finding]:
    """Labelled episodes at whose last step the hand is closed, though it is open in most episodes of the task; arguments as above."""
    holding = np.asarray(gripper)[episode_starts[1:] - 1] < CLOSED_BELOW
    numbers = np.flatnonzero(labelled).tolist()
    found = [episode for episode in deviating({number: bool(holding[number]) for number in numbers}, tasks) if holding[episode]]
    what = f"{len(found)} episode(s) end with a closed hand, other than most of their task ({_listed(found)}): cut off?"
    return [Finding(False, what)] if found else []


def check_positions(position: np.ndarray, episode_starts: np.ndarray) -> list[Finding]:
    """Whether positions f [N q] of the hand can be metres."""
    faulty = int(np.sum(~np.isfinite(position).all(axis=1)))
    if faulty:
        return [Finding(True, f"the position of the hand is not finite at {faulty} step(s)")]
    moved = float(np.median(extents(position, episode_starts)))
    text = f"the hand moves by {moved:.3g} along an axis in the median episode; expected {NARROW:g} to {WIDE:g} m"
    if moved > WIDE:
        unit = "millimetres" if moved > 100 else "centimetres" if moved > WIDEST else "another unit, or no positions"
        return [Finding(moved > WIDEST, f"{text}: {unit}?")]
    return [Finding(False, f"{text}: kilometres, or no positions?")] if moved < NARROW else []


def check_cycles(cycles: Mapping[int, int], tasks: Sequence[str]) -> list[Finding]:
    """Episodes with another number of cycles than most of their task; `cycles` by episode."""
    found = deviating(cycles, tasks)
    if not found:
        return []
    listed = ", ".join(f"episode {episode}: {cycles[episode]}" for episode in found[:_LISTED]) + (", …" if found[_LISTED:] else "")
    return [Finding(False, f"{len(found)} episode(s) have another number of cycles than most of their task ({listed})")]


def substep_lengths(ends: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """i64 [number of ends]: steps of each sub-step that ends; it begins after the end before it, or with the episode.

    Args:
        ends: bool [N].
        episode_starts: i64 [E + 1].
    """
    boundaries = np.unique(np.concatenate([np.flatnonzero(ends) + 1, episode_starts]))
    return np.diff(boundaries)[ends[boundaries[1:] - 1]]


def flickering(instruction_ids: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """i64 [n]: steps with another instruction than both neighbours, which have the same one; `instruction_ids` i [N]."""
    before, here, after = instruction_ids[:-2], instruction_ids[1:-1], instruction_ids[2:]
    steps = np.flatnonzero((before == after) & (here != before)) + 1
    return steps[~np.isin(steps, episode_starts) & ~np.isin(steps + 1, episode_starts)]


def extents(position: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """f64 [E]: the largest range of a coordinate of `position` f [N q] in each episode with steps."""
    values = np.asarray(position, np.float64)
    firsts = np.unique(episode_starts)[:-1]
    return (np.maximum.reduceat(values, firsts) - np.minimum.reduceat(values, firsts)).max(axis=1)


def deviating(values: Mapping[int, Hashable], tasks: Sequence[str]) -> list[int]:
    """Episodes whose value differs from that of more than half of the episodes of their task; `values` by episode."""
    counts: dict[str, Counter[Hashable]] = {}
    for episode, value in values.items():
        counts.setdefault(tasks[episode], Counter())[value] += 1
    usual = {task: count.most_common(1)[0] for task, count in counts.items()}
    settled = {task: value for task, (value, times) in usual.items() if 2 * times > counts[task].total()}
    return [episode for episode, value in values.items() if tasks[episode] in settled and value != settled[tasks[episode]]]


def _contrary_switches(closed: np.ndarray, episode_starts: np.ndarray, opening: np.ndarray) -> tuple[int, int]:
    """How often the command changes and the fingers move until it changes again, and how often they move the wrong way."""
    switches = np.flatnonzero(closed[1:] != closed[:-1]) + 1
    switches = switches[~np.isin(switches, episode_starts)]
    boundaries = np.union1d(switches, episode_starts)
    until = boundaries[np.searchsorted(boundaries, switches, side="right")]
    moved = opening[until - 1] - opening[switches - 1]
    right = np.where(closed[switches], moved < 0, moved > 0)
    return int(np.sum(moved != 0)), int(np.sum((moved != 0) & ~right))


def _episodes(frames: np.ndarray, episode_starts: np.ndarray) -> str:
    return _listed(np.unique(np.searchsorted(episode_starts, frames, side="right") - 1).tolist())


def _listed(episodes: Sequence[int]) -> str:
    more = ", …" if len(episodes) > _LISTED else ""
    return f"episode {', '.join(map(str, episodes[:_LISTED]))}{more}"
