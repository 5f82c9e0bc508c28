"""Which entries of a robot's observation are the policy's cameras, state and instruction: known robots, and a file for any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eosjax.documents import read_yaml
from eosjax.fields import Field, check_fields, show, table
from eosjax.serving.observation import ObservationError
from eosjax.types import UserError


class MappingError(UserError):
    """A mapping that does not make sense, or does not fit the policy."""


@dataclasses.dataclass(frozen=True)
class ObservationKeys:
    """Where a robot puts what the policy sees.

    A key is the name of an entry, or a path through nested maps, its parts joined by "/".

    Attributes:
      images: of the cameras, in the order of those of the policy.
      state: joined in this order.
      prompt: the instruction.
      channels: whether an image is [h w 3] or [3 h w].
    """

    images: tuple[str, ...]
    state: tuple[str, ...] = ()
    prompt: str = "prompt"
    channels: Literal["last", "first"] = "last"

    def read(self, observation: Mapping[str, Any], cameras: int, *, with_state: bool) -> tuple[dict[str, Any], Any]:
        """The observation as a policy takes it, and the instruction; `ObservationError` for an entry that is missing."""
        images = [find(observation, key) for key in self.images[:cameras]]
        if self.channels == "first":
            images = [np.moveaxis(image, 0, -1) if getattr(image, "ndim", 0) == 3 else image for image in images]
        found: dict[str, Any] = {"images": images}
        if with_state:
            found["state"] = _join({key: find(observation, key) for key in self.state})
        return found, find(observation, self.prompt)

    def check(self, cameras: Sequence[str], *, with_state: bool) -> None:
        """Raises `MappingError` unless there is a key for each of the cameras, and for the state where the policy has one."""
        if len(self.images) < len(cameras):
            raise MappingError(f"images: expected a key for each of the policy's cameras, {', '.join(cameras)}; got {list(self.images)}")
        if with_state and not self.state:
            raise MappingError("state: expected a key at least, since the policy sees the state of the robot; got none")


_DROID = ObservationKeys(
    images=("observation/exterior_image_1_left", "observation/wrist_image_left"),
    state=("observation/joint_position", "observation/gripper_position"),
)
_ALOHA = ObservationKeys(
    images=("images/cam_high", "images/cam_left_wrist", "images/cam_right_wrist", "images/cam_low"), state=("state",), channels="first"
)
ROBOTS = {
    "libero": ObservationKeys(images=("observation/image", "observation/wrist_image"), state=("observation/state",)),
    "droid": _DROID,
    "aloha": _ALOHA,
}
FIELDS = table(
    Field("images", "honoured", "keys of the cameras, in the order of those of the policy"),
    Field("state", "honoured", "key or keys of the state"),
    Field("prompt", "honoured", "key of the instruction"),
    Field("channels", "honoured", "last for images [h w 3], first for [3 h w]"),
)


def open_keys(name: str) -> ObservationKeys:
    """The mapping of a known robot, or from a YAML file.

    Raises:
        MappingError: neither such a robot nor such a file, or a field that is not as described.
        eosjax.documents.DocumentError: the file cannot be read.
    """
    if name in ROBOTS:
        return ROBOTS[name]
    path = Path(name)
    if not path.exists():
        raise MappingError(f"{name}: expected {', '.join(ROBOTS)} or a YAML file; there is no such file")
    fields = check_fields(read_yaml(path), FIELDS, path, MappingError)
    prompt, channels = fields.get("prompt", "prompt"), fields.get("channels", "last")
    if not isinstance(prompt, str) or not prompt:
        raise MappingError(f"{path}: prompt: expected a key, got {show(prompt)}")
    if channels not in ("last", "first"):
        raise MappingError(f"{path}: channels: expected last or first, got {show(channels)}")
    return ObservationKeys(_keys(path, "images", fields), _keys(path, "state", fields), prompt, channels)


def find(observation: Mapping[str, Any], key: str) -> Any:
    """The entry of a key; `ObservationError` names what there is instead."""
    if key in observation:
        return observation[key]
    found: Any = observation
    for part in key.split("/"):
        if not isinstance(found, Mapping) or part not in found:
            raise ObservationError(f"{key}: missing; the observation has {', '.join(map(show, list(observation)[:12])) or 'no entries'}")
        found = found[part]
    return found


def _join(entries: Mapping[str, Any]) -> Any:
    """The entries as one state; a single one as it is."""
    if len(entries) == 1:
        return next(iter(entries.values()))
    parts = []
    for key, value in entries.items():
        try:
            part = np.atleast_1d(np.asarray(value))
        except ValueError as error:
            raise ObservationError(f"{key}: expected numbers, got a ragged list") from error
        if part.ndim != 1 or part.dtype.kind not in "fiu":
            raise ObservationError(f"{key}: expected a row of numbers, got {part.dtype} {list(part.shape)}")
        parts.append(part)
    return np.concatenate(parts)


def _keys(path: Path, name: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    given = fields.get(name, [])
    keys = [given] if isinstance(given, str) else given
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys) or len(set(keys)) != len(keys):
        raise MappingError(f"{path}: {name}: expected keys, none twice, got {show(given)}")
    if name == "images" and not keys:
        raise MappingError(f"{path}: images: expected at least one key, got none")
    return tuple(keys)
