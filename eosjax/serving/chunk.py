"""A chunk of actions, as servers and robots exchange it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Chunk(NamedTuple):
    """What a policy says to one observation."""

    actions: np.ndarray  # f64 [k a], as the robot executes them
    eos: np.ndarray | None  # f64 [k], probability that the sub-step ends with this action; None without an EOS head
