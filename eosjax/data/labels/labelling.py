"""Labels for a whole dataset from the gripper command and the motion of the hand, and how well they agree with labels made by hand."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from eosjax.data.frames.store import FrameStore
from eosjax.data.labels.agreement import COLLARS, match_ends
from eosjax.data.labels.join import Labels
from eosjax.data.labels.labeller import KINDS, FoundSegment, NotFound, Thresholds, find_segments
from eosjax.data.labels.plans import Plans, plan_instructions
from eosjax.data.labels.table import Segment, SegmentTable, make_table


class Labelling(NamedTuple):
    """What was found in a dataset.

    Attributes:
        found: by episode, each sub-step and its instruction.
        reasons: why the other episodes have no labels: by reason, their numbers.
    """

    found: dict[int, list[tuple[FoundSegment, str]]]
    reasons: dict[str, list[int]]

    def to_table(self, store: FrameStore) -> SegmentTable:
        """The labels as a table for `export_labels`."""
        lengths = dict(zip(self.found, np.diff(store.episode_starts)[list(self.found)].tolist(), strict=True))
        segments = {episode: [Segment(part.first, part.last, True, text) for part, text in parts] for episode, parts in self.found.items()}
        return make_table(segments, "eosjax label", lengths, {episode: store.tasks[episode] for episode in self.found})


class Agreement(NamedTuple):
    """Found ends against true ones, over the episodes that have both kinds of labels or true ones alone.

    Attributes:
        episodes: how many.
        found, true: numbers of ends.
        matched: by collar, pairs.
        offsets: by kind of sub-step, found minus true step of the pairs at the largest collar.
    """

    episodes: int
    found: int
    true: int
    matched: dict[int, int]
    offsets: dict[str, list[int]]


def label_dataset(
    store: FrameStore, position: np.ndarray, opening: np.ndarray | None, control_hz: float, thresholds: Thresholds, plans: Plans | None
) -> Labelling:
    """Finds the sub-steps of every episode.

    Args:
        store: the dataset of N steps.
        position: f32 [N 3], of the hand.
        opening: f32 [N], of the fingers; None if it is not known.
        control_hz: steps a second.
        thresholds: see `find_segments`.
        plans: the sub-steps of each task in words; None for instructions such as "pick: <task>".
    """
    found: dict[int, list[tuple[FoundSegment, str]]] = {}
    reasons: dict[str, list[int]] = defaultdict(list)
    for episode, task in enumerate(store.tasks):
        frames = slice(*store.episode_starts[episode : episode + 2].tolist())
        fingers = None if opening is None else opening[frames]
        try:
            segments = find_segments(position[frames], store.actions[frames, -1], fingers, control_hz, thresholds)
            texts = plan_instructions(plans, task, segments) if plans is not None else _generic_instructions(task, segments)
        except NotFound as error:
            reasons[str(error)].append(episode)
            continue
        found[episode] = list(zip(segments, texts, strict=True))
    return Labelling(found, dict(reasons))


def _generic_instructions(task: str, segments: list[FoundSegment]) -> list[str]:
    """Instructions such as "pick: <task>", numbered where there are several cycles."""
    several = segments[-1].cycle > 0
    return [f"{segment.kind}{f' {segment.cycle + 1}' if several and segment.kind != 'leave' else ''}: {task}" for segment in segments]


def measure_agreement(store: FrameStore, labelling: Labelling, truth: Labels) -> Agreement:
    """The found ends of the episodes that `truth` labels against its own, matched one to one."""
    matched: dict[int, int] = dict.fromkeys(COLLARS, 0)
    offsets: dict[str, list[int]] = {kind: [] for kind in KINDS}
    num_found = num_true = 0
    compared = np.flatnonzero(truth.labelled).tolist()
    for episode in compared:
        frames = slice(*store.episode_starts[episode : episode + 2].tolist())
        segments = [segment for segment, _ in labelling.found.get(episode, [])]
        ends = np.flatnonzero(truth.ends[frames]).tolist()
        num_found, num_true = num_found + len(segments), num_true + len(ends)
        for collar in COLLARS:
            pairs = match_ends([segment.last for segment in segments], ends, collar)
            matched[collar] += len(pairs)
            for i, j in pairs if collar == max(COLLARS) else ():
                offsets[segments[i].kind].append(segments[i].last - ends[j])
    return Agreement(len(compared), num_found, num_true, matched, offsets)
