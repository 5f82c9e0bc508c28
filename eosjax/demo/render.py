"""Images of the simulated table: painter's algorithm over projected polygons, drawn by Pillow at twice the size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from eosjax.demo.simulator import OPEN, PLATE_HEIGHT, PLATE_RADIUS, Rollout

SIZE = 64  # pixels, height and width
_SCALE = 2  # drawn larger and averaged down, for smooth edges

_RGB = {
    "red": (225, 35, 35),
    "green": (30, 170, 50),
    "blue": (35, 70, 225),
    "yellow": (245, 210, 40),
    "white": (245, 245, 245),
    "purple": (150, 60, 190),
    "table": (168, 152, 132),
    "shadow": (112, 100, 86),
    "hand": (38, 38, 44),
    "palm": (70, 200, 210),
}
_NOISE = 5  # largest sensor noise, in grey levels
_SUN = 0.3  # length of a shadow to the right, in metres per metre of height
_EYE, _LOOK_AT = np.array([0.0, -0.62, 0.54]), np.array([0.0, 0.0, 0.06])
_WRIST_HEIGHT = 0.12  # of the wrist camera above the finger tips

Colour = tuple[int, int, int]
Camera = Callable[[np.ndarray], np.ndarray]  # world points [T k 3] -> pixels [T k 2]


class _Polygon(NamedTuple):
    points: np.ndarray  # [T k 2] pixels
    visible: np.ndarray  # bool [T]
    colour: Colour


def _third_person(points: np.ndarray) -> np.ndarray:
    forward = (_LOOK_AT - _EYE) / np.linalg.norm(_LOOK_AT - _EYE)
    up = np.cross([1.0, 0.0, 0.0], forward)
    offset = points - _EYE
    across = np.stack([offset[..., 0], -offset @ up], axis=-1)
    return SIZE * (np.array([0.5, 0.54]) + 1.9 * across / (offset @ forward)[..., None])


def _wrist_camera(hand: np.ndarray, yaw: np.ndarray) -> Camera:
    """Looks straight down between the fingers, and turns with them."""
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]

    def project(points: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(points - hand[:, None], -1, 0)
        depth = np.maximum(_WRIST_HEIGHT - z, 0.015)
        across = np.stack([cos * x + sin * y, sin * x - cos * y], axis=-1)
        return SIZE * (0.5 + 0.62 * across / depth[..., None])

    return project


def _ring(centre: np.ndarray, radius: float, corners: int, yaw: np.ndarray | float) -> np.ndarray:
    """Corners [T k 3] of a horizontal regular polygon, counter-clockwise from above.

    `radius` is half the side of a square, and the distance of the corners of any other polygon.
    """
    angle = np.reshape(yaw, (-1, 1)) + 2 * np.pi * (np.arange(corners) + 0.5) / corners
    reach = radius * (np.sqrt(2.0) if corners == 4 else 1.0)
    flat = reach * np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=-1)
    return centre[:, None] + flat


def _box(centre: np.ndarray, half: tuple[float, float], yaw: np.ndarray) -> np.ndarray:
    """Corners [T 4 3] of a horizontal rectangle, counter-clockwise from above."""
    x, y = np.array([1, -1, -1, 1]) * half[0], np.array([1, 1, -1, -1]) * half[1]
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    return centre[:, None] + np.stack([cos * x - sin * y, sin * x + cos * y, np.zeros(cos.shape) + 0 * x], axis=-1)


def _flat(camera: Camera, ring: np.ndarray, colour: str) -> _Polygon:
    return _Polygon(camera(ring), np.ones(len(ring), bool), _RGB[colour])


def _prism(camera: Camera, ring: np.ndarray, height: float, colour: str) -> list[_Polygon]:
    """The faces of an upright prism on `ring` that look at the camera, the top last."""
    low, high = camera(ring), camera(ring + np.array([0.0, 0.0, height]))
    faces = []
    corners = ring.shape[1]
    for i in range(corners):
        j = (i + 1) % corners
        face = np.stack([low[:, i], low[:, j], high[:, j], high[:, i]], axis=1)
        side, rise = face[:, 1] - face[:, 0], face[:, 3] - face[:, 0]
        outward = side[:, 0] * rise[:, 1] - side[:, 1] * rise[:, 0] < 0  # pixel rows count downwards
        shade = 0.62 + 0.14 * np.cos(2 * np.pi * (i + 1) / corners)
        faces.append(_Polygon(face, outward, _lit(_RGB[colour], shade)))
    return [*faces, _Polygon(high, np.ones(len(ring), bool), _RGB[colour])]


def _lit(colour: Colour, light: float) -> Colour:
    red, green, blue = (min(255 - _NOISE, int(channel * light)) for channel in colour)
    return red, green, blue


def _shadow(camera: Camera, ring: np.ndarray) -> _Polygon:
    """The shadow of `ring` on the table."""
    cast = ring * [1.0, 1.0, 0.0]
    cast[..., 0] += _SUN * ring[..., 2]
    return _flat(camera, cast, "shadow")


def _props(camera: Camera, rollout: Rollout, shadows: Sequence[_Polygon] = ()) -> list[_Polygon]:
    """Plates, shadows, blocks. The target is drawn last, because it may stand on a plate and pass over the others."""
    steps = len(rollout.hand)
    layers = []
    for plate in rollout.scene.plates:
        centre = np.tile([*plate.xy, PLATE_HEIGHT], (steps, 1))
        layers.append(_flat(camera, _ring(centre, PLATE_RADIUS, 16, 0.0), plate.colour))
    target = rollout.scene.blocks[0]
    layers += [*shadows, _shadow(camera, _ring(rollout.block[:, :3], target.radius, 8, 0.0))]
    for number, block in reversed(list(enumerate(rollout.scene.blocks))):
        pose = rollout.block if number == 0 else np.tile([*block.xy, 0.0, block.yaw], (steps, 1))
        corners = 4 if block.shape == "cube" else 10
        layers += _prism(camera, _ring(pose[:, :3], block.radius, corners, pose[:, 3]), block.height, block.colour)
    return layers


def _hand_outside(rollout: Rollout) -> tuple[list[_Polygon], list[_Polygon]]:
    """The shadows and the body of the gripper as the third-person camera sees them."""
    hand, yaw = rollout.hand, rollout.rotation[:, 2]
    along = np.stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)], axis=-1)
    reach = 0.5 * rollout.opening[:, None] + 0.007
    palm = _box(hand + np.array([0.0, 0.0, 0.05]), (0.5 * OPEN + 0.014, 0.016), yaw)
    fingers = [_box(hand + side * reach * along, (0.007, 0.012), yaw) for side in (-1.0, 1.0)]
    shadows = [_shadow(_third_person, ring) for ring in (*fingers, palm)]
    sides = [polygon for finger in fingers for polygon in _prism(_third_person, finger, 0.05, "hand")]
    return shadows, [*sides, *_prism(_third_person, palm, 0.02, "palm")]


def _hand_inside(rollout: Rollout) -> list[_Polygon]:
    """The fingers as the wrist camera sees them: fixed but for their opening."""
    steps = len(rollout.hand)
    camera = _wrist_camera(np.zeros((steps, 3)), np.zeros(steps))
    polygons = []
    for side in (-1.0, 1.0):
        inner = 0.5 * rollout.opening
        x = side * np.stack([inner, inner, inner + 0.01, inner + 0.01], axis=-1)
        y, z = np.array([-0.012, 0.012, 0.012, -0.012]), np.array([0.0, 0.0, 0.05, 0.05])
        corners = np.stack(np.broadcast_arrays(x, y, z), axis=-1)
        polygons.append(_flat(camera, corners, "hand"))
    return polygons


def _paint(layers: list[_Polygon], light: float, rng: np.random.Generator) -> np.ndarray:
    """Draws the layers in order, lit by `light` and with a little sensor noise: u8 [T SIZE SIZE 3]."""
    steps = len(layers[0].visible)
    drawn = [(np.round(_SCALE * layer.points).reshape(steps, -1).tolist(), layer.visible, _lit(layer.colour, light)) for layer in layers]
    frames = np.empty((steps, SIZE, SIZE, 3), np.uint8)
    for step in range(steps):
        picture = Image.new("RGB", (_SCALE * SIZE, _SCALE * SIZE), _lit(_RGB["table"], light))
        draw = ImageDraw.Draw(picture)
        for points, visible, colour in drawn:
            if visible[step]:
                draw.polygon(points[step], fill=colour)
        frames[step] = np.asarray(picture.reduce(_SCALE))
    return frames + rng.integers(0, _NOISE + 1, size=(steps, SIZE, SIZE, 1), dtype=np.uint8)


def render(rollout: Rollout, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Both camera views of every step: third-person and wrist, each u8 [T SIZE SIZE 3], RGB."""
    light = rollout.scene.light
    wrist = _wrist_camera(rollout.hand, rollout.rotation[:, 2])
    shadows, body = _hand_outside(rollout)
    outside = _paint(_props(_third_person, rollout, shadows) + body, light, rng)
    inside = _paint(_props(wrist, rollout) + _hand_inside(rollout), light, rng)
    return outside, inside
