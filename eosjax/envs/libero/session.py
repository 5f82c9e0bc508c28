"""An episode in a simulator of this process: what is true, what is seen, and what the scripted expert does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eosjax.envs.libero.expert import Expert, Style
from eosjax.envs.libero.scene import Scene, View, goals
from eosjax.envs.libero.simulator import Simulator, start_states
from eosjax.envs.libero.tasks import Task

_KEPT = 2  # simulators of different tasks in a process, up to 0.9 GB each with pictures
_kept: dict[tuple[Task, bool], Simulator] = {}


class Begin(NamedTuple):
    """How an episode begins."""

    task: Task
    seed: int  # of the places of fixtures, the order of start states, and the expert
    turn: int  # number of the start state in that order; one of the benchmark's own
    plain: bool  # pictures without reflections and antialiasing


class Facts(NamedTuple):
    """What is true at a moment."""

    goals: np.ndarray  # bool [5]: of each sub-step
    success: bool


class Session:
    """The episode that runs. `begin` comes first."""

    _simulator: Simulator
    _scene: Scene
    _view: View
    _expert: Expert

    def begin(self, how: Begin) -> Facts:
        """Sets up another episode."""
        self._simulator = simulator(how.task, how.plain)
        starts = start_states(how.task)
        order = np.random.default_rng(how.seed).permutation(len(starts))
        rng = np.random.default_rng((how.seed, how.turn))
        self._scene = self._simulator.reset(int(rng.integers(2**31)), starts[order[how.turn % len(starts)]])
        self._expert = Expert(self._scene, rng, Style())
        return self._look_round()

    def step(self, action: np.ndarray) -> Facts:
        """One control step."""
        self._simulator.step(action)
        return self._look_round()

    def expert(self, substep: int) -> np.ndarray:
        """The scripted expert's next action f32 [7] of a sub-step."""
        return self._expert.act(self._view, substep)

    def observe(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Pictures of the third-person and the wrist camera, each u8 [256 256 3], and the state f32 [8]."""
        return self._simulator.pictures(), self._simulator.robot_state()

    def close(self) -> None:
        """Frees the simulators of this process."""
        while _kept:
            _kept.popitem()[1].close()

    def _look_round(self) -> Facts:
        self._view = self._simulator.view()
        return Facts(goals(self._scene, self._view), self._view.success)


def simulator(task: Task, plain: bool) -> Simulator:
    """The simulator of a task in this process; the one that has been unused for longest makes room for a new one."""
    found = _kept.pop((task, plain), None)
    if found is None:
        while len(_kept) >= _KEPT:
            _kept.pop(next(iter(_kept))).close()
        found = Simulator(task, plain)
    _kept[task, plain] = found
    return found
