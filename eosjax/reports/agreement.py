"""How well detected ends agree with labels made by hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eosjax.data.frames.store import FrameStore
from eosjax.data.labels import Labels
from eosjax.data.labels.labeller import KINDS
from eosjax.data.labels.labelling import Labelling
from eosjax.ends.events import match

COLLARS = (2, 4, 8)  # steps; the labeller sees no picture and is not exact to one step


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


def measure_agreement(store: FrameStore, labelling: Labelling, truth: Labels) -> Agreement:
    """Matches the found ends with the true ends of the episodes that `truth` labels."""
    matched: dict[int, int] = dict.fromkeys(COLLARS, 0)
    offsets: dict[str, list[int]] = {kind: [] for kind in KINDS}
    num_found = num_true = 0
    compared = np.flatnonzero(truth.labelled).tolist()
    for episode in compared:
        frames = slice(*store.episode_starts[episode : episode + 2].tolist())
        kind_of = {segment.last: segment.kind for segment, _ in labelling.found.get(episode, [])}
        found, true = np.array(list(kind_of), np.int64), np.flatnonzero(truth.ends[frames])
        num_found, num_true = num_found + found.size, num_true + true.size
        for collar in COLLARS:
            pairs = match(found, true, collar).tolist()
            matched[collar] += len(pairs)
            for step, end in pairs if collar == max(COLLARS) else ():
                offsets[kind_of[step]].append(step - end)
    return Agreement(len(compared), num_found, num_true, matched, offsets)
