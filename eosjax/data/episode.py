"""An episode as every source of training data gives it, and the checks that they share."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from eosjax.data.images.headers import read_header
from eosjax.types import UserError


class DatasetError(UserError):
    """A dataset that is missing, has another layout than its description, or holds values that cannot be trained on."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode of T steps; T may be 0. It is identified by its position in the dataset: `file_path` names the task, not the episode.

    `images` may be iterators that read as they go, so that a long episode is never in memory as a whole. They are then read once, all
    cameras in step, and before the next episode is asked for.
    """

    index: int
    images: tuple[Iterable[bytes], ...]  # per camera of the spec: T encoded images
    actions: np.ndarray  # f32 [T a], gripper 1 = open
    proprio: np.ndarray  # f32 [T p]
    task: str  # the task instruction; "" where the steps have it and there are none
    file_path: str

    def __len__(self) -> int:
        return len(self.actions)


def matrix(rows: Sequence[np.ndarray] | np.ndarray, field: str, size: int, where: str) -> np.ndarray:
    """The rows as f32 [T size]; `DatasetError` for another size, NaN or infinity."""
    for step, row in enumerate(rows):
        if np.shape(row) != (size,):
            raise DatasetError(f"{where}: {field}: expected shape [{size}] in each step, got {list(np.shape(row))} in step {step}")
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinity
        values = np.array(rows, np.float32).reshape(-1, size)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise DatasetError(
            f"{where}, step {bad[0]}: {field} has NaN or infinity: {values[bad[0]].tolist()} ({bad.size} such steps in the episode)"
        )
    return values


def check_image(data: bytes, step: int, where: str) -> None:
    """Finds bytes that are no JPEG or PNG, are truncated or are not 8-bit RGB; `where` names the camera.

    Decoding would cost more than all other work of a build. So only the first image of an episode is decoded. Of the others, the
    headers are read; the loader reports an image that is damaged in between.
    """
    header = read_header(data)
    if header is None:
        raise DatasetError(f"{where}, step {step}: {len(data)} bytes that are no whole JPEG or PNG image")
    if not header.is_rgb:
        raise DatasetError(f"{where}, step {step}: expected an 8-bit RGB image, got {header}")
    if step:
        return
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{where}, step 0: does not decode as JPEG or PNG: {error}") from error
