"""A trained policy in the form that the server takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eosjax.data.specs import stored_gripper
from eosjax.ends.protocols import Clock, Rule
from eosjax.serving.chunk import Chunk
from eosjax.serving.inference import Request
from eosjax.serving.observation import ObservationError, read_images, read_instructions, read_state
from eosjax.serving.policy import Policy


class HostedPolicy:
    """A `Policy` as `eosjax.serving.inference.Served`; its actions have the gripper as the dataset stores it, which is the robot's."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.cameras: Sequence[str] = policy.settings.cameras
        self.with_state = policy.state_size > 0
        self.chunk = policy.config.chunk
        self.rule: Rule | None = policy.settings.rule

    @property
    def facts(self) -> Mapping[str, Any]:
        """Sizes and conventions, and which checkpoint it is."""
        settings = self._policy.settings
        return {
            "action_dim": self._policy.config.action_dim,
            "state_dim": self._policy.state_size,
            "control_hz": settings.control_hz,
            "gripper": settings.gripper,
            **(settings.origin._asdict() if settings.origin else {}),
        }

    def check(self, request: Request) -> None:
        """Raises `ObservationError` for what the policy could not take."""
        if not isinstance(request.instruction, str):
            raise ObservationError(f"instruction: expected a text, got {type(request.instruction).__name__}")
        read_instructions(request.instruction)
        read_images(request.observation, self.cameras)
        if self.with_state:
            read_state(request.observation, self._policy.state_size)

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """A chunk for each. Raises as `Policy.__call__`."""
        images = [[request.observation["images"][camera] for request in requests] for camera in range(len(self.cameras))]
        observation: dict[str, Any] = {"images": images}
        if self.with_state:
            observation["state"] = [request.observation["state"] for request in requests]
        prediction = self._policy(observation, [request.instruction for request in requests])
        actions = stored_gripper(prediction.actions, self._policy.settings.gripper)
        return [Chunk(actions[row], None if prediction.eos is None else prediction.eos[row]) for row in range(len(requests))]

    def plan(self, observation: Mapping[str, Any], instruction: str, clock: Clock, execute_steps: int) -> Chunk:
        """A chunk for a `eosjax.serving.broker.Broker` in the same process; the observation as `Policy.__call__` takes it."""
        return self.predict([Request(observation, instruction)])[0]

    def warm_up(self, rows: int) -> None:
        """Compiles for so many rows and instructions of usual length."""
        size = self._policy.config.dino.image_size
        images = [np.zeros((size, size, 3), np.uint8) for _ in self.cameras]
        observation = {"images": images, "state": np.zeros(self._policy.state_size)}
        self.predict([Request(observation, "compile")] * rows)
