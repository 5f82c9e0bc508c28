"""Scenes on the simulated table: what lies where, and the sub-steps of the task.

Units are metres and radians; x points right, y away from the third-person camera, z up.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

BLOCK_COLOURS = ("red", "green", "blue")
PLATE_COLOURS = ("yellow", "white", "purple")
SHAPES = ("cube", "cylinder")
SUBSTEP_ACTIONS = ("move", "pick", "move", "place", "move")  # the coarse verb of each substep in the label file

HOME = np.array([0.0, 0.0, 0.20])  # where "move the gripper away" leads
REACH = np.array([0.14, 0.12])  # props lie within this distance of the table's middle, along x and along y
APART = 0.14  # least distance between two props
SPARE = 0.1  # share of the scenes with a second block, and with a second plate
PLATE_RADIUS, PLATE_HEIGHT = 0.07, 0.006
OPEN = 0.105  # distance between the open fingers
STEP, TURN = 0.04, 0.20  # metres and radians of one unit of action
LEAN = 2.0  # radians of tilt per metre from the middle: the hand leans as it reaches out
CARRY = 0.08  # how far above its grasp height the hand lifts a block


class Block(NamedTuple):
    """A graspable prop; `radius` is half its width."""

    colour: str
    shape: str
    xy: np.ndarray
    yaw: float
    radius: float
    height: float


class Plate(NamedTuple):
    """A place to put a block."""

    colour: str
    xy: np.ndarray


class Scene(NamedTuple):
    """What lies on the table at the start; the first block and the first plate are the ones the instruction names."""

    blocks: list[Block]
    plates: list[Plate]
    light: float  # brightness of the whole picture, about 1


def instruction(scene: Scene) -> str:
    """The task of a whole episode."""
    block, plate = scene.blocks[0], scene.plates[0]
    return f"put the {block.colour} {block.shape} on the {plate.colour} plate"


def substep_instructions(scene: Scene) -> list[str]:
    """The instructions of the five substeps, in order."""
    block = f"the {scene.blocks[0].colour} {scene.blocks[0].shape}"
    plate = f"the {scene.plates[0].colour} plate"
    return [
        f"reach for {block}",
        f"grasp {block} and lift it",
        f"move {block} above {plate}",
        f"place {block} on {plate}",
        "move the gripper away",
    ]


def sample_scene(rng: np.random.Generator) -> Scene:
    """One or two blocks and one or two plates of different colours, none touching another."""
    blocks, plates = 1 + (rng.random(2) < SPARE)
    spots = rng.uniform(-REACH, REACH, size=(blocks + plates, 2))
    while any(np.linalg.norm(a - b) < APART for a, b in itertools.combinations(spots, 2)):
        spots = rng.uniform(-REACH, REACH, size=spots.shape)
    return Scene(
        blocks=[
            Block(
                colour=str(colour),
                shape=str(rng.choice(SHAPES)),
                xy=spot,
                yaw=rng.uniform(-0.25, 0.25),
                radius=rng.uniform(0.029, 0.032),
                height=rng.uniform(0.056, 0.066),
            )
            for colour, spot in zip(rng.permutation(BLOCK_COLOURS)[:blocks], spots[:blocks], strict=True)
        ],
        plates=[
            Plate(colour=str(colour), xy=spot) for colour, spot in zip(rng.permutation(PLATE_COLOURS)[:plates], spots[blocks:], strict=True)
        ],
        light=rng.uniform(0.92, 1.08),
    )
