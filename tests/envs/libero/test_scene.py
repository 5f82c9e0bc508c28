import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.envs.libero.scene import blocked, down, goals, grasps, release, rotation, up
from tests.envs.libero.fake import make_scene, matrix_of, view_of

BOWL, BOX = make_scene(), make_scene("cream_cheese")


def at(scene, grasp, **changes):
    return view_of(scene, hand=scene.start + grasp.offset, turn=down(grasp.yaw), **changes)


@pytest.mark.parametrize("scene", [BOWL, BOX], ids=["rim", "box"])
def test_the_hand_has_reached_a_thing_at_each_of_its_grasps(scene):
    for grasp in grasps(scene, np.eye(3)):
        assert goals(scene, at(scene, grasp)).tolist() == [True, False, False, False, False]
        assert not goals(scene, at(scene, grasp, gap=0.03))[0]  # closed fingers
        assert not goals(scene, at(scene, grasp)._replace(turn=down(grasp.yaw + np.pi / 2)))[0]  # fingers along the rim, or the long side
        assert not goals(scene, view_of(scene, hand=scene.start + grasp.offset + up(0.02)))[0]


def test_the_rim_may_be_reached_from_any_side():
    angle = 0.7
    side = np.array([0.049 * np.cos(angle), 0.049 * np.sin(angle), 0.04])
    assert goals(BOWL, view_of(BOWL, hand=BOWL.start + side, turn=down(angle - np.pi / 2)))[0]
    assert not goals(BOWL, view_of(BOWL, hand=BOWL.start + side, turn=down(angle)))[0]


def test_a_box_is_grasped_across_its_thin_side_however_it_lies():
    turned = down(0.3) @ np.diag([1.0, -1.0, -1.0])  # about z by 0.3
    (grasp,) = grasps(BOX, turned)
    assert abs(down(grasp.yaw)[:, 1] @ turned[:, 0]) == pytest.approx(1.0)
    view = view_of(BOX, hand=BOX.start + grasp.offset, turn=down(grasp.yaw), axes=turned)
    assert goals(BOX, view)[0]


def test_what_is_lifted_must_be_held():
    high = BOWL.start + up(0.05)
    assert goals(BOWL, view_of(BOWL, thing=high, held=True))[1]
    assert not goals(BOWL, view_of(BOWL, thing=high))[1]  # thrown
    assert not goals(BOWL, view_of(BOWL, thing=BOWL.start + up(0.03), held=True))[1]


def test_what_is_above_its_place():
    place = release(BOWL, BOWL.target)
    assert goals(BOWL, view_of(BOWL, thing=place + up(0.05), held=True))[2]
    assert not goals(BOWL, view_of(BOWL, thing=place + up(0.03), held=True))[2]
    assert not goals(BOWL, view_of(BOWL, thing=place + np.array([0.02, 0, 0.05]), held=True))[2]


def test_a_thing_is_placed_when_it_is_let_go_and_left_when_the_hand_is_away():
    there = {"thing": BOWL.target, "success": True}
    near, away = BOWL.target + up(0.05), BOWL.target + up(0.13)
    assert goals(BOWL, view_of(BOWL, hand=near, **there)).tolist()[3:] == [True, False]
    assert goals(BOWL, view_of(BOWL, hand=away, **there)).tolist()[3:] == [True, True]
    assert goals(BOWL, view_of(BOWL, hand=away, touched=True, **there)).tolist()[3:] == [False, False]
    assert goals(BOWL, view_of(BOWL, hand=away, thing=BOWL.target)).tolist()[3:] == [False, False]


def test_what_is_in_the_way_of_an_open_hand():
    wall = np.array([[[0.05, -0.5, 0.8], [0.5, 0.5, 1.2]]])
    scene = make_scene(obstacles=wall)
    assert blocked(scene, np.array([0.0, 0.0, 0.9]), 0.0) == 0.0  # fingers along the wall
    assert blocked(scene, np.array([0.0, 0.0, 0.9]), np.pi / 2) > 0.05
    assert blocked(scene, np.array([0.0, 0.0, 1.3]), np.pi / 2) == 0.0  # above it


@given(st.floats(-3.0, 3.0), st.floats(-0.5, 0.5))
@settings(max_examples=20, deadline=None)
def test_rotations_are_undone_by_axis_and_angle(yaw, other):
    matrix = down(yaw) @ down(other)
    np.testing.assert_allclose(matrix_of(rotation(matrix)), matrix, atol=1e-6)
