"""Made-up episodes for benchmarks/loader.py: scenes that compress like camera images, with a window that moves over them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE, STEPS = 256, 100  # pixels, steps of an episode
TASK = "put the bowl on the plate"
_SCENE = 320  # pixels, larger than an image so that a window can move


class Episode(NamedTuple):
    """One episode of `STEPS` steps."""

    views: tuple[np.ndarray, ...]  # per camera u8 [steps h w 3]
    states: np.ndarray  # f32 [steps 8]
    actions: np.ndarray  # f32 [steps 7]


def episodes(frames: int) -> Iterator[Episode]:
    """Episodes with together at least `frames` steps, always the same ones."""
    rng = np.random.default_rng(0)
    for _ in range(-(-frames // STEPS)):
        views = tuple(_moving(_scene(rng)) for _ in range(2))
        states, actions = rng.normal(size=(STEPS, 8)), rng.uniform(-1, 1, (STEPS, 7))
        yield Episode(views, states.astype(np.float32), actions.astype(np.float32))


def _moving(scene: np.ndarray) -> np.ndarray:
    shifts = [step * (_SCENE - SIZE) // STEPS for step in range(STEPS)]
    return np.stack([scene[shift : shift + SIZE, shift : shift + SIZE] for shift in shifts])


def _scene(rng: np.random.Generator) -> np.ndarray:
    """u8 [320 320 3]: soft shades with boxes and some grain."""
    small = rng.integers(40, 215, (6, 6, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(small).resize((_SCENE, _SCENE), Image.Resampling.BICUBIC)).astype(np.float32)
    for _ in range(12):
        y, x, h, w = (int(value) for value in rng.integers([0, 0, 10, 10], [300, 300, 90, 90]))
        scene[y : y + h, x : x + w] = rng.uniform(0, 255, 3)
    return np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)
