"""Images of simulated tables: painter's algorithm over projected polygons, drawn by Pillow at twice the size.

A row is a table at a moment: the steps of a recording, or many tables at once. What is drawn depends on the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from eosjax.demo.scene import OPEN, PLATE_HEIGHT, PLATE_RADIUS, Block, Scene

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
_NAMES = tuple(_RGB)
_BASE = np.array(list(_RGB.values()))  # [colours 3]


class Rows(NamedTuple):
    """T tables to draw."""

    scenes: Sequence[Scene]
    hand: np.ndarray  # f [T 3]
    yaw: np.ndarray  # f [T]
    opening: np.ndarray  # f [T]
    blocks: np.ndarray  # f [T b 4]: x, y, z of the bottom, yaw; what a scene does not have is not drawn


class _Face(NamedTuple):
    points: np.ndarray  # [T k 3], in the world
    colour: np.ndarray  # [T] or [1]: index of the colour
    visible: np.ndarray  # bool [T]
    light: float = 1.0
    one_sided: bool = False  # drawn only where it looks at the camera


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


def _ring(centre: np.ndarray, radius: np.ndarray | float, corners: int, yaw: np.ndarray | float) -> np.ndarray:
    """Corners [T k 3] of a horizontal regular polygon, counter-clockwise from above.

    `radius` is half the side of a square, and the distance of the corners of any other polygon.
    """
    angle = np.reshape(yaw, (-1, 1)) + 2 * np.pi * (np.arange(corners) + 0.5) / corners
    reach = np.reshape(radius, (-1, 1, 1)) * (np.sqrt(2.0) if corners == 4 else 1.0)
    flat = reach * np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=-1)
    return centre[:, None] + flat


def _box(centre: np.ndarray, half: tuple[float, float], yaw: np.ndarray) -> np.ndarray:
    """Corners [T 4 3] of a horizontal rectangle, counter-clockwise from above."""
    x, y = np.array([1, -1, -1, 1]) * half[0], np.array([1, 1, -1, -1]) * half[1]
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    return centre[:, None] + np.stack([cos * x - sin * y, sin * x + cos * y, np.zeros(cos.shape) + 0 * x], axis=-1)


def _prism(ring: np.ndarray, height: np.ndarray | float, colour: np.ndarray, visible: np.ndarray) -> list[_Face]:
    """The faces of an upright prism on `ring`, the top last."""
    low, high = ring, ring.copy()
    high[..., 2] += np.reshape(height, (-1, 1))
    faces = []
    corners = ring.shape[1]
    for i in range(corners):
        j = (i + 1) % corners
        face = np.stack([low[:, i], low[:, j], high[:, j], high[:, i]], axis=1)
        faces.append(_Face(face, colour, visible, 0.62 + 0.14 * np.cos(2 * np.pi * (i + 1) / corners), one_sided=True))
    return [*faces, _Face(high, colour, visible)]


def _lit(colour: Sequence[int], light: float) -> Colour:
    red, green, blue = (min(255 - _NOISE, int(channel * light)) for channel in colour)
    return red, green, blue


def _colour(name: str) -> np.ndarray:
    return np.array([_NAMES.index(name)])


def _shadow(ring: np.ndarray, visible: np.ndarray) -> _Face:
    """The shadow of `ring` on the table."""
    cast = ring * [1.0, 1.0, 0.0]
    cast[..., 0] += _SUN * ring[..., 2]
    return _Face(cast, _colour("shadow"), visible)


def _props(rows: Rows, shadows: Sequence[_Face] = ()) -> list[_Face]:
    """Plates, shadows, blocks. The target is drawn after the other block, unless that is above it."""
    steps = len(rows.hand)
    layers = []
    for number in range(max(len(scene.plates) for scene in rows.scenes)):
        there = np.array([len(scene.plates) > number for scene in rows.scenes])
        plates = [scene.plates[number if number < len(scene.plates) else 0] for scene in rows.scenes]
        centre = np.array([[*plate.xy, PLATE_HEIGHT] for plate in plates])
        colour = np.array([_NAMES.index(plate.colour) for plate in plates])
        layers.append(_Face(_ring(centre, PLATE_RADIUS, 16, 0.0), colour, there))
    count = max(len(scene.blocks) for scene in rows.scenes)
    kinds = [[scene.blocks[n] if n < len(scene.blocks) else None for scene in rows.scenes] for n in range(count)]
    layers += shadows
    for number in range(count):
        there = np.array([block is not None for block in kinds[number]])
        lifted = there & (rows.blocks[:, number, 2] > PLATE_HEIGHT + 1e-3) if number else there
        radius = np.array([0.03 if block is None else block.radius for block in kinds[number]])
        layers.append(_shadow(_ring(rows.blocks[:, number, :3], radius, 8, 0.0), lifted))
    above = rows.blocks[:, -1, 2] > rows.blocks[:, 0, 2] + 1e-3 if count > 1 else np.zeros(steps, bool)
    if above.any():
        layers += _block(rows, kinds[0], 0, above)
    for number in reversed(range(count)):
        layers += _block(rows, kinds[number], number, ~above if number == 0 else np.ones(steps, bool))
    return layers


def _block(rows: Rows, blocks: Sequence[Block | None], number: int, drawn: np.ndarray) -> list[_Face]:
    """The block with this number on each table, where it is to be drawn."""
    faces = []
    for shape, corners in (("cube", 4), ("cylinder", 10)):
        visible = drawn & np.array([block is not None and block.shape == shape for block in blocks])
        if visible.any():
            radius, height, colour = np.array(
                [(0.03, 0.06, 0) if each is None else (each.radius, each.height, _NAMES.index(each.colour)) for each in blocks]
            ).T
            pose = rows.blocks[:, number]
            faces += _prism(_ring(pose[:, :3], radius, corners, pose[:, 3]), height, colour.astype(int), visible)
    return faces


def _hand_outside(rows: Rows) -> tuple[list[_Face], list[_Face]]:
    """The shadows and the body of the gripper as the third-person camera sees them."""
    hand, yaw = rows.hand, rows.yaw
    always = np.ones(len(hand), bool)
    along = np.stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)], axis=-1)
    reach = 0.5 * rows.opening[:, None] + 0.007
    palm = _box(hand + np.array([0.0, 0.0, 0.05]), (0.5 * OPEN + 0.014, 0.016), yaw)
    fingers = [_box(hand + side * reach * along, (0.007, 0.012), yaw) for side in (-1.0, 1.0)]
    shadows = [_shadow(ring, always) for ring in (*fingers, palm)]
    sides = [face for finger in fingers for face in _prism(finger, 0.05, _colour("hand"), always)]
    return shadows, [*sides, *_prism(palm, 0.02, _colour("palm"), always)]


def _hand_inside(rows: Rows) -> list[_Face]:
    """The fingers as the wrist camera sees them, in its own frame: fixed but for their opening."""
    faces = []
    for side in (-1.0, 1.0):
        inner = 0.5 * rows.opening
        x = side * np.stack([inner, inner, inner + 0.01, inner + 0.01], axis=-1)
        y, z = np.array([-0.012, 0.012, 0.012, -0.012]), np.array([0.0, 0.0, 0.05, 0.05])
        corners = np.stack(np.broadcast_arrays(x, y, z), axis=-1)
        faces.append(_Face(corners, _colour("hand"), np.ones(len(rows.hand), bool)))
    return faces


def _drawn(faces: Sequence[_Face], camera: Camera, lights: np.ndarray) -> list[tuple[list, list, list]]:
    """The pixels, visibility and colour of each face on every table."""
    pixels = camera(np.concatenate([face.points for face in faces], axis=1))
    first, found = 0, []
    for face in faces:
        points = pixels[:, first : first + face.points.shape[1]]
        first += face.points.shape[1]
        visible = face.visible
        if face.one_sided:
            side, rise = points[:, 1] - points[:, 0], points[:, 2] - points[:, 1]
            visible = visible & (side[:, 0] * rise[:, 1] - side[:, 1] * rise[:, 0] < 0)  # pixel rows count downwards
        colour = np.minimum(255 - _NOISE, (_BASE[face.colour] * face.light).astype(int)) if face.light != 1.0 else _BASE[face.colour]
        lit = np.minimum(255 - _NOISE, (colour * lights[:, None]).astype(int))
        found.append((np.round(_SCALE * points).reshape(len(points), -1).tolist(), visible.tolist(), list(map(tuple, lit.tolist()))))
    return found


def _paint(layers: Sequence[tuple[list, list, list]], lights: np.ndarray) -> np.ndarray:
    """Draws the layers in order: u8 [T SIZE SIZE 3]."""
    frames = np.empty((len(lights), SIZE, SIZE, 3), np.uint8)
    for row, light in enumerate(lights.tolist()):
        picture = Image.new("RGB", (_SCALE * SIZE, _SCALE * SIZE), _lit(_RGB["table"], light))
        draw = ImageDraw.Draw(picture)
        for points, visible, colour in layers:
            if visible[row]:
                draw.polygon(points[row], fill=colour[row])
        frames[row] = np.asarray(picture.reduce(_SCALE))
    return frames


def draw(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Both camera views of every row, without noise: third-person and wrist, each u8 [T SIZE SIZE 3], RGB."""
    lights = np.array([scene.light for scene in rows.scenes])
    shadows, body = _hand_outside(rows)
    outside = _paint(_drawn(_props(rows, shadows) + body, _third_person, lights), lights)
    own = _wrist_camera(np.zeros_like(rows.hand), np.zeros_like(rows.yaw))
    inside = _drawn(_props(rows), _wrist_camera(rows.hand, rows.yaw), lights) + _drawn(_hand_inside(rows), own, lights)
    return outside, _paint(inside, lights)


def sensor_noise(rng: np.random.Generator, steps: int) -> np.ndarray:
    """u8 [T SIZE SIZE 1], to be added to a picture: none of those drawn is so bright that it would overflow."""
    return rng.integers(0, _NOISE + 1, size=(steps, SIZE, SIZE, 1), dtype=np.uint8)
