"""Sub-step boundaries of pick-and-place episodes, from the gripper command and the motion of the hand. Pure NumPy, one episode at a time.

An episode is read as cycles of *reach* (the open hand comes to the object), *pick* (it closes and lifts), *carry* (it comes above the
target) and *place* (it lowers and opens), and a last *leave*. An episode that does not fit gets
no labels but a reason; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from eosjax.types import UserError

KINDS = ("reach", "pick", "carry", "place", "leave")


class FoundSegment(NamedTuple):
    """One sub-step: steps `first` to `last` (inclusive) of the `cycle`-th pick and place."""

    kind: str  # one of KINDS
    cycle: int  # counts from 0
    first: int
    last: int


class NotFound(Exception):
    """The episode does not consist of pick-and-place cycles; the message says where it deviates."""


class ThresholdError(UserError):
    """A threshold that is out of range."""


def _threshold(default: float, unit: str, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"unit": unit, "meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What counts as closed, carried, lifted, arrived, opened. Metres and seconds, so that they hold at any control rate.

    Each field has its `unit` and its `meaning` in its metadata. `ThresholdError` for a negative one.
    """

    closed_below: float = _threshold(0.5, "of the gripper command, 1 = open", "a lower command tells the hand to close")
    debounce: float = _threshold(0.15, "s", "a gripper command that lasts less is ignored")
    min_transport: float = _threshold(0.05, "m along the table", "a closing that carries less far is a failed grasp, or idle")
    attempt_radius: float = _threshold(0.02, "m", "failed grasps as near to the grasp that succeeds belong to its pick")
    arrive_distance: float = _threshold(0.002, "m", "reach ends when the hand is as near to where it closes")
    lift_height: float = _threshold(0.05, "m", "pick ends when the hand has risen by so much since it closed")
    carry_distance: float = _threshold(
        0.015,
        "m along the table",
        "carry ends when the hand is as near to where it opens; or, within twice as much, when it is being lowered",
    )
    lower_distance: float = _threshold(0.005, "m", "a hand that has sunk by more is being lowered")
    open_share: float = _threshold(0.8, "of the way of the fingers", "place ends when the fingers have opened by so much")
    leave_distance: float = _threshold(0.01, "m", "or when the hand is farther from where it opened, if that is sooner")
    min_leave: float = _threshold(0.25, "s", "what remains after the last place is a sub-step of its own if it lasts as long")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf") or (field.name == "open_share" and value > 1):
                raise ThresholdError(f"--{field.name}: expected {'0 to 1' if field.name == 'open_share' else '0 or more'}, got {value:g}")


class _Grasp(NamedTuple):
    """A stretch of steps under a closing command: `close` is its first step, `open` the first one after it."""

    close: int
    open: int


def find_segments(
    position: np.ndarray, gripper: np.ndarray, opening: np.ndarray | None, control_hz: float, thresholds: Thresholds
) -> list[FoundSegment]:
    """The sub-steps of an episode of T steps: in order, without gaps, from step 0 to step T - 1.

    Args:
        position: f [T 3], the hand, in metres; the third axis is vertical. The origin and the rotation about that axis do not
            matter.
        gripper: f [T], command of each step, 1 = open, 0 = closed.
        opening: f [T], distance between the fingers in any unit; None if it is unknown: a place then ends when the hand leaves.
        control_hz: steps per second.
        thresholds: see `Thresholds`.

    Raises:
        NotFound: no cycle, an object that is never lifted or never released, or motions in another order.
    """
    position = np.asarray(position, np.float64)
    grasps = _grasps(np.asarray(gripper) < thresholds.closed_below, thresholds.debounce * control_hz)
    carrying = [number for number, grasp in enumerate(grasps) if _transport(position, grasp) >= thresholds.min_transport]
    if not carrying:
        far = f"carries anything {thresholds.min_transport:g} m along the table"
        raise NotFound(f"the hand closes {len(grasps)} time(s), and none of them {far}")
    segments: list[FoundSegment] = []
    before = -1  # the last end so far
    for cycle, number in enumerate(carrying):
        failed = grasps[carrying[cycle - 1] + 1 if cycle else 0 : number]
        until = grasps[number + 1].close if number + 1 < len(grasps) else len(position)
        ends = (
            _reach_end(position, before + 1, grasps[number], failed, thresholds),
            _pick_end(position, grasps[number], thresholds),
            _carry_end(position, grasps[number], thresholds),
            _place_end(position, opening, grasps[number], until, thresholds),
        )
        for kind, end in zip(KINDS, ends, strict=False):
            if end <= before:
                raise NotFound(f"the {kind} of cycle {cycle} would end at step {end}, though what precedes it ends at step {before}")
            segments.append(FoundSegment(kind, cycle, before + 1, end))
            before = end
    return _with_rest(segments, len(position), thresholds.min_leave * control_hz)


