"""Demonstrations of LIBERO's tasks: the expert acts in the simulator, and pictures are rendered afterwards from the saved states."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from eosjax.envs.libero.expert import Expert, Style
from eosjax.envs.libero.scene import Scene, View, goals

LONGEST = 400  # steps of an episode
_GIVE_UP = 12  # steps that the expert holds still before an attempt that failed is over
_CARRYING = 2  # place of the sub-step in which a thing is lost


class Table(Protocol):
    """What of a simulator a recording needs."""

    def reset(self, seed: int, start: np.ndarray | None) -> Scene:
        """Sets up the scene."""
        ...

    def step(self, action: np.ndarray) -> None:
        """One control step."""
        ...

    def slip(self, slippery: bool) -> None:
        """From the next step on the thing slips out of the fingers, or no longer."""
        ...

    def view(self) -> View:
        """What is where."""
        ...

    def robot_state(self) -> np.ndarray:
        """f32 [8]."""
        ...

    def joints(self) -> np.ndarray:
        """f32 [7]."""
        ...

    def state(self) -> np.ndarray:
        """f64 [s]."""
        ...


class Recording(NamedTuple):
    """One episode of T steps; observations belong to the moment before the action of the same step."""

    states: np.ndarray  # f64 [T s] of the simulator
    robot: np.ndarray  # f32 [T 8]
    joints: np.ndarray  # f32 [T 7]
    action: np.ndarray  # f32 [T 7]
    substep: np.ndarray  # i64 [T]: place in the plan; the step of an end still belongs to its sub-step
    end: np.ndarray  # bool [T]: the goal of the running sub-step holds for the first time
    success: bool  # at the last step


def record(table: Table, seed: int, rng: np.random.Generator, style: Style, lose_after: int | None = None) -> Recording:
    """Each sub-step is done until its goal is seen to hold, and ends with the action of that step.

    The episode ends with its last sub-step, when the expert can do no more, or after 400 steps.

    Args:
      table: a simulator; left as it is at the end.
      seed: of the scene.
      rng: of the expert.
      style: of the expert.
      lose_after: steps of carrying after which the thing slips out of the fingers, once.
    """
    scene = table.reset(seed, None)
    expert = Expert(scene, rng, style)
    rows, running, carried = [], 0, 0
    view = table.view()
    plan = len(goals(scene, view))
    while running < plan and len(rows) < LONGEST and expert.idle < _GIVE_UP:
        holds = bool(goals(scene, view)[running])
        action = expert.act(view, running)
        rows.append((table.state(), table.robot_state(), table.joints(), action, running, holds))
        carried += running == _CARRYING
        if lose_after is not None and carried > lose_after:
            table.slip(view.held)
            lose_after = lose_after if view.held else None
        running += holds
        table.step(action)
        view = table.view()
    table.slip(False)
    states, robot, joints, actions, substeps, ends = (np.array(column) for column in zip(*rows, strict=True))
    return Recording(states, robot, joints, actions, substeps, ends, bool(view.success))
