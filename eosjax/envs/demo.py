"""The simulated table as an environment: `DemoTable` for Gymnasium, and `DemoWorlds`, many tables that step at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from eosjax.demo import table
from eosjax.demo.expert import Expert, Style
from eosjax.demo.recordings import LONGEST, Seed, pictures
from eosjax.demo.render import SIZE
from eosjax.demo.scene import instruction, substep_instructions
from eosjax.demo.table import Fixed, Luck, State
from eosjax.envs.worlds import Truth

LIMIT = LONGEST
ENV_ID = "eosjax/DemoTable-v0"
_EXPERT = 1  # as in `eosjax.demo.recordings`


class DemoWorlds:
    """Tables with these seeds, as `eosjax.envs.worlds.Worlds`."""

    def __init__(self, seeds: Sequence[Seed], luck: Luck | None = None, style: Style | None = None) -> None:
        self._seeds = list(seeds)
        self._fixed, self._state = table.set_up(self._seeds, luck or Luck())
        self._experts = [
            Expert(self._fixed, row, np.random.default_rng((*seed, _EXPERT)), style or Style()) for row, seed in enumerate(self._seeds)
        ]
        self.tasks = [instruction(scene) for scene in self._fixed.scenes]
        self.plans = [substep_instructions(scene) for scene in self._fixed.scenes]
        self.limit = LIMIT

    def observe(self, rows: Sequence[int]) -> dict[str, Any]:
        """See `Worlds`."""
        fixed, state = self._of(rows)
        images = pictures([self._seeds[row] for row in rows], fixed.scenes, state)
        return {"images": list(images), "state": table.robot_state(state)}

    def truth(self, rows: Sequence[int]) -> Truth:
        """See `Worlds`."""
        fixed, state = self._of(rows)
        return Truth(list(table.goals(fixed, state)), table.success(fixed, state))

    def step(self, rows: Sequence[int], actions: Sequence[np.ndarray]) -> dict[int, str]:
        """See `Worlds`; nothing breaks."""
        fixed, state = self._of(rows)
        after = table.advance(fixed, state, np.stack(list(actions)))
        for column, changed in zip(self._state, after, strict=True):
            column[np.asarray(rows)] = changed
        return {}

    def expert(self, row: int, substep: int) -> np.ndarray:
        """See `Worlds`."""
        return self._experts[row].act(self._state, substep)

    def _of(self, rows: Sequence[int]) -> tuple[Fixed, State]:
        chosen = np.asarray(rows)
        return self._fixed.rows(chosen), self._state.rows(chosen)


class DemoTable(gymnasium.Env):
    """One table. `reset(seed=…)` sets up the scene with this seed; without one, the next of the environment's own random numbers.

    Observation: `images` (third person, wrist; u8 [64 64 3] each) and `state` f32 [8]. Action: f32 [7] as in the dataset (gripper -1 open,
    +1 close). Reward 1 in every step after which the task is done. An episode terminates when the task is done and the hand is away.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  # Gymnasium's own attribute

    def __init__(self, render_mode: str | None = None) -> None:
        camera = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        state = gymnasium.spaces.Box(-2.0, 2.0, (8,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"images": gymnasium.spaces.Tuple([camera, camera]), "state": state})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
        self.render_mode = render_mode
        self._worlds = DemoWorlds([(0,)])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """A table at its start."""
        super().reset(seed=seed)
        self._worlds = DemoWorlds([(int(self.np_random.integers(2**31)) if seed is None else seed,)])
        return self._observation(), {"task": self._worlds.tasks[0], "plan": self._worlds.plans[0], **self._info()}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """One control step."""
        self._worlds.step([0], [action])
        info = self._info()
        return self._observation(), float(info["success"]), bool(info["success"] and info["goals"][-1]), False, info

    def expert(self, substep: int) -> np.ndarray:
        """The scripted expert's next action of a sub-step."""
        return self._worlds.expert(0, substep)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both cameras side by side."""
        return np.concatenate(self._observation()["images"], axis=1) if self.render_mode == "rgb_array" else None

    def _observation(self) -> dict[str, Any]:
        seen = self._worlds.observe([0])
        return {"images": tuple(camera[0] for camera in seen["images"]), "state": seen["state"][0]}

    def _info(self) -> dict[str, Any]:
        truth = self._worlds.truth([0])
        return {"goals": truth.goals[0], "success": bool(truth.success[0])}


if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, entry_point=DemoTable, max_episode_steps=LIMIT)  # pyright: ignore[reportArgumentType]
