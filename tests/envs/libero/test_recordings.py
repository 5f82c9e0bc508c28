"""The expert, on a table without physics: what it does of a sub-step, and what its attempts record."""

import numpy as np
import pytest

from eosjax.envs.libero.expert import Expert, Style
from eosjax.envs.libero.recordings import LONGEST, record
from eosjax.envs.libero.scene import goals, release
from tests.envs.libero.fake import FakeTable, make_scene

KINDS = ["akita_black_bowl", "cream_cheese"]


def attempt(kind=KINDS[0], seed=0, style=Style(), lose_after=None):  # noqa: B008  # a tuple
    table = FakeTable(make_scene(kind))
    return table, record(table, 0, np.random.default_rng(seed), style, lose_after)


@pytest.mark.parametrize("kind", KINDS)
def test_a_demonstration_ends_each_substep_with_its_goal(kind):
    for seed in range(5):
        table, found = attempt(kind, seed)
        ends = np.flatnonzero(found.end)
        assert found.success
        assert len(ends) == 5
        assert ends[-1] == len(found.action) - 1
        np.testing.assert_array_equal(found.substep, np.searchsorted(ends, np.arange(len(found.action))))
        assert found.action.dtype == np.float32
        assert np.abs(found.action).max() <= 1.0
        assert np.hypot(*(table.now.thing - table.scene.target)[:2]) < 0.02


def test_the_same_seed_gives_the_same_attempt_and_another_another():
    (_, one), (_, again), (_, other) = attempt(seed=1), attempt(seed=1), attempt(seed=2)
    for left, right in zip(one, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert one.action.shape != other.action.shape or not np.array_equal(one.action, other.action)


def test_a_missed_grasp_without_recovery_ends_with_closed_fingers_and_nothing_in_them():
    table, found = attempt(style=Style(misses=1, tries=1))
    assert not found.success
    assert np.flatnonzero(found.end).size == 1  # the thing was reached
    assert found.action[-1, 6] == 1.0
    assert (table.now.held, table.now.gap) == (False, 0.0)
    np.testing.assert_array_equal(table.now.thing, table.scene.start)


def test_a_missed_grasp_is_tried_again():
    _, found = attempt(style=Style(misses=2))
    assert found.success
    closings = (np.diff(found.action[:, 6]) > 0).sum()
    assert closings == 3


@pytest.mark.parametrize("recover", [False, True])
def test_what_is_lost_on_the_way_is_grasped_again_or_not(recover):
    table, found = attempt(style=Style(recover=recover), lose_after=3)
    assert table.slipped == 1
    assert not table.slippery
    assert found.success == recover
    assert found.end.sum() == (5 if recover else 2)


def test_beside_is_not_on_the_target():
    table, found = attempt(style=Style(beside=True))
    assert not found.success
    assert found.end.sum() == 3  # up to above the place
    assert found.action[-1, 6] == -1.0
    assert 0.1 < np.hypot(*(table.now.thing - release(table.scene, table.now.target))[:2]) < 0.15


def test_an_attempt_ends_at_the_limit():
    class Still(FakeTable):
        def step(self, action):
            pass

    found = record(Still(make_scene()), 0, np.random.default_rng(0), Style(tries=1000))
    assert not found.end.any()
    assert len(found.action) <= LONGEST


def test_it_holds_still_when_its_substep_is_done():
    """Told to reach and nothing else, it does not grasp."""
    table = FakeTable(make_scene())
    scene = table.reset(0, None)
    expert = Expert(scene, np.random.default_rng(0), Style())
    for _ in range(120):
        action = expert.act(table.view(), 0)
        table.step(action)
    assert goals(scene, table.view())[0]
    assert expert.idle > 20
    np.testing.assert_array_equal(action, [0, 0, 0, 0, 0, 0, -1])
