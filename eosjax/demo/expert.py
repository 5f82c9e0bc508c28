"""A scripted expert that does one sub-step at a time on the simulated table, and sees all of it.

It acts through the table's dynamics alone: each call looks at the table and gives one action. What it does follows from what it sees, so
that it finds back from wherever the hand is: from a knock, a slip of the fingers, a place where a policy has led it. It does the sub-step
that it is told to do, mends what the one before left unfinished by less than `Style.mends`, and then holds still.

It is irregular on purpose, so that neither the clock nor the gripper command reveals the end of a sub-step: speeds, pauses and idle moves
of the fingers are random. The scene reveals it: the last step of a way is a decisive one of up to four centimetres that lands on the goal.
A block leaves the table with such a step, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eosjax.demo.scene import CARRY, HOME, OPEN, PLATE_HEIGHT, PLATE_RADIUS, STEP, TURN
from eosjax.demo.table import ACROSS, LIFTED, Fixed, State, lean

_HOVER = 0.09  # metres above the grasp at which it comes from the side
_CLEAR = 0.03  # metres above the grasp from which it sees that the fingers hold nothing
_ARRIVED = 0.004  # metres
_CLOSES = 0.015  # metres from the grasp, from where it closes the fingers
_PATIENCE = 12  # steps that it waits for the fingers: another block than the target may be in their way


class Style(NamedTuple):
    """How irregular an expert is."""

    speed: tuple[float, float] = (0.006, 0.010)  # metres a step, drawn for each sub-step
    last: float = 0.04  # metres from the goal, from where it goes there at once
    last_to_block: float = 0.03  # the same on the way to the block, which counts as reached from nearer
    pause: float = 0.01  # share of the steps before which the hand pauses
    still: float = 3.0  # mean length of such a pause in steps; without memory, so that the time waited carries no information
    # Chance of another step of waiting, where the fingers have closed round the block. Well below a half: a policy learns the median of
    # what it sees there, and at a half would stay for ever.
    rest: float = 0.25
    blip: float = 0.15  # share of the ways to the block on which the empty fingers close without purpose
    mends: float = 0.035  # metres that the hand may be from where the sub-step before was to leave it
    tries: int = 8  # to grasp
    beside: bool = False  # puts the block beside the plate


class View(NamedTuple):
    """One table, as the expert sees it."""

    hand: np.ndarray  # f64 [3]
    tilt: np.ndarray  # f64 [2]
    yaw: float
    opening: float
    block: np.ndarray  # f64 [4], the target
    has_it: bool
    height: float
    cube: bool
    plate: np.ndarray  # f64 [2]
    settled: bool  # the fingers follow their command, and have stopped

    @property
    def is_open(self) -> bool:
        """The fingers are open."""
        return self.opening > OPEN - 1e-3

    @property
    def grasp(self) -> np.ndarray:
        """f64 [3]: where the hand closes round the block."""
        return self.block[:3] + _up(0.5 * self.height)

    @property
    def turned(self) -> float:
        """The yaw of the hand that fits the block, the one that is nearest."""
        if not self.cube:
            return float(np.clip(self.block[3], -0.4, 0.4))
        quarter = np.pi / 2
        return float((self.block[3] + quarter / 2) % quarter - quarter / 2)


class _Move(NamedTuple):
    """What a skill wants."""

    goal: np.ndarray | None  # f64 [3] that the hand goes to; None: it stays
    yaw: float
    command: float  # of the fingers: -1 open, +1 close


class Expert:
    """The expert at one table.

    Args:
      fixed, row: the table.
      rng: of the expert's whims.
      style: how irregular it is.
    """

    def __init__(self, fixed: Fixed, row: int, rng: np.random.Generator, style: Style) -> None:
        self._fixed, self._row, self._rng, self._style = fixed, row, rng, style
        self._skills = (self._reach, self._pick, self._carry, self._place, self._leave)
        self._told, self._command = -1, -1.0
        self._pausing = self._waited = self._tried = 0
        self._lifts = False
        self.idle = 0  # steps that it has held still, with nothing left to do

    def act(self, state: State, substep: int) -> np.ndarray:
        """The next action f32 [7] of a sub-step: begun if it is another than the last time, holding still where it is done."""
        view = self._look(state)
        if substep != self._told:
            self._begin(view, substep)
        self._pausing = max(self._pausing - 1, 0)
        if self._rng.random() < self._style.pause:
            self._pausing = int(self._rng.geometric(1.0 / self._style.still))
        move = self._skills[substep](view)
        changed, self._command = move.command != self._command, move.command
        delta = None if move.goal is None or self._pausing else self._pace(move.goal - view.hand)
        turn = 0.0 if delta is None else float(np.clip(move.yaw - view.yaw, -0.6 * TURN, 0.6 * TURN))
        still = not changed and view.settled and (move.goal is None or _far(move.goal - view.hand) < _ARRIVED)
        self.idle = self.idle + 1 if still and not self._pausing else 0
        return self._action(view, delta, turn)

    def _begin(self, view: View, substep: int) -> None:
        self._told, self.idle, self._tried, self._waited = substep, 0, 0, 0
        self._lifts = False
        self._speed = self._rng.uniform(*self._style.speed)
        self._blips_at = self._rng.uniform(0.05, 0.2) if substep == 0 and self._rng.random() < self._style.blip else 0.0
        self._start = view.hand.copy()
        self._mends = self._unfinished(view, substep) < self._style.mends
        angle = self._rng.uniform(0, 2 * np.pi)
        aside = (PLATE_RADIUS + self._rng.uniform(0.01, 0.03)) * np.array([np.cos(angle), np.sin(angle)])
        self._beside = aside if self._style.beside else np.zeros(2)

    def _unfinished(self, view: View, substep: int) -> float:
        """Metres by which the sub-step before this one missed its goal."""
        if substep == 1:
            return _far(view.hand - view.grasp)
        if substep in (2, 3) and not view.has_it:
            return np.inf
        if substep == 2:
            return max(0.0, LIFTED - view.block[2])
        return _far(view.hand[:2] - self._over_plate(view)) if substep == 3 else 0.0

    def _look(self, state: State) -> View:
        row, fixed = self._row, self._fixed
        width, opening = 2 * float(fixed.radius[row, 0]), float(state.opening[row])
        return View(
            hand=state.hand[row],
            tilt=state.rotation[row, :2],
            yaw=float(state.rotation[row, 2]),
            opening=opening,
            block=state.blocks[row, 0],
            has_it=bool(state.held[row] == 0),
            height=float(fixed.height[row, 0]),
            cube=bool(fixed.cube[row, 0]),
            plate=fixed.plates[row, 0],
            settled=bool(state.fingers[row] == state.command[row]) and any(abs(opening - x) < 1e-6 for x in (0.0, OPEN, width)),
        )

    def _pace(self, way: np.ndarray) -> np.ndarray:
        """f64 [3]: the part of a way that is done in this step."""
        distance = _far(way)
        last = self._style.last_to_block if self._told == 0 else self._style.last
        if distance < last:
            return way
        return way * ((last if self._lifts else self._speed) / distance)

    def _action(self, view: View, delta: np.ndarray | None, turn: float) -> np.ndarray:
        """Moves by `delta` metres (None: stays) and turns by `turn` radians; the hand leans as it reaches out."""
        noise = self._rng.normal(size=6)
        action = np.zeros(7)
        action[:3] = noise[:3] * 0.01 if delta is None else delta / STEP + noise[:3] * 0.02
        action[3:5] = (lean(view.hand + STEP * action[:3]) - view.tilt) / TURN + noise[3:5] * 0.004
        action[5] = turn / TURN + noise[5] * 0.01
        action = np.clip(action, -1.0, 1.0)
        action[6] = self._command
        return action.astype(np.float32)

    def _reach(self, view: View) -> _Move:
        if _far(view.hand[:2] - view.grasp[:2]) < self._blips_at and self._tried == 0:
            self._tried = 1
            return _Move(None, view.yaw, 1.0)
        if self._command > 0 and not view.settled:
            return _Move(None, view.yaw, 1.0)
        return self._to_block(view)

    def _to_block(self, view: View) -> _Move:
        """From above, with open fingers: the lower, the nearer."""
        aside = _far(view.hand[:2] - view.grasp[:2])
        above = float(np.clip(2.0 * (aside - 0.008), 0.0, _HOVER))
        low = view.hand[2] - view.grasp[2] < above - 0.01
        if low and aside > ACROSS:  # first up, so that the fingers do not push the block
            return _Move(np.array([*view.hand[:2], view.grasp[2] + above]), view.turned, -1.0)
        if not view.is_open and (above < _CLEAR):
            return _Move(None, view.turned, -1.0)
        return _Move(view.grasp + _up(above), view.turned, -1.0)

    def _pick(self, view: View) -> _Move:
        self._lifts &= view.has_it
        if view.has_it:
            if not self._lifts:
                self._lifts = self._rng.random() >= self._style.rest
                return _Move(None, view.yaw, 1.0)
            return _Move(np.array([*self._start[:2], CARRY + 0.5 * view.height]), view.yaw, 1.0)
        if self._command > 0:
            if not view.settled and self._waited < _PATIENCE:
                self._waited += 1
                return _Move(None, view.yaw, 1.0)
            last = not self._mends or self._tried >= self._style.tries
            if last or view.hand[2] - view.grasp[2] < _CLEAR:  # from where it does not see yet that the fingers hold nothing
                return _Move(np.array([*view.hand[:2], self._start[2] + CARRY]), view.yaw, 1.0)
            return _Move(None, view.yaw, -1.0)
        if view.is_open and (not self._mends or _far(view.hand - view.grasp) < _CLOSES):
            self._tried, self._waited, self._start = self._tried + 1, 0, view.hand.copy()
            return _Move(None, view.yaw, 1.0)
        return self._to_block(view) if self._mends else _Move(None, view.yaw, -1.0)

    def _carry(self, view: View) -> _Move:
        height = CARRY + 0.5 * view.height if self._mends else self._start[2]
        return _Move(np.array([*self._over_plate(view), height]), 0.0, 1.0)

    def _place(self, view: View) -> _Move:
        below = view.hand[2] - view.block[2] if view.has_it else 0.5 * view.height
        where = self._over_plate(view) if self._mends else self._start[:2]
        goal = np.array([*(where + self._beside), PLATE_HEIGHT + below])
        if self._command < 0 or _far(goal - view.hand) < _ARRIVED:
            return _Move(None, view.yaw, -1.0)
        return _Move(goal, view.yaw, 1.0)

    def _leave(self, view: View) -> _Move:
        if not view.is_open:
            return _Move(None, view.yaw, -1.0)
        low = view.hand[2] < 0.09 and _far(view.hand[:2] - HOME[:2]) > 0.03
        return _Move(np.array([*view.hand[:2], 0.12]) if low else HOME, 0.0, -1.0)

    def _over_plate(self, view: View) -> np.ndarray:
        """f64 [2]: where the hand is when the block is above the middle of the plate."""
        offset = view.block[:2] - view.hand[:2] if view.has_it else np.zeros(2)
        return view.plate - offset


def _up(height: float) -> np.ndarray:
    return np.array([0.0, 0.0, height])


def _far(offset: np.ndarray) -> float:
    return float(np.sqrt(np.sum(offset * offset)))
