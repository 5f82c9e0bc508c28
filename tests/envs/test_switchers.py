import numpy as np
import pytest

from eosjax.ends.closed_loop import ORACLE
from eosjax.envs.switchers import EOS, GRIPPER, NONE, TIME, WHOLE, Moment, Typical, make_switcher

MOMENT = Moment(place=0, steps=3, since_gripper=3, changed=False, holds=False, cut=False)


def test_what_is_typical_comes_from_the_training_data():
    """Two episodes: in the second sub-step of each the gripper closes, 2 and 4 steps before its end."""
    ends = np.zeros(20, bool)
    ends[[3, 9, 15, 19]] = True  # lengths 4 and 6; 6 and 4
    gripper = np.ones(20)
    gripper[7:10] = gripper[16:20] = 0.0
    typical = Typical.fit(ends, gripper, np.array([0, 10, 20]))
    assert typical.length == (5.0, 5.0)
    assert typical.changes == (False, True)
    assert typical.middle == 0.5
    assert typical.lag == (4.0, 2.5)  # from the start of the episode; from the change


def test_a_change_at_the_first_step_of_a_substep_belongs_to_it():
    ends = np.array([0, 1, 0, 0, 1], bool)
    typical = Typical.fit(ends, np.array([1, 1, 0, 0, 0.0]), np.array([0, 5]))
    assert typical.changes == (False, True)
    assert typical.lag == (1.0, 2.0)


def test_who_decides():
    typical = Typical(length=(4.0, 9.0), lag=(3.0, 2.0), changes=(False, True))
    asks = {name: make_switcher(name, typical) for name in (EOS, ORACLE, TIME, GRIPPER, NONE, WHOLE)}
    assert [name for name, ask in asks.items() if ask(MOMENT)] == [TIME, GRIPPER]
    assert [name for name, ask in asks.items() if ask(MOMENT._replace(steps=2, since_gripper=2, holds=True))] == [ORACLE]
    assert [name for name, ask in asks.items() if ask(MOMENT._replace(place=1, cut=True))] == [EOS]
    assert [name for name, ask in asks.items() if ask(MOMENT._replace(place=7, changed=True))] == [GRIPPER]  # as the last place


@pytest.mark.parametrize("name", [TIME, GRIPPER])
def test_what_is_fitted_needs_data(name):
    with pytest.raises(AssertionError):
        make_switcher(name, None)