def _grasps(closed: np.ndarray, shortest: float) -> list[_Grasp]:
    """Runs of `closed` bool [T] with at least `shortest` steps. Runs less than `shortest` apart are merged.

    Raises:
        NotFound: the last one does not end before the episode does.
    """
    edges = np.flatnonzero(np.diff(closed.astype(np.int8), prepend=0, append=0))
    grasps: list[_Grasp] = []
    for close, opened in edges.reshape(-1, 2).tolist():
        if opened - close < shortest:
            continue
        if grasps and close - grasps[-1].open < shortest:
            grasps[-1] = _Grasp(grasps[-1].close, opened)
        else:
            grasps.append(_Grasp(close, opened))
    if grasps and grasps[-1].open == len(closed):
        raise NotFound(f"the hand closes at step {grasps[-1].close} and does not open again before the episode ends")
    # A hand that is closed from the start has not approached an object with open fingers.
    return [grasp for grasp in grasps if grasp.close > 0]


def _transport(position: np.ndarray, grasp: _Grasp) -> float:
    """Metres along the table from where the hand closes to where it opens."""
    return float(np.linalg.norm((position[grasp.open] - position[grasp.close])[:2]))


def _reach_end(position: np.ndarray, begin: int, grasp: _Grasp, failed: list[_Grasp], thresholds: Thresholds) -> int:
    """The step at which the hand, on its way since step `begin`, is at the object; `failed` are the closings meanwhile."""
    at_object = [
        attempt for attempt in failed if np.linalg.norm(position[attempt.close] - position[grasp.close]) <= thresholds.attempt_radius
    ]
    close = (at_object or [grasp])[0].close
    distance = np.linalg.norm(position[begin : close + 1] - position[close], axis=1)
    nearby = _for_good(distance <= 2 * thresholds.arrive_distance)
    return begin + nearby + int(np.argmax(distance[nearby:] <= thresholds.arrive_distance))


def _pick_end(position: np.ndarray, grasp: _Grasp, thresholds: Thresholds) -> int:
    """The first step at which the object is lifted."""
    height = position[grasp.close : grasp.open, 2] - position[grasp.close, 2]
    lifted = np.flatnonzero(height >= thresholds.lift_height)
    if not lifted.size:
        raise NotFound(f"closed from step {grasp.close} to {grasp.open - 1}, the hand never rises by {thresholds.lift_height:g} m")
    return grasp.close + int(lifted[0])


def _carry_end(position: np.ndarray, grasp: _Grasp, thresholds: Thresholds) -> int:
    """The step at which the hand is above the target: near enough, or nearly so and on its way down."""
    carried = position[grasp.close : grasp.open + 1]
    distance = np.linalg.norm((carried - carried[-1])[:, :2], axis=1)
    nearby = _for_good(distance <= 2 * thresholds.carry_distance)
    arrived = nearby + int(np.argmax(distance[nearby:] <= thresholds.carry_distance))
    height = carried[nearby : arrived + 1, 2]
    lowered = np.flatnonzero(np.maximum.accumulate(height) - height > thresholds.lower_distance)
    return grasp.close + (nearby + int(lowered[0]) - 1 if lowered.size else arrived)


def _place_end(position: np.ndarray, opening: np.ndarray | None, grasp: _Grasp, until: int, thresholds: Thresholds) -> int:
    """The step at which the fingers have let go, or else the first one at which the hand is leaving; before step `until`."""
    after = slice(grasp.open, until)
    done = np.linalg.norm(position[after] - position[grasp.open], axis=1) > thresholds.leave_distance
    if opening is not None:
        holding, widest = opening[grasp.open - 1], opening[after].max()
        if widest > holding:
            done |= opening[after] >= holding + thresholds.open_share * (widest - holding)
    return grasp.open + (int(np.argmax(done)) if done.any() else len(done) - 1)


def _for_good(condition: np.ndarray) -> int:
    """First index from which `condition` bool [n] holds to the last one, at which it does."""
    failing = np.flatnonzero(~condition)
    return int(failing[-1]) + 1 if failing.size else 0


def _with_rest(segments: list[FoundSegment], length: int, shortest: float) -> list[FoundSegment]:
    """The rest of the episode becomes a *leave*, or part of the last place if it is shorter than `shortest` steps."""
    last = segments[-1]
    if length - 1 - last.last >= max(shortest, 1):
        return [*segments, FoundSegment("leave", last.cycle, last.last + 1, length - 1)]
    return [*segments[:-1], last._replace(last=length - 1)]
