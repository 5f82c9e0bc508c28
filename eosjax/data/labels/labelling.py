"""Labels for a whole dataset from the gripper command and the motion of the hand."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from eosjax.data.frames.store import FrameStore
from eosjax.data.labels.join import join_labels
from eosjax.data.labels.labeller import FoundSegment, NotFound, Thresholds, find_segments
from eosjax.data.labels.plans import Plans, plan_instructions
from eosjax.data.labels.plausibility import Finding, check_cycles, check_labels, check_release
from eosjax.data.labels.table import LEFT_OUT_BY, Segment, SegmentTable, make_table


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

    @property
    def cycles(self) -> dict[int, int]:
        """How many cycles each labelled episode has."""
        return {episode: parts[-1][0].cycle + 1 for episode, parts in self.found.items()}

    @property
    def durations(self) -> list[int]:
        """Steps of every sub-step."""
        return [part.last - part.first + 1 for parts in self.found.values() for part, _ in parts]


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


def examine(store: FrameStore, labelling: Labelling, control_hz: float) -> list[Finding]:
    """What is impossible or unlikely in the labels that were found."""
    if not labelling.found:
        return []
    starts = store.episode_starts
    labels = join_labels(labelling.to_table(store), store, LEFT_OUT_BY.values())
    return [
        *check_labels(labels, starts, control_hz),
        *check_release(store.actions[:, -1], starts, store.tasks, labels.labelled),
        *check_cycles(labelling.cycles, store.tasks),
    ]


def _generic_instructions(task: str, segments: list[FoundSegment]) -> list[str]:
    """Instructions such as "pick: <task>", numbered where there are several cycles."""
    several = segments[-1].cycle > 0
    return [f"{segment.kind}{f' {segment.cycle + 1}' if several and segment.kind != 'leave' else ''}: {task}" for segment in segments]
