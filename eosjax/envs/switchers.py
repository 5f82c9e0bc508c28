"""Who says that the running sub-step ends: the EOS head, the oracle, a clock, the gripper, or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from eosjax.ends.baselines import places, steps_since_gripper, steps_since_substep
from eosjax.ends.closed_loop import ORACLE

EOS, TIME, GRIPPER, NONE, WHOLE = "eos", "time", "gripper", "none", "whole"
SWITCHES = (EOS, ORACLE, TIME, GRIPPER, NONE, WHOLE)
FITTED = (TIME, GRIPPER)  # on the training data


class Moment(NamedTuple):
    """A step whose action is about to be executed."""

    place: int  # of the running sub-step in the plan
    steps: int  # of it that came before
    since_gripper: int  # steps since the gripper command last differed from the step before; since the episode began where it never did
    changed: bool  # it did within the running sub-step
    holds: bool  # the goal of the running sub-step holds in this step's observation
    cut: bool  # the EOS head, by the checkpoint's operating point, ends the sub-step with this step


class Switcher(Protocol):
    """Says whether this step is the last of its sub-step."""

    def __call__(self, moment: Moment) -> bool:
        """True for the last step."""
        ...


class Typical(NamedTuple):
    """What the training data say of the sub-steps, by their place in the plan; places beyond the last are like the last."""

    length: tuple[float, ...]  # median, in steps
    lag: tuple[float, ...]  # median steps from the last change of the gripper command (or the episode's start) to the end
    changes: tuple[bool, ...]  # whether the command changes within most of them
    middle: float = 0.0  # between the two sides of the command, in the units of the environment

    @classmethod
    def fit(cls, ends: np.ndarray, gripper: np.ndarray, starts: np.ndarray) -> Typical:
        """Of the N frames of E episodes.

        Args:
          ends: bool [N].
          gripper: f [N], command in the units of the environment; values on either side of the middle of its range are open and closed.
          starts: i64 [E + 1], first frame of each episode, and N.
        """
        middle = float(gripper.min() + gripper.max()) / 2
        closed = gripper > middle
        place, length = places(ends, starts), steps_since_substep(ends, starts) + 1
        first = np.repeat(starts[:-1], np.diff(starts))
        since = steps_since_gripper(closed, starts)
        lag, within = np.minimum(since, np.arange(ends.size) - first), since < length
        last = np.flatnonzero(ends)
        columns = [(length[at], lag[at], within[at]) for at in (last[place[last] == k] for k in range(place[last].max() + 1))]
        return cls(
            tuple(float(np.median(lengths)) for lengths, _, _ in columns),
            tuple(float(np.median(lags[changed == (changed.mean() > 0.5)])) for _, lags, changed in columns),
            tuple(bool(changed.mean() > 0.5) for _, _, changed in columns),
            middle,
        )


def make_switcher(name: str, typical: Typical | None) -> Switcher:
    """The switcher of this name; `typical` is needed by those in `FITTED`."""
    if name == TIME:
        assert typical is not None
        return lambda moment: moment.steps + 1 >= _at(typical.length, moment.place)
    if name == GRIPPER:
        assert typical is not None

        def by_gripper(moment: Moment) -> bool:
            waits_for_change = _at(typical.changes, moment.place)
            return (moment.changed or not waits_for_change) and moment.since_gripper >= _at(typical.lag, moment.place)

        return by_gripper
    return {
        EOS: lambda moment: moment.cut,
        ORACLE: lambda moment: moment.holds,
        NONE: lambda moment: False,
        WHOLE: lambda moment: False,
    }[name]


def _at(values: Sequence[float] | Sequence[bool], place: int) -> float:
    return values[min(place, len(values) - 1)]
