"""What eosjax must know of a dataset and its files do not say: which feature is which, and in what convention."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Literal

import numpy as np

from eosjax.types import UserError

GripperConvention = Literal["minus_open_plus_closed", "as_stored"]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Description of an RLDS dataset; the defaults are the layout that the LIBERO datasets share.

    Attributes:
        image_keys: observation features of the cameras, the primary one first, then the wrist.
        state_key: observation feature of the proprioceptive state, f32 [proprio_size].
        action_key: step feature of the action, f32 [action_size]; its last dimension is the gripper.
        instruction_key: step feature of the task instruction.
        gripper: how the gripper command is stored; see `standard_actions`.
        action_mask: which action dimensions are normalised; the others pass unchanged.
        chunk: number of actions predicted at once (K).
        action_size: size of an action (A).
        proprio_size: size of the proprioceptive state (P).
        control_hz: control steps per second.
    """

    image_keys: tuple[str, ...] = ("image", "wrist_image")
    state_key: str = "state"
    action_key: str = "action"
    instruction_key: str = "language_instruction"
    gripper: GripperConvention = "minus_open_plus_closed"
    action_mask: tuple[bool, ...] = (True,) * 6 + (False,)
    chunk: int = 8
    action_size: int = 7
    proprio_size: int = 8
    control_hz: float = 20.0

    def __post_init__(self) -> None:
        if len(self.action_mask) != self.action_size:
            raise ValueError(f"action_mask: expected {self.action_size} entries (action_size), got {len(self.action_mask)}")

    def standard_actions(self, actions: np.ndarray) -> np.ndarray:
        """Actions f32 [T a] with the gripper as 1 = open, 0 = closed.

        "minus_open_plus_closed" (LIBERO: -1 opens, +1 closes) becomes 1 - clip(g, 0, 1), as in OpenVLA-OFT;
        "as_stored" is left alone.
        """
        actions = np.array(actions, np.float32)
        if self.gripper == "minus_open_plus_closed":
            actions[:, -1] = 1.0 - np.clip(actions[:, -1], 0.0, 1.0)
        return actions


_LIBERO = DatasetSpec()
_LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
SPECS: dict[str, DatasetSpec] = {
    **{suite + suffix: _LIBERO for suite in _LIBERO_SUITES for suffix in ("", "_no_noops")},
    "eosjax_demo": _LIBERO,
}


def spec_for(name: str) -> DatasetSpec:
    """The description of dataset `name`; a `UserError` that lists the known names, nearest first, if there is none."""
    if name not in SPECS:
        nearest = difflib.get_close_matches(name, SPECS, n=len(SPECS), cutoff=0.0)
        raise UserError(f"--dataset_name: no description of dataset {name!r}; known: {', '.join(nearest)}")
    return SPECS[name]
