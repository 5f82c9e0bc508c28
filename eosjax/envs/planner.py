"""A served policy as a rollout asks it: always with the same number of rows, and with actions as the environment takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eosjax.data.specs import stored_gripper
from eosjax.ends.protocols import Clock, Rule, cut_chunk
from eosjax.envs.rollout import Asked, Chunks, End
from eosjax.serving.policy import Policy


class PolicyPlanner:
    """Asks a policy for at most `width` rows; fewer are filled up, so that it compiles once. Cameras that it does not see are left out.

    Args:
      policy: of a run.
      width: rows.
    """

    def __init__(self, policy: Policy, width: int) -> None:
        self._policy, self._width = policy, width
        self._clocks = Clocks(policy.settings.rule)

    def __call__(self, observation: dict[str, Any], asked: Sequence[Asked]) -> Chunks:
        """The next chunk of each row."""
        rows, missing = len(asked), self._width - len(asked)
        instructions = [each.instruction for each in asked]
        seen = observation["images"][: len(self._policy.settings.cameras)]
        filled: dict[str, Any] = {"images": [_filled(camera, missing) for camera in seen]}
        if "state" in observation:
            filled["state"] = _filled(observation["state"], missing)
        said = self._policy(filled, [*instructions, *[instructions[0]] * missing])
        actions = stored_gripper(said.actions[:rows], self._policy.settings.gripper)
        eos = None if said.eos is None else said.eos[:rows]
        return Chunks(actions.astype(np.float32), eos, self._clocks.ends(eos, asked))


class Clocks:
    """What a rule remembers of the running sub-step of each episode, if each executes its chunks up to the end, or as a whole.

    Args:
      rule: when a sub-step ends; None without an EOS head.
    """

    def __init__(self, rule: Rule | None) -> None:
        self._rule = rule
        self._clocks: dict[int, Clock] = {}

    def ends(self, eos: np.ndarray | None, asked: Sequence[Asked]) -> list[End | None]:
        """Where the chunks with these probabilities [n k] end their sub-steps; the clocks go on."""
        if eos is None or self._rule is None:
            return [None] * len(asked)
        found: list[End | None] = []
        for row, each in zip(eos, asked, strict=True):
            cut = cut_chunk(row, self._rule, Clock() if each.begins else self._clocks[each.episode])
            self._clocks[each.episode] = cut.clock
            found.append(None if cut.slot is None else End(cut.slot, cut.timed_out))
        return found


def _filled(column: np.ndarray, missing: int) -> np.ndarray:
    return np.concatenate([column, np.repeat(column[:1], missing, axis=0)]) if missing else column
