"""Demonstrations through the table: replayed bit for bit, with ends that are seen, by an expert that does what it is told and no more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.demo import table
from eosjax.demo.dataset import LUCK
from eosjax.demo.expert import Expert, Style
from eosjax.demo.recordings import pictures, record, replay
from eosjax.demo.table import Luck


def seen(recording, steps):
    rows = np.array(steps)
    return pictures([recording.seed] * len(rows), [recording.scene] * len(rows), recording.states.rows(rows))


@settings(deadline=None, derandomize=True, max_examples=8)
@given(st.integers(0, 2**31), st.integers(0, 1000))
def test_recorded_actions_give_the_recording_again(seed, number):
    first = record((seed, number), LUCK, Style())
    again = replay((seed, number), LUCK, first.action)
    for name in first.states._fields:
        np.testing.assert_array_equal(getattr(first.states, name), getattr(again.states, name), err_msg=name)
    np.testing.assert_array_equal(first.end, again.end)
    np.testing.assert_array_equal(first.substep, again.substep)
    steps = range(0, len(first.end), 19)
    for camera, replayed in zip(seen(first, steps), seen(again, steps), strict=True):
        np.testing.assert_array_equal(camera, replayed)
    for place, step in enumerate(steps):  # nor does a picture depend on those that are drawn with it
        for camera, alone in zip(seen(first, steps), seen(first, [step]), strict=True):
            np.testing.assert_array_equal(camera[place], alone[0])


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.integers(0, 2**31))
def test_a_demonstration_ends_each_substep_where_its_goal_is_first_seen(seed):
    recording = record((seed,), Luck(), Style())
    ends = np.flatnonzero(recording.end)
    assert len(ends) == 5
    assert ends[-1] == len(recording.end) - 1
    assert recording.success
    fixed, _ = table.set_up([(seed,)], Luck())
    rows = fixed.rows(np.zeros(len(recording.end), int))
    holds = table.goals(rows, recording.states)[np.arange(len(recording.end)), recording.substep]
    np.testing.assert_array_equal(holds, recording.end)
    assert recording.action.dtype == np.float32
    assert abs(recording.action).max() <= 1.0


def test_the_tilt_of_the_hand_shows_its_place_and_not_its_way():
    """A policy would follow a tilt that shows where the demonstrator was going, instead of looking for the block."""
    states = record((4,), Luck(), Style()).states
    assert abs(states.rotation[:, :2] - table.lean(states.hand)).max() < 0.02


def test_a_demonstration_finds_back_after_a_knock():
    quiet, knocked = (table.set_up([(6,)], Luck(knock=share)) for share in (0.0, 1.0))
    still = np.array([[0, 0, 0, 0, 0, 0, -1]])
    moved = table.advance(*knocked, still).hand - table.advance(*quiet, still).hand
    assert np.linalg.norm(moved) > 0.01
    assert record((6,), Luck(knock=0.05), Style()).success


@pytest.mark.parametrize("number", range(5))
def test_a_block_counts_as_lifted_with_the_step_that_takes_it_off_the_table(number):
    recording = record((3, number), Luck(slip=0.0), Style())
    lifted = np.flatnonzero(recording.end)[1]
    before, after = recording.states.blocks[lifted - 1 : lifted + 1, 0, 2]
    assert before < 0.001 < table.LIFTED < after


def test_an_end_changes_the_picture():
    """The step before an end looks different from it: in at least one camera, well above the sensor noise."""
    for seed in range(4):
        recording = record((seed,), Luck(), Style())
        for end in np.flatnonzero(recording.end):
            cameras = [camera.astype(int) for camera in seen(recording, [end - 1, end])]
            changed = [(abs(camera[1] - camera[0]).max(axis=-1) > 40).sum() for camera in cameras]
            assert max(changed) >= 20, (seed, end, changed)


@pytest.mark.parametrize(
    ("luck", "style"), [(Luck(slip=1.0), Style(tries=1)), (Luck(), Style(beside=True))], ids=["missed grasp", "placed beside"]
)
def test_an_attempt_that_goes_wrong_ends_when_the_expert_can_do_no_more(luck, style):
    for seed in range(3):
        recording = record((seed,), luck, style)
        assert not recording.success
        assert recording.end.sum() < 4
        assert len(recording.end) < 260
        np.testing.assert_array_equal(replay((seed,), luck, recording.action).end, recording.end)


def test_the_expert_does_only_the_substep_it_is_told():
    fixed, state = table.set_up([(3,)], Luck(slip=0.0))
    expert = Expert(fixed, 0, np.random.default_rng(0), Style())
    for _ in range(120):  # far from the block it grasps nothing
        state = table.advance(fixed, state, expert.act(state, 1)[None])
    assert state.held[0] == -1
    assert expert.idle > 0
    place = state.hand.copy()
    state = table.advance(fixed, state, expert.act(state, 1)[None])
    assert np.linalg.norm(state.hand - place) < 0.002
