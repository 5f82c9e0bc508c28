"""A scripted expert that does one sub-step of a LIBERO task at a time, and sees all of the scene.

Each call looks at the scene and gives one action (OSC_POSE: a change of pose in controller units, then the gripper). It does the sub-step
that it is told to do, from wherever the hand is, and then holds still. Speeds, pauses and noise are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from eosjax.envs.libero.scene import OPEN, Grasp, Scene, View, blocked, down, grasps, release, rotation, up

Moves = Iterator[np.ndarray]  # actions f32 [7]
_GAIN = 12.0  # controller units a metre
_HOVER, _RISE = 0.10, 0.10  # metres above a grasp, and that a thing is lifted
_CLEAR = 0.10  # above the place where it is let go
_CLOSING, _OPENING = 10, 8  # steps
_WITHIN = 0.08  # metres, sideways: as near as that a missed grasp is tried again


class Style(NamedTuple):
    """How irregular an expert is, and what goes wrong."""

    speed: tuple[float, float] = (0.6, 0.7)  # controller units, drawn for each episode
    noise: float = 0.12  # of the moves, controller units
    dwell: float = 2.0  # mean number of steps before a sub-step begins, without memory
    hover: int = 8  # largest number of steps that it waits above a thing
    tries: int = 4  # to grasp
    misses: int = 0  # first tries that close above the thing
    recover: bool = True  # a thing that is lost on the way is grasped again
    beside: bool = False  # puts the thing beside the target


class Expert:
    """The expert in one scene.

    Args:
      scene: at its start.
      rng: of the expert's whims.
      style: how irregular it is.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator, style: Style) -> None:
        self._scene, self._rng, self._style = scene, rng, style
        self._skills = (self._reach, self._pick, self._carry, self._place, self._leave)
        self._told, self._moves = -1, iter(())
        self._command = -1.0
        self._speed = rng.uniform(*style.speed)
        self._aim = rng.normal(0, 0.002, 3) * [1, 1, 0.5]
        self._grasp = Grasp(0.0, np.zeros(3))
        self.idle = 0  # steps that it has held still, with nothing left to do
        self.view: View

    def act(self, view: View, substep: int) -> np.ndarray:
        """The next action f32 [7] of a sub-step: begun if it is another than the last time, holding still where it is done."""
        self.view = view
        if substep != self._told:
            self._told, self._moves, self.idle = substep, self._skills[substep](), 0
        action = next(self._moves, None)
        if action is None:
            self.idle += 1
            action = self._action(np.zeros(3))
        return action

    def _action(self, error: np.ndarray, speed: float = 1.0, turn: bool = False) -> np.ndarray:
        """Moves by `error` metres, at most with `speed` times the expert's own; turns to the yaw of the grasp."""
        move, most = error * _GAIN, self._speed * speed
        length = float(np.linalg.norm(move))
        move = move * min(1.0, most / max(length, 1e-9))
        noise = self._style.noise * min(1.0, length / most)
        spin = np.clip(self._off_turn(), -0.3, 0.3) if turn else np.zeros(3)
        drawn = self._rng.normal(size=6)
        action = np.concatenate([move + noise * drawn[:3], spin + 0.2 * noise * drawn[3:], [self._command]])
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _off_turn(self) -> np.ndarray:
        return rotation(down(self._grasp.yaw) @ self.view.turn.T)

    def _stay(self, steps: int) -> Moves:
        for _ in range(steps):
            yield self._action(np.zeros(3))

    def _dwell(self) -> Moves:
        """Holds still for a time without memory, which may be none."""
        return self._stay(int(self._rng.geometric(1.0 / (1.0 + self._style.dwell))) - 1)

    def _go(self, goal: Callable[[], np.ndarray], near: float, speed: float = 1.0, most: int = 90, turned: bool = False) -> Moves:
        """Moves until the hand is `near` a place that may itself move, for at most so many steps."""
        for _ in range(most):
            error = goal() - self.view.hand
            if np.linalg.norm(error) < near and not (turned and np.linalg.norm(self._off_turn()) > 0.06):
                return
            yield self._action(error, speed, turn=True)

    def _grip(self, command: float, steps: int) -> Moves:
        self._command = command
        yield from self._stay(steps)

    def _descend(self) -> Moves:
        """Opens the fingers, goes above the thing and down to the grasp with the least in its way."""
        if self.view.gap < OPEN:
            yield from self._grip(-1.0, _OPENING)
        place = release(self._scene, self.view.target)
        self._grasp = min(
            grasps(self._scene, self.view.axes),  # the first of several that are equally free
            key=lambda each: round(blocked(self._scene, self.view.thing + each.offset, each.yaw) + self._blocked_at(place, each), 6),
        )
        yield from self._go(lambda: self._at_thing() + up(_HOVER), 0.012, turned=True)
        yield from self._stay(int(self._rng.integers(0, self._style.hover + 1)))
        yield from self._go(self._at_thing, 0.006, 0.65, most=40)

    def _blocked_at(self, place: np.ndarray, grasp: Grasp) -> float:
        return blocked(self._scene, place + grasp.offset, grasp.yaw) + 0.02 * (grasp.yaw != 0.0)

    def _at_thing(self) -> np.ndarray:
        return self.view.thing + self._grasp.offset + self._aim

    def _reach(self) -> Moves:
        yield from self._dwell()
        yield from self._descend()

    def _pick(self) -> Moves:
        yield from self._dwell()
        for attempt in range(self._style.tries):
            if attempt < self._style.misses:
                high = self.view.hand + up(self._rng.uniform(0.05, 0.07))
                yield from self._go(lambda high=high: high, 0.01, 0.65, most=20)
            yield from self._grip(1.0, _CLOSING)
            yield from self._rise(_RISE)
            if self.view.held or attempt == self._style.tries - 1 or self._far():
                return
            yield from self._dwell()
            yield from self._descend()

    def _rise(self, height: float) -> Moves:
        high = self.view.hand + up(height)
        return self._go(lambda: high, 0.02, most=40)

    def _far(self) -> bool:
        return bool(np.hypot(*(self.view.hand - self._at_thing())[:2]) > _WITHIN)

    def _carry(self) -> Moves:
        yield from self._dwell()
        while True:
            held = self.view.held
            yield from self._over(release(self._scene, self.view.target) + up(_CLEAR), until_lost=held)
            if self.view.held or not (held and self._style.recover):
                return
            yield from self._descend()
            yield from self._grip(1.0, _CLOSING)
            yield from self._rise(_RISE)

    def _over(self, place: np.ndarray, until_lost: bool) -> Moves:
        """Up, and then sideways until the thing, or the hand that lost it, is there."""
        offset = self.view.hand - self.view.thing if self.view.held else self._grasp.offset
        height = max(place[2] + offset[2], self.view.hand[2])
        ways = (self._go(lambda: np.array([*self.view.hand[:2], height]), 0.02), self._go(lambda: self._above(place, height), 0.012))
        for way in ways:
            for action in way:
                if until_lost and not self.view.held:
                    return
                yield action

    def _above(self, place: np.ndarray, height: float) -> np.ndarray:
        offset = self.view.hand - self.view.thing if self.view.held else self._grasp.offset
        return np.array([*(place + offset)[:2], height])

    def _place(self) -> Moves:
        yield from self._dwell()
        aside = self._beside() if self._style.beside else np.zeros(3)
        if self._style.beside:
            yield from self._over(release(self._scene, self.view.target) + aside + up(_CLEAR), until_lost=False)
        yield from self._go(lambda: self._letting_go() + aside, 0.007, 0.5, most=40)
        yield from self._dwell()
        yield from self._grip(-1.0, _OPENING)

    def _letting_go(self) -> np.ndarray:
        offset = self.view.hand - self.view.thing if self.view.held else self._grasp.offset
        return release(self._scene, self.view.target) + offset

    def _beside(self) -> np.ndarray:
        """f64 [3]: from the target to a place beside it where little is in the way."""
        angles = self._rng.permutation(8) * np.pi / 4
        place, distance = release(self._scene, self.view.target), self._rng.uniform(0.11, 0.14)
        sides = [distance * np.array([np.cos(angle), np.sin(angle), 0.0]) for angle in angles]
        return min(sides, key=lambda side: blocked(self._scene, place + side, self._grasp.yaw))

    def _leave(self) -> Moves:
        yield from self._dwell()
        if self.view.gap < OPEN:
            yield from self._grip(-1.0, _OPENING)
        yield from self._rise(_HOVER + 0.02)
