"""A served policy as a rollout asks it: always with the same number of rows, and with actions as the environment takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eosjax.data.specs import stored_gripper
from eosjax.envs.rollout import Chunks
from eosjax.serving.policy import Policy


class PolicyPlanner:
    """Asks a policy for at most `width` rows; fewer are filled up, so that it compiles once. Cameras that it does not see are left out.

    Args:
      policy: of a run.
      width: rows.
    """

    def __init__(self, policy: Policy, width: int) -> None:
        self._policy, self._width = policy, width

    def __call__(self, observation: dict[str, Any], instructions: Sequence[str]) -> Chunks:
        """The next chunk of each row."""
        rows, missing = len(instructions), self._width - len(instructions)
        seen = observation["images"][: len(self._policy.settings.cameras)]
        filled: dict[str, Any] = {"images": [_filled(camera, missing) for camera in seen]}
        if "state" in observation:
            filled["state"] = _filled(observation["state"], missing)
        said = self._policy(filled, [*instructions, *[instructions[0]] * missing])
        actions = stored_gripper(said.actions[:rows], self._policy.settings.gripper)
        return Chunks(actions.astype(np.float32), None if said.eos is None else said.eos[:rows])


def _filled(column: np.ndarray, missing: int) -> np.ndarray:
    return np.concatenate([column, np.repeat(column[:1], missing, axis=0)]) if missing else column
