"""The dynamics of the table: what can be held, what falls, what is pushed, and that a table depends on nothing but its seed and actions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.demo import table
from eosjax.demo.scene import HOME, OPEN, PLATE_HEIGHT, STEP
from eosjax.demo.table import Luck

SURE = Luck(slip=0.0)
CLOSE, RELEASE = 1.0, -1.0


def action(delta=(0.0, 0.0, 0.0), turn=0.0, grip=RELEASE):
    return np.array([[*np.divide(delta, STEP), 0.0, 0.0, turn, grip]], np.float32)


def at_block(seed=0, offset=(0.0, 0.0, 0.0), turn=0.0, luck=SURE):
    """A table whose hand is round the first block, but for an offset in its own frame (along the fingers, across, up) and a turn."""
    fixed, state = table.set_up([seed], luck)
    x, y, z, yaw = state.blocks[0, 0]
    cos, sin = np.cos(yaw + turn), np.sin(yaw + turn)
    along, across, up = offset
    hand = [x + cos * along - sin * across, y + sin * along + cos * across, z + 0.5 * fixed.height[0, 0] + up]
    return fixed, state._replace(hand=np.array([hand]), rotation=np.array([[0.0, 0.0, yaw + turn]]))


def run(fixed, state, step, times):
    for _ in range(times):
        state = table.advance(fixed, state, step)
    return state


def lifted(fixed, state):
    """Closes the fingers and goes up."""
    return run(fixed, run(fixed, state, action(grip=CLOSE), 10), action((0, 0, 0.02), grip=CLOSE), 5)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.integers(0, 2**31), st.integers(2, 5))
def test_a_table_does_not_depend_on_those_beside_it(seed, count):
    seeds = [(seed, number) for number in range(count)]
    actions = np.random.default_rng(seed).uniform(-1.3, 1.3, (30, count, 7)).astype(np.float32)
    fixed, together = table.set_up(seeds, Luck())
    alone = [table.set_up([each], Luck()) for each in seeds]
    for step in actions:
        together = table.advance(fixed, together, step)
        alone = [(own, table.advance(own, state, step[[row]])) for row, (own, state) in enumerate(alone)]
    for row, (own, state) in enumerate(alone):
        for name in state._fields:
            np.testing.assert_array_equal(getattr(together, name)[row], getattr(state, name)[0], err_msg=name)
        np.testing.assert_array_equal(table.goals(fixed, together)[row], table.goals(own, state)[0])


def test_a_step_changes_nothing_in_place():
    fixed, state = table.set_up([(0, 1)], Luck())
    before = [column.copy() for column in state]
    table.advance(fixed, state, action((0.01, 0.02, -0.01), grip=CLOSE))
    for kept, column in zip(before, state, strict=True):
        np.testing.assert_array_equal(kept, column)


@pytest.mark.parametrize(
    ("offset", "holds"),
    [
        ((0.0, 0.0, 0.0), True),
        ((0.012, 0.0, 0.0), True),  # the fingers push it to their middle
        ((0.0, 0.010, 0.0), True),
        ((0.0, 0.020, 0.0), False),
        ((0.0, 0.0, 0.035), False),
        ((0.08, 0.0, 0.0), False),
    ],
)
def test_a_block_is_held_only_from_a_place_round_it(offset, holds):
    fixed, state = at_block(offset=offset)
    state = lifted(fixed, state)
    assert (state.held[0] == 0) == holds
    assert (state.blocks[0, 0, 2] > 0.05) == holds
    assert state.opening[0] == pytest.approx(2 * fixed.radius[0, 0] if holds else 0.0, abs=1e-6)


def first_of(shape):
    return next(seed for seed in range(50) if table.set_up([seed], SURE)[0].cube[0, 0] == (shape == "cube"))


@pytest.mark.parametrize(("shape", "turn", "holds"), [("cube", 0.2, True), ("cube", 0.6, False), ("cylinder", 0.6, True)])
def test_a_cube_is_held_only_if_the_hand_is_turned_as_it_is(shape, turn, holds):
    state = lifted(*at_block(first_of(shape), turn=turn))
    assert (state.held[0] == 0) == holds


def test_luck_decides_whether_a_grasp_holds_and_for_how_long():
    assert lifted(*at_block(luck=Luck(slip=1.0))).held[0] == -1
    fixed, state = at_block(luck=Luck(slip=0.0, lose=1.0))
    state = run(fixed, state, action(grip=CLOSE), 10)
    assert state.held[0] == 0 or fixed.life[0, 1] <= 10
    assert run(fixed, state, action(grip=CLOSE), 40).held[0] == -1


def over(fixed, state, xy):
    """The lifted block above a point, and let go."""
    carried = state._replace(hand=np.array([[*xy, state.hand[0, 2]]]))
    return run(fixed, run(fixed, carried, action(grip=CLOSE), 1), action(), 12)


def test_what_is_let_go_falls_on_what_is_below():
    fixed, state = at_block()
    state = lifted(fixed, state)
    plate = fixed.plates[0, 0]
    placed = over(fixed, state, plate)
    assert placed.blocks[0, 0, 2] == PLATE_HEIGHT
    assert table.success(fixed, placed)[0]
    assert table.goals(fixed, placed)[0, 3]
    beside = over(fixed, state, [plate[0] + 0.07, plate[1]])
    assert beside.blocks[0, 0, 2] == 0.0
    assert not table.success(fixed, beside)[0]


def test_a_block_stands_on_another():
    seed = next(seed for seed in range(50) if len(table.set_up([seed], SURE)[0].scenes[0].blocks) == 2)
    fixed, state = at_block(seed)
    state = over(fixed, lifted(fixed, state), state.blocks[0, 1, :2])
    assert state.blocks[0, 0, 2] == pytest.approx(fixed.height[0, 1])


def test_a_finger_pushes_a_block_aside_and_off_its_plate():
    fixed, state = at_block(offset=(0.10, 0.0, 0.0))
    blocks = state.blocks.copy()
    blocks[0, 0, 2] = PLATE_HEIGHT
    plates = fixed.plates.copy()
    plates[0, 0] = blocks[0, 0, :2]
    fixed, state = fixed._replace(plates=plates), state._replace(blocks=blocks)
    yaw = state.rotation[0, 2]
    towards = action((-0.02 * np.cos(yaw), -0.02 * np.sin(yaw), 0.0), grip=CLOSE)
    pushed = run(fixed, run(fixed, state, action(grip=CLOSE), 8), towards, 10)
    assert np.linalg.norm(pushed.blocks[0, 0, :2] - blocks[0, 0, :2]) > 0.05
    assert pushed.blocks[0, 0, 2] == 0.0
    assert pushed.held[0] == -1


@pytest.mark.parametrize("way", [(0, 0, -0.03), (0.03, 0.03, 0.03)])
def test_the_hand_stays_above_the_table_and_near_it(way):
    fixed, state = at_block()
    state = run(fixed, run(fixed, state, action(grip=CLOSE), 10), action(way, grip=CLOSE), 40)
    assert (abs(state.hand) <= [[0.35, 0.35, 0.40]]).all()
    assert state.hand[0, 2] >= 0.01
    assert state.blocks[0, 0, 2] >= 0.0


def test_goals_are_places_and_what_the_fingers_do():
    fixed, state = at_block()
    assert table.goals(fixed, state)[0].tolist() == [True, False, False, False, False]
    state = lifted(fixed, state)
    assert table.goals(fixed, state)[0].tolist() == [False, state.blocks[0, 0, 2] > table.LIFTED, False, False, False]
    home = state._replace(hand=HOME[None], opening=np.array([OPEN]), held=np.array([-1]))
    assert table.goals(fixed, home)[0, 4]
