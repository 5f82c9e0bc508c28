"""One episode as a person looks at it: its sub-steps, the gripper command, the speed of the hand, and the pictures round each end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eosjax.data.frames.store import FrameStore
from eosjax.data.labels import Labels


class Substep(NamedTuple):
    """A stretch of one instruction up to an end, a change of the instruction, or the end of the episode."""

    instruction: str
    first: int
    last: int  # inclusive
    is_end: bool


class EpisodeView(NamedTuple):
    """An episode of T steps."""

    episode: int
    task: str
    substeps: list[Substep]
    gripper: np.ndarray  # f32 [T]: command, 1 = open
    speed: np.ndarray  # f64 [T]: units of the state a second, from the step before


def view_episode(store: FrameStore, labels: Labels | None, episode: int, position: np.ndarray, control_hz: float) -> EpisodeView:
    """The view of an episode; without labels of it, without sub-steps.

    Args:
        store, labels: the dataset.
        episode: its number.
        position: f [N q]: the columns of the state whose change is the speed.
        control_hz: steps per second.
    """
    frames = slice(*store.episode_starts[episode : episode + 2].tolist())
    path = position[frames].astype(np.float64)
    speed = np.linalg.norm(np.diff(path, axis=0, prepend=path[:1]), axis=1) * control_hz
    substeps = [] if labels is None or not labels.labelled[episode] else _substeps(labels, frames)
    return EpisodeView(episode, store.tasks[episode], substeps, store.actions[frames, -1], speed)


def _substeps(labels: Labels, frames: slice) -> list[Substep]:
    ids, ends = labels.instruction_ids[frames], labels.ends[frames]
    closing = ends.copy()
    closing[:-1] |= ids[1:] != ids[:-1]
    closing[-1] = True
    last = np.flatnonzero(closing)
    first = np.concatenate([[0], last[:-1] + 1])
    return [Substep(labels.instructions[ids[b]], a, b, bool(ends[b])) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
