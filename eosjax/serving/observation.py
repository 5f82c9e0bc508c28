"""What a robot hands in, checked before a network sees it: the error names the entry, what was expected and what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eosjax.names import instruction_fault
from eosjax.types import UserError


class ObservationError(UserError):
    """An observation or an instruction that is not what the policy was trained on."""


def read_instructions(instruction: Any) -> list[str]:
    """The instructions in a text or a sequence of texts; `ObservationError` for none, one that is blank, or anything else."""
    several = isinstance(instruction, (Sequence, np.ndarray)) and not isinstance(instruction, (str, bytes, bytearray))
    found: list[Any] = list(instruction) if several else [instruction]
    if not found:
        raise ObservationError("instruction: expected at least one, got an empty list")
    for number, each in enumerate(found):
        which = f"instruction {number}" if several else "instruction"
        if not isinstance(each, str):
            raise ObservationError(f"{which}: expected a text (str), got {type(each).__name__} {each!r:.80}")
        if fault := instruction_fault(each):
            raise ObservationError(f"{which}: {fault}; got {each!r:.80}")
    return found


def split_rows(observation: Any, count: int) -> list[dict[str, Any]]:
    """A batched observation, row by row; `ObservationError` unless every entry has `count` rows."""
    views, state = list(_images(observation)), observation.get("state")
    for name, column in [*((f"images: camera {number}", view) for number, view in enumerate(views)), ("state", state)]:
        if column is not None and (rows := _length(column)) != count:
            raise ObservationError(f"{name}: expected {count} rows, one for each instruction, got {rows}")
    return [
        {"images": [view if view is None else view[row] for view in views], "state": None if state is None else state[row]}
        for row in range(count)
    ]


def read_images(observation: Any, cameras: Sequence[str]) -> list[np.ndarray]:
    """The image u8 [h w 3] of each camera; `cameras` are their names, in order.

    Raises:
        ObservationError: not one image a camera, or one that is not u8, has another number of channels, or no pixels.
    """
    images = _images(observation)
    if len(images) != len(cameras):
        raise ObservationError(f"images: expected those of {len(cameras)} camera(s), {', '.join(cameras)}; got {len(images)}")
    found = []
    for number, (camera, given) in enumerate(zip(cameras, images, strict=True)):
        image = _array(f"images: camera {number} ({camera})", given)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ObservationError(f"images: camera {number} ({camera}): expected uint8 [h w 3] with pixels, got {_content(image)}")
        found.append(image)
    return found


def read_state(observation: Mapping[str, Any], size: int) -> np.ndarray:
    """The state f32 [size]; `ObservationError` if it is missing, has another size, or holds anything but finite numbers."""
    given = observation.get("state")
    if given is None:
        raise ObservationError(f"state: expected {size} numbers, got none")
    state = _array("state", given)
    if state.shape != (size,) or state.dtype.kind not in "fiu":
        raise ObservationError(f"state: expected {size} numbers, got {_content(state)}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        numbers = state.astype(np.float32)
    faulty = np.flatnonzero(~np.isfinite(numbers))
    if faulty.size:
        listed = ", ".join(f"{state[place]} at index {place}" for place in faulty[:5].tolist())
        raise ObservationError(f"state: expected {size} finite numbers, got {listed}")
    return numbers


def _images(observation: Any) -> Sequence[Any]:
    if not isinstance(observation, Mapping):
        raise ObservationError(f"observation: expected a mapping with the key `images`, got {type(observation).__name__}")
    images = observation.get("images", ())
    if isinstance(images, (str, bytes, Mapping)) or not isinstance(_length(images), int):
        raise ObservationError(f"images: expected a list with the image of each camera, got {type(images).__name__}")
    return images


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:  # a ragged list, an array on another device
        raise ObservationError(f"{name}: {type(value).__name__} is no array: {error}") from error


def _content(array: np.ndarray) -> str:
    """What an array holds, in words."""
    text = f"{array.dtype} {list(array.shape)}"
    if array.dtype.kind in "fiu" and array.size:
        return f"{text}, values {array.min():g} to {array.max():g}"
    return text if array.size else f"{text}, which is empty"


def _length(value: Any) -> int | str:
    try:
        return len(value)
    except TypeError:
        return f"{type(value).__name__} without rows"
