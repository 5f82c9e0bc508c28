"""Absolute targets as a policy learns them with `motion: target_minus_state`: as differences from the state at their anchor.

The anchor is the step at which a chunk is predicted. A robot knows its state then, so that a policy can answer with targets, whatever
becomes of the state while the chunk is played. (openpi's `DeltaActions` does the same.) The gripper, the last dimension, stays as it is.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from eosjax.data.specs import DatasetSpec

_MOST_ROWS = 1_000_000  # of differences, from which statistics are computed


class Frames(Protocol):
    """The part of a dataset that is read (a `eosjax.data.frames.store.FrameStore`)."""

    actions: np.ndarray  # f32 [N a]
    proprio: np.ndarray  # f32 [N p]
    episode_starts: np.ndarray  # i64 [E + 1]


def to_differences(targets: np.ndarray, state: np.ndarray) -> np.ndarray:
    """What a policy learns: targets [… a] less the state [… p] at their anchor."""
    return _moved(targets, state, -1)


def to_targets(differences: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Inverse of `to_differences`."""
    return _moved(differences, state, 1)


def learnt_actions(store: Frames, spec: DatasetSpec, most_rows: int = _MOST_ROWS) -> np.ndarray:
    """The actions f32 [n a] of all samples, not normalised, for statistics.

    They are those of the frames, or with `target_minus_state` the differences of every anchor to each action of its chunk. Of more than
    `most_rows` differences some are taken: those of every m-th frame, and the smallest and largest of each dimension.
    """
    if not spec.from_anchor:
        return store.actions
    last = np.repeat(store.episode_starts[1:] - 1, np.diff(store.episode_starts))
    frames = np.arange(len(last))
    every = -(-len(frames) * spec.chunk // most_rows) or 1
    found = []
    for slot in range(spec.chunk):
        anchors = frames[frames + slot <= last]
        values = to_differences(store.actions[anchors + slot], store.proprio[anchors])
        found.append(values if every == 1 else _thinned(values, every))
    return np.concatenate(found)


def _thinned(values: np.ndarray, every: int) -> np.ndarray:
    if not len(values):
        return values
    return np.concatenate([values[::every], values[values.argmin(axis=0)], values[values.argmax(axis=0)]])


def _moved(actions: np.ndarray, state: np.ndarray, sign: int) -> np.ndarray:
    arm = actions.shape[-1] - 1
    return np.concatenate([actions[..., :arm] + sign * state[..., :arm], actions[..., arm:]], axis=-1)
