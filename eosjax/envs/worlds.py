"""What a rollout needs of environments: many at once, each at its own step, pictures only where somebody looks.

`Worlds` is that interface. `GymWorlds` gives it to Gymnasium environments of any kind. Such an environment has these parts:

- the observation is what `eosjax.serving.policy.Policy` takes: a mapping with `images` and, if the policy uses it, `state`;
- the action has the units and the gripper convention of the dataset that the policy was trained on;
- `info` of `reset` has `task` (text) and `plan` (the instructions of the sub-steps, in order);
- `info` of `reset` and `step` has `goals` (bool, one a sub-step: does its goal hold now?) and `success` (bool).

An environment with a scripted expert has a method `expert(substep)` that gives the next action of a sub-step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np

from eosjax.types import UserError

LIMIT = 400  # steps of an episode where an environment sets no limit


class WorldError(UserError):
    """An environment that does not tell what a rollout needs."""


class Truth(NamedTuple):
    """What holds now in n environments."""

    goals: list[np.ndarray]  # n times bool [s]: of each sub-step of the plan
    success: np.ndarray  # bool [n]


class Worlds(Protocol):
    """n environments, each started from its own seed. `rows` numbers some of them."""

    tasks: list[str]
    plans: list[list[str]]  # the instructions of the sub-steps of each
    limit: int  # steps of an episode

    def observe(self, rows: Sequence[int]) -> dict[str, Any]:
        """What the policy takes, row by row."""
        ...

    def truth(self, rows: Sequence[int]) -> Truth:
        """What holds now."""
        ...

    def step(self, rows: Sequence[int], actions: Sequence[np.ndarray]) -> dict[int, str]:
        """One action each; returns which of the rows broke, and how."""
        ...

    def expert(self, row: int, substep: int) -> np.ndarray:
        """The scripted expert's next action of a sub-step."""
        ...


class GymWorlds:
    """Gymnasium environments as `Worlds`, stepped one after the other."""

    def __init__(self, make: Callable[[], gymnasium.Env], seeds: Sequence[int]) -> None:
        self._envs = [make() for _ in seeds]
        starts = [env.reset(seed=seed) for env, seed in zip(self._envs, seeds, strict=True)]
        self._seen = [observation for observation, _ in starts]
        self._infos = [dict(info) for _, info in starts]
        for info in self._infos:
            _check(info)
        self.tasks = [str(info["task"]) for info in self._infos]
        self.plans = [list(info["plan"]) for info in self._infos]
        spec = self._envs[0].spec
        self.limit = (spec and spec.max_episode_steps) or LIMIT

    def observe(self, rows: Sequence[int]) -> dict[str, Any]:
        """See `Worlds`."""
        return gather([self._seen[row] for row in rows])

    def truth(self, rows: Sequence[int]) -> Truth:
        """See `Worlds`."""
        goals = [np.asarray(self._infos[row]["goals"], bool) for row in rows]
        return Truth(goals, np.array([bool(self._infos[row]["success"]) for row in rows]))

    def step(self, rows: Sequence[int], actions: Sequence[np.ndarray]) -> dict[int, str]:
        """See `Worlds`."""
        broken = {}
        for row, action in zip(rows, actions, strict=True):
            try:
                self._seen[row], _, _, _, info = self._envs[row].step(action)
            except Exception as error:  # a simulator may fail in any way; the other episodes go on
                broken[row] = f"{type(error).__name__}: {error}"
            else:
                self._infos[row] = {**self._infos[row], **info}
        return broken

    def expert(self, row: int, substep: int) -> np.ndarray:
        """See `Worlds`."""
        act = getattr(self._envs[row].unwrapped, "expert", None)
        if act is None:
            raise WorldError("--executor expert: the environment has no method `expert(substep)`")
        return np.asarray(act(substep), np.float32)


def gather(observations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Observations of n environments, row by row, as `Policy` takes them."""
    cameras = len(observations[0]["images"])
    found: dict[str, Any] = {"images": [np.stack([each["images"][camera] for each in observations]) for camera in range(cameras)]}
    if "state" in observations[0]:
        found["state"] = np.stack([each["state"] for each in observations])
    return found


def _check(info: Mapping[str, Any]) -> None:
    missing = [name for name in ("task", "plan", "goals", "success") if name not in info]
    if missing:
        raise WorldError(f"--env: `info` of `reset` lacks {', '.join(missing)}; docs/closed_loop.md says what an environment tells")
    if not len(info["plan"]) or len(info["plan"]) != len(info["goals"]):
        raise WorldError(
            f"--env: expected a goal for each sub-step of the plan, got {len(info['goals'])} goals and {len(info['plan'])} sub-steps"
        )
