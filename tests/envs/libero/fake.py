"""A table without physics: the hand goes where it is told, and the fingers hold what is between them."""

import numpy as np

from eosjax.envs.libero.scene import Scene, View, down, grasps, release

STEP, TURN = 0.03, 0.5  # metres and radians that an action of 1 moves the hand


def matrix_of(vector):
    """Rodrigues' formula: the rotation with this axis times angle."""
    angle = np.linalg.norm(vector)
    cross = np.cross(np.eye(3), vector / max(angle, 1e-12))
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def make_scene(kind="akita_black_bowl", **changes):
    start = np.array([0.0, 0.0, 0.9])
    half = np.array([0.02, 0.04, 0.01]) if kind == "cream_cheese" else np.array([0.06, 0.06, 0.02])
    scene = Scene(
        kind=kind,
        low=-half,
        high=half,
        start=start,
        bottom=-half[2],
        target=np.array([0.2, 0.1, 0.9]),
        deep=False,
        obstacles=np.array([[[0.4, 0.4, 0.8], [0.5, 0.5, 1.0]]]),
    )
    return scene._replace(**changes)


def view_of(scene, **changes):
    view = View(np.array([-0.2, 0.0, 1.2]), down(0.0), 0.08, scene.start.copy(), np.eye(3), scene.target.copy(), False, False, False)
    return view._replace(**changes)


class FakeTable:
    """See `eosjax.envs.libero.recordings.Table`."""

    def __init__(self, scene):
        self.scene, self.slippery, self.slipped = scene, False, 0

    def reset(self, seed, start):
        self.now, self.steps = view_of(self.scene), 0
        return self.scene

    def step(self, action):
        now, self.steps = self.now, self.steps + 1
        closing = action[6] > 0
        held = now.held and closing and not self.slippery
        self.slipped += now.held and self.slippery
        move = STEP * action[:3].astype(float)
        hand, thing = now.hand + move, now.thing + (move if held else 0.0)
        gap = max(0.02 if held else 0.0, now.gap - 0.02) if closing else min(0.08, now.gap + 0.02)
        near = any(np.linalg.norm(hand - thing - grasp.offset) < 0.015 for grasp in grasps(self.scene, now.axes))
        held = held or (closing and near and not self.slippery)
        if not held:  # it falls on what is below
            place = release(self.scene, now.target)
            over = np.hypot(*(thing - place)[:2]) < 0.03
            thing = np.array([*thing[:2], place[2] if over and thing[2] > place[2] - 0.01 else min(thing[2], self.scene.start[2])])
        turn = matrix_of(TURN * action[3:6].astype(float)) @ now.turn
        success = bool(np.linalg.norm(thing - release(self.scene, now.target)) < 0.03)
        self.now = now._replace(hand=hand, turn=turn, thing=thing, gap=gap, held=held, touched=held, success=success)

    def slip(self, slippery):
        self.slippery = slippery

    def view(self):
        return self.now

    def robot_state(self):
        return np.zeros(8, np.float32)

    def joints(self):
        return np.zeros(7, np.float32)

    def state(self):
        return np.array([self.steps, *self.now.hand, *self.now.thing])
