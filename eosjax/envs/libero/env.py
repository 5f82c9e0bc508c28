"""One LIBERO task as an environment of Gymnasium, in this process."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from eosjax.envs.libero.session import Begin, Facts, Session
from eosjax.envs.libero.simulator import SIZE, find_tasks
from eosjax.envs.libero.tasks import split_name
from eosjax.envs.libero.worlds import LIMIT

ENV_ID = "eosjax/Libero-v0"


class LiberoTask(gymnasium.Env):
    """One task. `reset(seed=…)` starts from one of the benchmark's start states and places the fixtures, both by the seed.

    Observation: `images` (third person, wrist; u8 [256 256 3] each, turned as in the published datasets) and `state` f32 [8]. Action:
    f32 [7] as in the datasets (gripper -1 open, +1 close). Reward 1 in every step after which the task is done. An episode terminates when
    the task is done and the hand is away.

    Args:
      suite: `libero_goal`, `libero_object` or `libero_spatial`.
      task: number of the task.
      plain_pictures: without reflections and antialiasing.
      render_mode: "rgb_array" or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  # Gymnasium's own attribute

    def __init__(self, suite: str, task: int, plain_pictures: bool = False, render_mode: str | None = None) -> None:
        (self._task,) = find_tasks(*split_name(f"{suite}:{task}"))
        camera = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        state = gymnasium.spaces.Box(-7.0, 7.0, (8,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"images": gymnasium.spaces.Tuple([camera, camera]), "state": state})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
        self.render_mode = render_mode
        self._plain, self._session = plain_pictures, Session()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The scene at its start."""
        super().reset(seed=seed)
        facts = self._session.begin(Begin(self._task, int(self.np_random.integers(2**31)), 0, self._plain))
        return self._observation(), {"task": self._task.language, "plan": self._task.plan, **_info(facts)}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """One control step."""
        facts = self._session.step(action)
        return self._observation(), float(facts.success), bool(facts.success and facts.goals[-1]), False, _info(facts)

    def expert(self, substep: int) -> np.ndarray:
        """The scripted expert's next action of a sub-step."""
        return self._session.expert(substep)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both cameras side by side."""
        return np.concatenate(self._session.observe()[0], axis=1) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Frees the simulator."""
        self._session.close()

    def _observation(self) -> dict[str, Any]:
        images, state = self._session.observe()
        return {"images": tuple(images), "state": state}


def _info(facts: Facts) -> dict[str, Any]:
    return {"goals": facts.goals, "success": facts.success}


if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, entry_point=LiberoTask, max_episode_steps=LIMIT)  # pyright: ignore[reportArgumentType]
