"""Effect of the share of ends in a dataset on the class-balanced buffer, and the flags that suit it."""

from __future__ import annotations

import math
from typing import NamedTuple

from eosjax.config import TrainConfig


class Positives(NamedTuple):
    """How many ends to draw for an update."""

    count: int  # for eos_sample_positive and eos_min_positive
    why: str


def advise_positives(share: float) -> Positives:
    """The original's tuning advice: less than 5 % of ends: 10 of them a draw; 5-10 %: the defaults; more than 10 %: 20.

    Args:
        share: of ends among the steps, 0 to 1.
    """
    if share < 0.05:
        return Positives(10, "less than 5 %, so that the first update does not wait long")
    if share <= 0.10:
        return Positives(TrainConfig.eos_sample_positive, "5-10 %, the regime of the defaults")
    return Positives(20, "more than 10 %, so that each draw can hold as many ends as other steps")


def steps_to_first_update(share: float, rows_per_step: int, min_positive: int, min_negative: int) -> int:
    """Training steps until the buffer holds enough of both classes, on average.

    Args:
        share: of ends among the steps, above 0 and below 1.
        rows_per_step: rows that a training step adds to the buffer (batch over all devices x chunk).
        min_positive: ends that the buffer must hold.
        min_negative: other steps that it must hold.
    """
    ends = share * rows_per_step
    return math.ceil(max(min_positive / ends, min_negative / (rows_per_step - ends)))


def explain_share(share: float, rows_per_step: int, min_positive: int, min_negative: int, capacity: int) -> str:
    """The effect of the share of ends on the buffer, in one line. `capacity` is per class; the other arguments are as above."""
    ends = share * rows_per_step
    wait = steps_to_first_update(share, rows_per_step, min_positive, min_negative)
    return (
        f"{share:.2%} of the training steps are ends: about {ends:.1f} of the {rows_per_step} rows of a step; first EOS update after "
        f"about {wait} step(s); an end stays in the buffer for about {capacity / ends:.0f} step(s)"
    )
