"""A scripted expert that does one sub-step at a time on the simulated table, and sees all of it.

It acts through the table's dynamics alone: each call looks at the state and gives one action. It does the sub-step that it is told to do,
from wherever the hand is, and then holds still. It is irregular on purpose, so that neither the clock nor the gripper command reveals the
end of a sub-step: speeds, pauses, detours and idle moves of the fingers are random. The scene reveals it: at every end, a last step of
about two centimetres reaches an exact goal, or the fingers open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from eosjax.demo.simulator import CARRY, HOME, LAST_STEP, LEAN, OPEN, PLATE_HEIGHT, PLATE_RADIUS, SPEED, STEP, TURN
from eosjax.demo.table import Fixed, State

Moves = Iterator[np.ndarray]  # actions f32 [7]


_PATIENCE = 12  # steps that it waits for the fingers: another block than the target may be in their way


class Style(NamedTuple):
    """How irregular an expert is."""

    speed: tuple[float, float] = SPEED  # metres a step, drawn for each leg of the way
    last: float = LAST_STEP  # metres; the decisive last step of a leg is about as long
    pause: float = 0.01  # share of the steps on the way before which the hand pauses
    still: float = 3.0  # mean length of such a pause in steps; without memory, so that the time waited carries no information
    dwell: float = 1.6  # mean number of steps that it waits between two moves, at least one; as much without memory
    detour: float = 0.2  # share of the ways to the block that lead over another place
    blip: float = 0.3  # share of the ways to the block on which the empty fingers close without purpose
    tries: int = 8  # to grasp
    beside: bool = False  # puts the block beside the plate


class View(NamedTuple):
    """One table, as the expert sees it."""

    hand: np.ndarray  # f64 [3]
    yaw: float
    opening: float
    block: np.ndarray  # f64 [4], the target
    has_it: bool
    height: float
    width: float
    cube: bool
    plate: np.ndarray  # f64 [2]
    settled: bool  # the fingers follow their command, and have stopped


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
        self._told, self._moves = -1, iter(())
        self._command = -1.0
        self.idle = 0  # steps that it has held still, with nothing left to do
        self.view: View

    def act(self, state: State, substep: int) -> np.ndarray:
        """The next action f32 [7] of a sub-step: begun if it is another than the last time, holding still where it is done."""
        self.view = self._look(state)
        if substep != self._told:
            self._told, self._moves, self.idle = substep, self._skills[substep](), 0
        action = next(self._moves, None)
        if action is None:
            self.idle += 1
            action = self._action()
        return action

    def _look(self, state: State) -> View:
        row, fixed = self._row, self._fixed
        width = 2 * float(fixed.radius[row, 0])
        opening = float(state.opening[row])
        settled = bool(state.fingers[row] == state.command[row]) and any(abs(opening - x) < 1e-6 for x in (0.0, OPEN, width))
        return View(
            hand=state.hand[row],
            yaw=float(state.rotation[row, 2]),
            opening=opening,
            block=state.blocks[row, 0],
            has_it=bool(state.held[row] == 0),
            height=float(fixed.height[row, 0]),
            width=width,
            cube=bool(fixed.cube[row, 0]),
            plate=fixed.plates[row, 0],
            settled=settled,
        )

    def _action(self, delta: np.ndarray | None = None, turn: float = 0.0) -> np.ndarray:
        """Moves by `delta` metres (None: stays) and turns by `turn` radians; the hand leans as it reaches out."""
        noise = self._rng.normal(size=6)
        action = np.zeros(7)
        action[:3] = noise[:3] * 0.01 if delta is None else delta / STEP + noise[:3] * 0.02
        action[3:5] = LEAN * np.array([-action[1], action[0]]) + noise[3:5] * 0.004
        action[5] = turn / TURN + noise[5] * 0.01
        action = np.clip(action, -1.0, 1.0)
        action[6] = self._command
        return action.astype(np.float32)

    def _stay(self, mean: float | None = None) -> Moves:
        """Holds still for a time without memory."""
        for _ in range(self._rng.geometric(1.0 / (mean or self._style.dwell))):
            yield self._action()

    def _go(self, goal: np.ndarray, yaw: float, pauses: bool = True) -> Moves:
        """Moves to `goal` at an even pace. The last step lands on it."""
        style = self._style
        speed = self._rng.uniform(*style.speed)
        while (distance := float(np.sqrt(np.sum((goal - self.view.hand) ** 2)))) > 0.3 * style.last or abs(yaw - self.view.yaw) > 0.05:
            if pauses and self._rng.random() < style.pause:
                yield from self._stay(style.still)
                continue
            steps_left = 1 + max(0, round((distance - style.last) / speed))
            pace = 1.0 if steps_left == 1 else speed / distance
            turn = float(np.clip(yaw - self.view.yaw, -0.6 * TURN, 0.6 * TURN))
            yield self._action(pace * (goal - self.view.hand), turn)

    def _grip(self, command: float) -> Moves:
        """Commands the fingers (-1 open, +1 close) and waits until they have stopped."""
        self._command = command
        yield self._action()
        for _ in range(_PATIENCE):
            if self.view.settled:
                return
            yield self._action()

    @property
    def _grasp(self) -> np.ndarray:
        """Where the hand closes round the block."""
        return self.view.block[:3] + _up(0.5 * self.view.height)

    @property
    def _turned(self) -> float:
        """The yaw of the hand that fits the block, the one that is nearest."""
        if not self.view.cube:
            return float(np.clip(self.view.block[3], -0.4, 0.4))
        quarter = np.pi / 2
        return float((self.view.block[3] + quarter / 2) % quarter - quarter / 2)

    def _reach(self) -> Moves:
        above = self._grasp + _up(self._rng.uniform(0.07, 0.10))
        if self.view.opening < OPEN - 1e-3:
            yield from self._grip(-1.0)
        if self._rng.random() < self._style.detour:
            yield from self._go(above + self._rng.uniform([-0.06, -0.06, 0.02], [0.06, 0.06, 0.04]), self._turned)
        if self._rng.random() < self._style.blip:
            yield from self._grip(1.0)
            yield from self._stay()
            yield from self._grip(-1.0)
        yield from self._go(above, self._turned)
        yield from self._go(self._grasp, self._turned)

    def _pick(self) -> Moves:
        for attempt in range(self._style.tries):
            yield from self._stay()
            yield from self._grip(1.0)
            yield from self._stay()
            low = float(self.view.hand[2])
            rise = CARRY if self.view.has_it or attempt == self._style.tries - 1 else self._rng.uniform(0.04, CARRY)
            yield from self._go(np.array([*self.view.hand[:2], low + rise]), self.view.yaw)
            if self.view.has_it or np.sqrt(np.sum((self.view.hand[:2] - self.view.block[:2]) ** 2)) > 0.04:
                return  # done, or nothing to try again here
            yield from self._stay()
            yield from self._grip(-1.0)
            yield from self._go(self._grasp, self._turned)

    def _carry(self) -> Moves:
        yield from self._stay()
        yield from self._go(np.array([*self._over_plate, self.view.hand[2]]), 0.0)

    def _place(self) -> Moves:
        yield from self._stay()
        below = self.view.hand[2] - self.view.block[2] if self.view.has_it else 0.5 * self.view.height
        where = self.view.hand[:2] + (self._beside() if self._style.beside else 0.0)
        yield from self._go(np.array([*where, PLATE_HEIGHT + below]), self.view.yaw)
        yield from self._stay()
        yield from self._grip(-1.0)

    def _leave(self) -> Moves:
        yield from self._stay()
        yield from self._go(self.view.hand + _up(self._rng.uniform(0.05, 0.09)), 0.0)
        yield from self._go(HOME, 0.0)

    def _beside(self) -> np.ndarray:
        """f64 [2]: from the middle of the plate to where the block misses it."""
        angle = self._rng.uniform(0, 2 * np.pi)
        return (PLATE_RADIUS + self._rng.uniform(0.01, 0.03)) * np.array([np.cos(angle), np.sin(angle)])

    @property
    def _over_plate(self) -> np.ndarray:
        """f64 [2]: where the hand is when the block is above the middle of the plate."""
        offset = self.view.block[:2] - self.view.hand[:2] if self.view.has_it else np.zeros(2)
        return self.view.plate - offset


def _up(height: float) -> np.ndarray:
    return np.array([0.0, 0.0, height])
