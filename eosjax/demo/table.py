"""The dynamics of the simulated table: what an action does to the hand and to the blocks, for many tables at once.

A gripper without an arm floats over the table. A block is held only if the fingers close round it: between them, at its height, and turned
as it is. What is let go falls on what is below; fingers and what they hold push aside the blocks that they run into. Everything random
(how long the fingers lag behind their command, how fast they close, which grasps slip) is drawn when a table is set up, so that the same
actions from the same start give the same states, bit for bit, whatever other tables step beside. Units are metres and radians; the names
of the arrays' axes: n tables, b blocks, p plates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eosjax.demo.scene import HOME, LEAN, OPEN, PLATE_HEIGHT, PLATE_RADIUS, REACH, STEP, TURN, Scene, sample_scene

BLOCKS, PLATES = 2, 2  # room for so many; absent ones lie far off the table
AT_BLOCK = 0.02  # metres from where the hand would close round the block: it counts as reached
NEAR = 0.03  # metres: any other place counts as reached from here
LIFTED = 0.03  # metres: a block that is held and higher counts as lifted
ALIGNED = 0.35  # radians between the fingers and the sides of a cube, from which they cannot hold it
ACROSS = 0.018  # metres that a block may be off the line between the fingers
RATES = (0.5, 1.0)  # shares of `_STROKE` that the fingers move in a step
_STROKE = 0.047  # metres between open fingers and fingers round the narrowest block
_FINGER = 0.007  # half the thickness of a finger
_FALL = 0.04  # metres that a loose block falls in a step
_LOW = 0.01  # least height of the finger tips above the table
_BOUNDS = np.array([0.35, 0.35, 0.40])  # where the hand can go
_DRAWS = 64  # changes of the gripper command before the luck of a table repeats itself
_KNOCKS = 400  # steps in which something may knock the hand away
_FORCE = np.array([0.05, 0.05, 0.03])  # metres, the hardest of these along each axis
_AWAY = 9.0  # metres, where absent blocks and plates lie


class Luck(NamedTuple):
    """How likely it is that something goes wrong, for the tables that are set up."""

    slip: float = 0.15  # share of grasps that do not hold
    lose: float = 0.0  # share of grasps that hold only for a while
    knock: float = 0.0  # share of the steps in which something knocks the hand away


class Fixed(NamedTuple):
    """What stays as it is on n tables."""

    scenes: tuple[Scene, ...]
    radius: np.ndarray  # f64 [n b]: half the width of a block
    height: np.ndarray  # f64 [n b]
    cube: np.ndarray  # bool [n b]
    plates: np.ndarray  # f64 [n p 2]
    lag: np.ndarray  # i64 [n 64]: steps that the fingers lag behind each change of the command
    rate: np.ndarray  # f64 [n 64]: metres a step
    life: np.ndarray  # f64 [n 64]: steps that a grasp holds, infinite if for good
    knocks: np.ndarray  # f64 [n 400 3]: metres that the hand is knocked away in each step; afterwards never

    def rows(self, rows: np.ndarray) -> Fixed:
        """Of some of the tables."""
        arrays = (column[rows] for column in self[1:])
        return Fixed(tuple(self.scenes[row] for row in rows), *arrays)


class State(NamedTuple):
    """What changes; every array has a row a table."""

    steps: np.ndarray  # i64 [n]: since the start
    hand: np.ndarray  # f64 [n 3]: the point between the finger tips
    rotation: np.ndarray  # f64 [n 3]: axis-angle; the third entry is the yaw
    opening: np.ndarray  # f64 [n]: distance between the fingers
    blocks: np.ndarray  # f64 [n b 4]: x, y, z of the bottom, yaw
    command: np.ndarray  # f64 [n]: -1 open, +1 close
    fingers: np.ndarray  # f64 [n]: the command that they follow, after a lag
    waiting: np.ndarray  # i64 [n]: steps until they do
    changes: np.ndarray  # i64 [n]: of the command
    held: np.ndarray  # i64 [n]: number of the block in the hand, -1 for none
    grip: np.ndarray  # f64 [n 4]: pose of that block in the frame of the hand
    grasped: np.ndarray  # i64 [n]: step at which it was taken
    taken: np.ndarray  # i64 [n]: `changes` at that step; a grasp that is lost is not found again without opening the fingers

    def rows(self, rows: np.ndarray) -> State:
        """Of some of the tables."""
        return State(*(column[rows] for column in self))


def set_up(seeds: Sequence[int | Sequence[int]], luck: Luck) -> tuple[Fixed, State]:
    """Tables at their start, one for each seed; a row depends on its own seed alone.

    Args:
      seeds: of `numpy.random.default_rng`.
      luck: what may go wrong.
    """
    drawn = [_set_up_one(np.random.default_rng(seed), luck) for seed in seeds]
    scenes, *arrays = zip(*drawn, strict=True)
    radius, height, cube, plates, lag, rate, life, knocks, hand, yaw, blocks = (np.stack(column) for column in arrays)
    n = len(scenes)
    state = State(
        steps=np.zeros(n, np.int64),
        hand=hand,
        rotation=np.concatenate([lean(hand), yaw[:, None]], axis=1),
        opening=np.full(n, OPEN),
        blocks=blocks,
        command=-np.ones(n),
        fingers=-np.ones(n),
        waiting=np.zeros(n, np.int64),
        changes=np.zeros(n, np.int64),
        held=np.full(n, -1),
        grip=np.zeros((n, 4)),
        grasped=np.zeros(n, np.int64),
        taken=np.zeros(n, np.int64),
    )
    return Fixed(scenes, radius, height, cube, plates, lag, rate, life, knocks), state


def lean(hand: np.ndarray) -> np.ndarray:
    """The tilt f64 [... 2] with which the hand reaches a place [... 3]. It tells nothing of the way there: a tilt that summed up the motion
    would show a policy the direction of the demonstrator, which it would then follow instead of the block.
    """
    return LEAN * np.stack([-hand[..., 1], hand[..., 0]], axis=-1)


def _set_up_one(rng: np.random.Generator, luck: Luck) -> tuple:
    scene = sample_scene(rng)
    blocks = np.array([[_AWAY + i, _AWAY, 0.0, 0.0] for i in range(BLOCKS)])
    radius, height, cube = np.full(BLOCKS, 0.03), np.full(BLOCKS, 0.06), np.ones(BLOCKS, bool)
    for i, block in enumerate(scene.blocks):
        blocks[i] = [*block.xy, 0.0, block.yaw]
        radius[i], height[i], cube[i] = block.radius, block.height, block.shape == "cube"
    plates = np.full((PLATES, 2), -_AWAY)
    plates[: len(scene.plates)] = [plate.xy for plate in scene.plates]
    lag = np.minimum(rng.geometric(0.45, _DRAWS) - 1, 4)
    rate = rng.choice(RATES, _DRAWS) * _STROKE
    fate = rng.random(_DRAWS)
    life = np.where(fate < luck.slip, 0.0, np.where(fate < luck.slip + luck.lose, rng.integers(6, 30, _DRAWS), np.inf))
    hand = np.array([*rng.uniform(-REACH, REACH), rng.uniform(0.12, 0.20)])
    yaw = rng.uniform(-0.2, 0.2)
    knocks = np.where(rng.random((_KNOCKS, 1)) < luck.knock, rng.uniform(-_FORCE, _FORCE, (_KNOCKS, 3)), 0.0)
    return scene, radius, height, cube, plates, lag, rate, life, knocks, hand, yaw, blocks


def advance(fixed: Fixed, state: State, action: np.ndarray) -> State:
    """The tables one control step later.

    Args:
      fixed, state: n tables.
      action: f [n 7]: translation in units of `STEP`, rotation in units of `TURN` (both clipped to one unit), gripper (above 0 closes).
    """
    table = np.arange(len(state.steps))
    motion = np.clip(np.asarray(action, np.float64)[:, :6], -1.0, 1.0)
    command = np.where(np.asarray(action)[:, 6] > 0, 1.0, -1.0)
    changed = command != state.command
    changes = state.changes + changed
    draw = changes % _DRAWS
    waiting = np.where(changed, fixed.lag[table, draw], np.maximum(state.waiting - 1, 0))
    fingers = np.where(waiting == 0, command, state.fingers)

    knock = fixed.knocks[table, np.minimum(state.steps, _KNOCKS - 1)]
    hand = _moved_hand(fixed, state, STEP * motion[:, :3] + knock)
    rotation = np.clip(state.rotation + TURN * motion[:, 3:], -1.5, 1.5)
    blocks = _carried(state, hand, rotation)
    loose = np.arange(BLOCKS) != state.held[:, None]

    along, across = _in_hand_frame(hand, rotation, blocks)
    low_enough = np.abs(blocks[..., 2] + 0.5 * fixed.height - hand[:, None, 2]) < 0.5 * fixed.height - 0.004
    around = (np.abs(along) <= 0.5 * state.opening[:, None]) & (np.abs(across) < ACROSS) & low_enough
    between = np.where(around.any(axis=1), np.argmax(around, axis=1), -1)
    stop = np.where(between < 0, 0.0, 2 * fixed.radius[table, between])
    rate = fixed.rate[table, draw]
    opening = state.opening + np.clip(np.where(fingers < 0, OPEN, stop) - state.opening, -rate, rate)

    closed = (fingers > 0) & (between >= 0) & (np.abs(opening - stop) < 1e-6)
    turned = np.abs((blocks[table, between, 3] - rotation[:, 2] + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    fits = (turned < ALIGNED) | ~fixed.cube[table, between]
    takes = (state.held < 0) & (state.taken != changes) & closed & fits & (fixed.life[table, draw] > 0)
    width = 2 * fixed.radius[table, state.held]
    outlived = state.steps - state.grasped >= fixed.life[table, draw]
    keeps = (state.held >= 0) & (opening < width + 0.01) & ~outlived
    held = np.where(keeps, state.held, np.where(takes, between, -1))

    squeezed = (fingers > 0)[:, None] & loose & around
    blocks = _centred(blocks, rotation, along, 0.5 * opening[:, None] - fixed.radius, squeezed)
    blocks = _pushed(fixed, hand, rotation, opening, blocks, held, loose & ~around)
    blocks = _fallen(fixed, blocks, np.arange(BLOCKS) != held[:, None])
    grip = np.where(takes[:, None], _grip(hand, rotation, blocks[table, between]), state.grip)
    grasped, taken = np.where(takes, state.steps, state.grasped), np.where(takes, changes, state.taken)
    return State(state.steps + 1, hand, rotation, opening, blocks, command, fingers, waiting, changes, held, grip, grasped, taken)


def _moved_hand(fixed: Fixed, state: State, motion: np.ndarray) -> np.ndarray:
    """The hand after a motion; neither the fingers nor what they hold go through table or plate."""
    hand = np.clip(state.hand + motion, -_BOUNDS, _BOUNDS)
    lowest = np.full(len(hand), _LOW)
    holds = state.held >= 0
    blocks = _carried(state, hand, state.rotation)
    below = _support(fixed, blocks)[np.arange(len(hand)), state.held]
    lowest = np.where(holds, np.maximum(lowest, below - state.grip[:, 2]), lowest)
    hand[:, 2] = np.maximum(hand[:, 2], lowest)
    return hand


def _carried(state: State, hand: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """f64 [n b 4]: the blocks, the held one moved with the hand."""
    cos, sin = np.cos(rotation[:, 2]), np.sin(rotation[:, 2])
    x, y, z, yaw = state.grip.T
    pose = np.stack([hand[:, 0] + cos * x - sin * y, hand[:, 1] + sin * x + cos * y, hand[:, 2] + z, rotation[:, 2] + yaw], axis=1)
    held = np.arange(BLOCKS) == state.held[:, None]
    return np.where(held[..., None], pose[:, None], state.blocks)


def _grip(hand: np.ndarray, rotation: np.ndarray, block: np.ndarray) -> np.ndarray:
    """f64 [n 4]: the pose of a block in the frame of the hand."""
    cos, sin = np.cos(rotation[:, 2]), np.sin(rotation[:, 2])
    x, y, z = (block[:, i] - hand[:, i] for i in range(3))
    return np.stack([cos * x + sin * y, cos * y - sin * x, z, block[:, 3] - rotation[:, 2]], axis=1)


def _in_hand_frame(hand: np.ndarray, rotation: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f64 [n b] twice: how far each block is from the hand along the line of the fingers, and across it."""
    cos, sin = np.cos(rotation[:, 2])[:, None], np.sin(rotation[:, 2])[:, None]
    x, y = blocks[..., 0] - hand[:, None, 0], blocks[..., 1] - hand[:, None, 1]
    return cos * x + sin * y, cos * y - sin * x


