"""A simulated pick-and-place table: scenes, a scripted expert, and the end of each sub-step.

A gripper without an arm floats over a table. Everything is kinematic: an action moves the hand by `STEP` metres per
unit, a block that is held moves with it. Units are metres and radians; x points right, y away from the third-person
camera, z up.

The expert is irregular on purpose. Speeds, pauses, failed grasps, idle gripper moves, the lag of the fingers behind their
command and the pause after it are random, so that neither the clock nor the command reveals the end of a sub-step. The
scene reveals it: at every end, a last step of about two centimetres reaches an exact goal (or the fingers open), so the
step before it looks different.
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
APART = 0.125  # least distance between two props
PLATE_RADIUS, PLATE_HEIGHT = 0.062, 0.006
OPEN = 0.085  # distance between the open fingers
STEP, TURN = 0.03, 0.20  # metres and radians of one unit of action
LEAN = 0.3  # units of tilt per unit of sideways motion: the hand leans as it reaches out
CARRY = 0.08  # how far above its grasp height the hand lifts a block
SPEED = (0.004, 0.008)  # metres per step, drawn for each leg of the path
LAST_STEP = 0.02  # metres; the decisive last step of a leg is about as long
ARRIVED = 0.007  # metres


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


class Rollout(NamedTuple):
    """One demonstration of T steps; observations belong to the moment before the action of the same step."""

    scene: Scene
    hand: np.ndarray  # f32 [T 3]: point between the finger tips
    rotation: np.ndarray  # f32 [T 3]: axis-angle; the third entry is the yaw
    opening: np.ndarray  # f32 [T]: distance between the fingers
    block: np.ndarray  # f32 [T 4]: x, y, z of the bottom, yaw of the target block
    action: np.ndarray  # f32 [T 7]: translation, rotation, gripper (-1 open, +1 close)
    end: np.ndarray  # bool [T]: the goal of the running substep holds for the first time
    substep: np.ndarray  # i32 [T]: index of the running substep; the step of an end still belongs to it


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
    blocks, plates = rng.integers(1, 3, size=2)
    spots = rng.uniform(-REACH, REACH, size=(blocks + plates, 2))
    while any(np.linalg.norm(a - b) < APART for a, b in itertools.combinations(spots, 2)):
        spots = rng.uniform(-REACH, REACH, size=spots.shape)
    return Scene(
        blocks=[
            Block(
                colour=str(colour),
                shape=str(rng.choice(SHAPES)),
                xy=spot,
                yaw=rng.uniform(-0.4, 0.4),
                radius=rng.uniform(0.020, 0.023),
                height=rng.uniform(0.044, 0.054),
            )
            for colour, spot in zip(rng.permutation(BLOCK_COLOURS)[:blocks], spots[:blocks], strict=True)
        ],
        plates=[
            Plate(colour=str(colour), xy=spot) for colour, spot in zip(rng.permutation(PLATE_COLOURS)[:plates], spots[blocks:], strict=True)
        ],
        light=rng.uniform(0.92, 1.08),
    )


def _up(height: float) -> np.ndarray:
    return np.array([0.0, 0.0, height])


class _Expert:
    """The hand, the target block, and what has been recorded of them."""

    def __init__(self, rng: np.random.Generator, scene: Scene):
        self.rng, self.scene = rng, scene
        self.target = scene.blocks[0]
        self.hand = np.array([*rng.uniform(-REACH, REACH), rng.uniform(0.12, 0.20)])
        self.tilt, self.yaw, self.opening = np.zeros(2), rng.uniform(-0.3, 0.3), OPEN
        self.block = np.array([*self.target.xy, 0.0, self.target.yaw])
        self.command = self.fingers = -1.0  # what is commanded, and what the fingers follow after a lag
        self.rate, self.settled, self.held = OPEN, True, False
        self.records: list[tuple[np.ndarray, ...]] = []
        self.ends: list[int] = []

    @property
    def grasp(self) -> np.ndarray:
        """Position of the hand for closing around the target block."""
        return self.block[:3] + _up(0.5 * self.target.height)

    def step(self, delta: np.ndarray | None = None, turn: float = 0.0) -> None:
        """Records the present and acts on it: moves by `delta` metres (None: stays) and turns by `turn` radians."""
        noise = self.rng.normal(size=6)
        action = np.zeros(7, np.float32)
        action[:3] = noise[:3] * 0.01 if delta is None else delta / STEP + noise[:3] * 0.02
        action[3:5] = LEAN * np.array([-action[1], action[0]]) + noise[3:5] * 0.004
        action[5] = turn / TURN + noise[5] * 0.01
        action = np.clip(action, -1.0, 1.0)
        action[6] = self.command
        rotation = np.array([*self.tilt, self.yaw])
        self.records.append((self.hand.copy(), rotation, np.array(self.opening), self.block.copy(), action))
        self._advance(action)

    def _advance(self, action: np.ndarray) -> None:
        """Advances the world by one control step."""
        moved = STEP * action[:3]
        moved[2] = max(moved[2], 0.01 - self.hand[2])  # the table is hard
        self.hand = self.hand + moved
        self.tilt = self.tilt + TURN * action[3:5]
        self.yaw += TURN * float(action[5])
        if self.rng.random() < 0.5:
            self.fingers = self.command
        width = 2 * self.target.radius  # a block between the fingers stops them, whether or not the grasp succeeds
        around = self.held or np.linalg.norm(self.hand - self.grasp) < 0.5 * self.target.height
        goal = OPEN if self.fingers < 0 else width if around else 0.0
        self.opening += float(np.clip(goal - self.opening, -self.rate, self.rate))
        self.settled = self.fingers == self.command and abs(goal - self.opening) < 1e-6
        self.held = self.held and self.opening < width + 0.01
        if self.held:
            self.block = np.array([*self.hand[:2], self.hand[2] - 0.5 * self.target.height, self.yaw])

    def dwell(self, mean: float) -> None:
        """Stays for at least one step, `mean` on average, without memory: the time waited carries no information."""
        for _ in range(self.rng.geometric(1.0 / mean)):
            self.step()

    def go(self, goal: np.ndarray, yaw: float, pause: float = 0.01) -> None:
        """Moves to `goal` at an even pace with occasional pauses. The last step lands exactly on it."""
        speed = self.rng.uniform(*SPEED)
        while (distance := np.linalg.norm(goal - self.hand)) > ARRIVED or abs(yaw - self.yaw) > 0.05:
            if self.rng.random() < pause:
                self.dwell(3.0)
            steps_left = 1 + max(0, round((float(distance) - LAST_STEP) / speed))
            pace = 1.0 if steps_left == 1 else speed / float(distance)
            delta = pace * (goal - self.hand)
            self.step(delta, turn=float(np.clip(yaw - self.yaw, -0.6 * TURN, 0.6 * TURN)))

    def grip(self, command: float) -> None:
        """Commands the fingers (-1 open, +1 close) and waits until they have stopped."""
        self.command = command
        self.rate = self.rng.choice([0.5, 1.0]) * (OPEN - 2 * self.target.radius)
        self.step()
        while not self.settled:
            self.step()

    def done(self) -> None:
        """Marks the next observation as the first one in which the goal of the running sub-step holds."""
        self.ends.append(len(self.records))

    def blip(self) -> None:
        """Closes the empty fingers on the way, without purpose."""
        self.grip(1.0)
        self.dwell(2.0)
        self.grip(-1.0)

    def reach(self) -> None:
        above = self.grasp + _up(self.rng.uniform(0.07, 0.10))
        if self.rng.random() < 0.2:  # change of mind: a way point beside the straight line
            self.go(above + self.rng.uniform([-0.06, -0.06, 0.02], [0.06, 0.06, 0.04]), self.block[3])
        if self.rng.random() < 0.3:
            self.blip()
        self.go(above, self.block[3])
        self.go(self.grasp, self.block[3])
        self.done()

    def pick(self) -> None:
        low = self.grasp
        while self.rng.random() < 0.25:  # the fingers slip: the hand rises empty and tries again
            self.dwell(1.6)
            self.grip(1.0)
            self.go(low + _up(self.rng.uniform(0.04, 0.10)), self.yaw)
            self.dwell(1.6)
            self.grip(-1.0)
            self.go(low, self.block[3])
        self.dwell(1.6)
        self.grip(1.0)
        self.held = True
        self.dwell(1.6)
        self.go(low + _up(CARRY), self.yaw, pause=0.02)
        self.done()

    def carry(self) -> None:
        self.dwell(1.6)
        plate = self.scene.plates[0]
        self.go(np.array([*plate.xy, self.hand[2]]), 0.0)
        self.done()

    def place(self) -> None:
        self.dwell(1.6)
        plate = self.scene.plates[0]
        self.go(np.array([*plate.xy, PLATE_HEIGHT + 0.5 * self.target.height]), 0.0, pause=0.02)
        self.dwell(1.6)
        self.grip(-1.0)
        self.done()

    def leave(self) -> None:
        self.dwell(1.6)
        self.go(self.hand + _up(self.rng.uniform(0.05, 0.09)), 0.0)
        self.go(HOME, 0.0)
        self.done()
        self.step()


def simulate(rng: np.random.Generator) -> Rollout:
    """One demonstration in a random scene, of about 110 to 250 steps and exactly five substeps.

    The last step is the end of the last substep; every end is decided by the observation, not by the command.
    """
    expert = _Expert(rng, sample_scene(rng))
    for substep in (expert.reach, expert.pick, expert.carry, expert.place, expert.leave):
        substep()
    columns = zip(*expert.records, strict=True)
    hand, rotation, opening, block, action = (np.stack(column).astype(np.float32) for column in columns)
    end = np.zeros(len(hand), bool)
    end[expert.ends] = True
    substep_index = (np.cumsum(end) - end).astype(np.int32)
    return Rollout(expert.scene, hand, rotation, opening, block, action, end, substep_index)
