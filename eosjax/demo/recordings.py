"""Demonstrations on the simulated table: the expert acts through the table's dynamics, and everything is recorded.

The recorded actions, stepped from the recorded seed, give the recorded states, pictures and ends again, bit for bit: `replay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eosjax.data.rlds.write import Recorded, jpeg
from eosjax.demo import table
from eosjax.demo.expert import Expert, Style
from eosjax.demo.render import Rows, draw, sensor_noise
from eosjax.demo.scene import SUBSTEP_ACTIONS, Scene, instruction, substep_instructions
from eosjax.demo.table import Fixed, Luck, State

LONGEST = 400  # steps of an episode
_GIVE_UP = 12  # steps that the expert holds still before an attempt that failed is over
_EXPERT, _SENSOR = 1, 2  # what tells the random numbers of the expert and of the cameras from those of the table
Seed = tuple[int, ...]


class Recording(NamedTuple):
    """One episode of T steps; observations belong to the moment before the action of the same step."""

    seed: Seed
    scene: Scene
    states: State  # [T …]
    action: np.ndarray  # f32 [T 7]
    substep: np.ndarray  # i64 [T]: place in the plan; the step of an end still belongs to its sub-step
    end: np.ndarray  # bool [T]: the goal of the running sub-step holds for the first time
    success: bool  # at the last step


def record(seed: Seed, luck: Luck, style: Style) -> Recording:
    """A demonstration: each sub-step is done until its goal is seen to hold, and ends with the action of that step.

    The episode ends with its last sub-step, when the expert can do no more, or after 400 steps.
    """
    fixed, state = table.set_up([seed], luck)
    expert = Expert(fixed, 0, np.random.default_rng((*seed, _EXPERT)), style)
    steps, running = [], 0
    while running < len(SUBSTEP_ACTIONS) and len(steps) < LONGEST and expert.idle < _GIVE_UP:
        holds = bool(table.goals(fixed, state)[0, running])
        action = expert.act(state, running)
        steps.append((state, action, running, holds))
        running += holds
        state = table.advance(fixed, state, action[None])
    return _recording(seed, fixed, steps)


def replay(seed: Seed, luck: Luck, action: np.ndarray) -> Recording:
    """The recording that these actions make from the start with this seed; ends are where the goals of the plan come to hold in turn."""
    fixed, state = table.set_up([seed], luck)
    steps, running = [], 0
    for each in action:
        holds = bool(table.goals(fixed, state)[0, running])
        steps.append((state, each, running, holds))
        running = min(running + holds, len(SUBSTEP_ACTIONS) - 1)
        state = table.advance(fixed, state, each[None])
    return _recording(seed, fixed, steps)


def _recording(seed: Seed, fixed: Fixed, steps: Sequence[tuple[State, np.ndarray, int, bool]]) -> Recording:
    states, actions, substeps, ends = zip(*steps, strict=True)
    stacked = State(*(np.concatenate(column) for column in zip(*states, strict=True)))
    success = bool(table.success(fixed, states[-1])[0])
    return Recording(seed, fixed.scenes[0], stacked, np.stack(actions), np.array(substeps), np.array(ends), success)


def pictures(seeds: Sequence[Seed], scenes: Sequence[Scene], state: State) -> tuple[np.ndarray, np.ndarray]:
    """What the cameras of n tables see, third-person and wrist, each u8 [n 64 64 3]; a row depends on its seed and state alone."""
    outside, inside = draw(Rows(scenes, state.hand, state.rotation[:, 2], state.opening, state.blocks))
    for row, (seed, step) in enumerate(zip(seeds, state.steps.tolist(), strict=True)):
        rng = np.random.default_rng((*seed, _SENSOR, step))
        outside[row] += sensor_noise(rng, 1)[0]
        inside[row] += sensor_noise(rng, 1)[0]
    return outside, inside


def recorded(recording: Recording, file_path: str) -> Recorded:
    """A recording as it is written into a dataset, with its pictures."""
    steps = len(recording.action)
    outside, inside = pictures([recording.seed] * steps, [recording.scene] * steps, recording.states)
    state = table.robot_state(recording.states)
    reward = np.zeros(steps, np.float32)
    reward[-1] = recording.success
    return Recorded(
        file_path=file_path,
        task=instruction(recording.scene),
        images=[jpeg(picture) for picture in outside],
        wrist_images=[jpeg(picture) for picture in inside],
        state=state,
        joints=state[:, :7],  # there is no arm: pose and one finger replace its joints
        action=recording.action,
        reward=reward,
        plan=substep_instructions(recording.scene),
        verbs=SUBSTEP_ACTIONS,
        substep=recording.substep,
        end=recording.end,
    )