def _centred(blocks: np.ndarray, rotation: np.ndarray, along: np.ndarray, room: np.ndarray, squeezed: np.ndarray) -> np.ndarray:
    """The blocks, those between closing fingers moved so that they fit: at most `room` off the middle."""
    room = np.maximum(room, 0.0)
    shift = np.where(squeezed, np.clip(along, -room, room) - along, 0.0)
    moved = blocks.copy()
    moved[..., 0] += np.cos(rotation[:, 2])[:, None] * shift
    moved[..., 1] += np.sin(rotation[:, 2])[:, None] * shift
    return moved


def _pushed(
    fixed: Fixed, hand: np.ndarray, rotation: np.ndarray, opening: np.ndarray, blocks: np.ndarray, held: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """The blocks, those that a finger or the held block runs into moved out of the way; `free` bool [n b]: which can be."""
    blocks = blocks.copy()
    reach = 0.5 * opening + _FINGER
    cos, sin = np.cos(rotation[:, 2]), np.sin(rotation[:, 2])
    carried = blocks[np.arange(len(held)), held]
    thin = np.full(len(held), _FINGER)
    bodies = [(hand[:, 0] + side * reach * cos, hand[:, 1] + side * reach * sin, hand[:, 2], thin) for side in (-1.0, 1.0)]
    off = np.where(held >= 0, carried[:, 0], -2 * _AWAY)
    bodies.append((off, carried[:, 1], carried[:, 2], fixed.radius[np.arange(len(held)), held]))
    for x, y, bottom, radius in bodies:
        dx, dy = blocks[..., 0] - x[:, None], blocks[..., 1] - y[:, None]
        distance = np.maximum(np.sqrt(dx * dx + dy * dy), 1e-9)
        overlap = fixed.radius + radius[:, None] - distance
        hit = free & (overlap > 0) & (blocks[..., 2] + fixed.height > bottom[:, None] + 0.001) & (np.arange(BLOCKS) != held[:, None])
        blocks[..., 0] += np.where(hit, overlap * dx / distance, 0.0)
        blocks[..., 1] += np.where(hit, overlap * dy / distance, 0.0)
    return blocks


def _support(fixed: Fixed, blocks: np.ndarray) -> np.ndarray:
    """f64 [n b]: the height of what is below each block: table, plate, or a block on which its middle rests."""
    to_plate = blocks[:, :, None, :2] - fixed.plates[:, None]
    on_plate = (to_plate[..., 0] ** 2 + to_plate[..., 1] ** 2 < PLATE_RADIUS**2).any(axis=-1)
    height = np.where(on_plate, PLATE_HEIGHT, 0.0)
    for i in range(BLOCKS):
        for j in range(BLOCKS):
            if i != j:
                offset, top = blocks[:, i, :2] - blocks[:, j, :2], blocks[:, j, 2] + fixed.height[:, j]
                rests = (offset[:, 0] ** 2 + offset[:, 1] ** 2 < fixed.radius[:, j] ** 2) & (blocks[:, i, 2] > top - 0.005)
                height[:, i] = np.where(rests, np.maximum(height[:, i], top), height[:, i])
    return height


def _fallen(fixed: Fixed, blocks: np.ndarray, loose: np.ndarray) -> np.ndarray:
    blocks = blocks.copy()
    blocks[..., 2] = np.where(loose, np.maximum(_support(fixed, blocks), blocks[..., 2] - _FALL), blocks[..., 2])
    return blocks


def goals(fixed: Fixed, state: State) -> np.ndarray:
    """bool [n 5]: whether the goal of each sub-step of `scene.substep_instructions` holds now."""
    target, hand, plate = state.blocks[:, 0], state.hand, fixed.plates[:, 0]
    has_it, is_open = state.held == 0, state.opening > OPEN - 1e-3
    to_plate = _distance(target[:, :2], plate)
    grasp = target[:, :3].copy()
    grasp[:, 2] += 0.5 * fixed.height[:, 0]
    return np.stack(
        [
            is_open & (_distance(hand, grasp) < AT_BLOCK),
            has_it & (target[:, 2] > LIFTED),
            has_it & (target[:, 2] > 0.5 * LIFTED) & (to_plate < NEAR),
            is_open & _rests_on_plate(state, to_plate),
            is_open & (_distance(hand, HOME) < NEAR),
        ],
        axis=1,
    )


def success(fixed: Fixed, state: State) -> np.ndarray:
    """bool [n]: whether the block that the instruction names rests on the plate that it names."""
    return _rests_on_plate(state, _distance(state.blocks[:, 0, :2], fixed.plates[:, 0]))


def _rests_on_plate(state: State, to_plate: np.ndarray) -> np.ndarray:
    return (state.held != 0) & (to_plate < PLATE_RADIUS) & (np.abs(state.blocks[:, 0, 2] - PLATE_HEIGHT) < 1e-9)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f64 [n]: between points; summed in a fixed order."""
    offset = a - b
    return np.sqrt(sum(offset[:, i] * offset[:, i] for i in range(offset.shape[1])))


def robot_state(state: State) -> np.ndarray:
    """f32 [n 8], what the robot reports: position, rotation, both fingers, as in LIBERO."""
    finger = 0.5 * state.opening[:, None]
    return np.concatenate([state.hand, state.rotation, finger, -finger], axis=1).astype(np.float32)
