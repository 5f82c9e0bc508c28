"""What the scripted expert and the predicates see of a LIBERO task: places, grasps, and whether the goal of each sub-step holds.

Metres, world frame, z up. The frame of the hand has the fingers along y and points along z.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RIMS = {"akita_black_bowl": (0.049, 0.040)}  # radius of the rim, and height of the grasp above the origin of the body
OPEN = 0.06  # gap between the fingers from which on they count as open; they open to 0.08
LIFT = 0.04  # that a thing is lifted
ABOVE = 0.04  # that a thing is above the place where it is to be put
AWAY = 0.08  # that the hand is above the place where it let go
_NEAR = 0.012  # from the grasp
_OVER = 0.015  # from the middle of the target
_ALONG = 0.02  # from the middle of a box, along the fingers' sides
_ALIGNED = 0.9  # cosine
_DEEP, _FLAT = 0.06, 0.02  # height above the target at which a thing is let go


class Scene(NamedTuple):
    """A task at its start."""

    kind: str  # of the thing to be placed
    low: np.ndarray  # f64 [3], corners of its collision geometry in its own frame
    high: np.ndarray
    start: np.ndarray  # f64 [3], where it is
    bottom: float  # its lowest point above the origin of its body (negative below)
    target: np.ndarray  # f64 [3]
    deep: bool  # the target is a vessel
    obstacles: np.ndarray  # f64 [n 2 3], corners of everything else that can be hit


class View(NamedTuple):
    """A task at a moment."""

    hand: np.ndarray  # f64 [3]
    turn: np.ndarray  # f64 [3 3], its frame
    gap: float  # between the fingers
    thing: np.ndarray  # f64 [3]
    axes: np.ndarray  # f64 [3 3], its frame
    target: np.ndarray  # f64 [3]
    held: bool  # both fingers touch the thing
    touched: bool  # one does
    success: bool  # as LIBERO checks it


class Grasp(NamedTuple):
    """A pose of the hand, pointing down, in which the fingers close round a thing."""

    yaw: float  # radians; 0: fingers along y
    offset: np.ndarray  # f64 [3], from the origin of the thing


def grasps(scene: Scene, axes: np.ndarray) -> list[Grasp]:
    """The grasps of the thing with these axes, the preferred ones first: four of a rim, or one across the thinner side of a box."""
    if scene.kind in RIMS:
        radius, height = RIMS[scene.kind]
        quarter = np.pi / 2
        sides = ((0.0, (0, radius)), (0.0, (0, -radius)), (quarter, (-radius, 0)), (-quarter, (radius, 0)))
        return [Grasp(yaw, np.array([*side, height])) for yaw, side in sides]
    corners = _corners(scene) @ axes.T
    height = max(corners[:, 2].min() + 0.012, corners[:, 2].max() - 0.03)
    across = _thin_side(scene, axes)
    middle = axes @ ((scene.low + scene.high) / 2)
    return [Grasp(_half_turn(np.arctan2(across[1], across[0]) - np.pi / 2), np.array([*middle[:2], height]))]


def blocked(scene: Scene, hand: np.ndarray, yaw: float) -> float:
    """How far the open hand at this place would cut into the scene: metres, summed over what it meets."""
    cos, sin = abs(np.cos(yaw)), abs(np.sin(yaw))
    width, depth = cos * 0.04 + sin * 0.12, cos * 0.12 + sin * 0.04
    low, high = hand + np.array([-width, -depth, 0.02]), hand + np.array([width, depth, 0.25])
    overlap = (np.minimum(high, scene.obstacles[:, 1]) - np.maximum(low, scene.obstacles[:, 0])).min(axis=1)
    return float(overlap[overlap > 0].sum())


def release(scene: Scene, target: np.ndarray) -> np.ndarray:
    """f64 [3]: where the origin of the thing is when it is let go."""
    return target + up((_DEEP if scene.deep else _FLAT) - scene.bottom)


def goals(scene: Scene, view: View) -> np.ndarray:
    """bool [5]: whether the goal of each sub-step holds."""
    place = release(scene, view.target)
    over = bool(np.hypot(*(view.thing - place)[:2]) < _OVER and view.thing[2] > place[2] + ABOVE)
    away = view.hand[2] > view.thing[2] + grasps(scene, view.axes)[0].offset[2] + AWAY
    return np.array(
        [
            view.gap > OPEN and _at_grasp(scene, view),
            view.held and view.thing[2] > scene.start[2] + LIFT,
            view.held and over,
            view.success and view.gap > OPEN and not view.touched,
            view.success and away and not view.touched,
        ]
    )


def up(height: float) -> np.ndarray:
    """f64 [3]: straight up."""
    return np.array([0.0, 0.0, height])


def down(yaw: float) -> np.ndarray:
    """f64 [3 3]: the frame of a hand that points down."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, sin, 0], [sin, -cos, 0], [0, 0, -1.0]])


def rotation(matrix: np.ndarray) -> np.ndarray:
    """f64 [3]: axis times angle of a rotation matrix."""
    angle = np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1))
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    length = np.linalg.norm(axis)
    return np.zeros(3) if length < 1e-9 else axis / length * angle


def _at_grasp(scene: Scene, view: View) -> bool:
    """The hand is where the fingers close round the thing, whichever grasp it is."""
    fingers = view.turn[:2, 1]
    delta = view.hand - view.thing
    if scene.kind in RIMS:
        radius, height = RIMS[scene.kind]
        distance = float(np.hypot(*delta[:2]))
        aligned = abs(fingers @ delta[:2]) > _ALIGNED * distance
        return bool(aligned and abs(distance - radius) < _NEAR and abs(delta[2] - height) < _NEAR)
    delta = delta - grasps(scene, view.axes)[0].offset
    across = _thin_side(scene, view.axes)[:2]
    across = across / np.hypot(*across)
    sideways = abs(delta[0] * across[1] - delta[1] * across[0])
    aligned = abs(fingers @ across) > _ALIGNED
    return bool(aligned and abs(delta[:2] @ across) < _NEAR and sideways < _ALONG and abs(delta[2]) < _NEAR)


def _corners(scene: Scene) -> np.ndarray:
    choice = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(-1, 3)
    return np.where(choice == 0, scene.low, scene.high)


def _thin_side(scene: Scene, axes: np.ndarray) -> np.ndarray:
    """f64 [3]: the direction of the thinner horizontal side."""
    half = (scene.high - scene.low) / 2
    level = [axis for axis in range(3) if abs(axes[2, axis]) < 0.7]
    return axes[:, min(level, key=lambda axis: half[axis])]


def _half_turn(yaw: float) -> float:
    """The same direction of the fingers, from -90 to 90 degrees."""
    return (yaw + np.pi / 2) % np.pi - np.pi / 2
