import numpy as np
import pytest

from eosjax.ends.closed_loop import ORACLE, Switch, Trace, figures, rows, wilson


def trace(episode, success, *switches, steps=100, reached=(True, True), success_step=None):
    when = (60 if success else -1) if success_step is None else success_step
    return Trace(episode, steps, success, when, reached, tuple(Switch(*each) for each in switches))


HIT, LATE, EARLY, TIMED_OUT = (0, 12, 10, False), (1, 40, 30, False), (0, 5, -1, False), (1, 50, -1, True)


def test_figures_of_switches():
    found = figures([trace(0, True, HIT, LATE), trace(1, False, EARLY, TIMED_OUT, reached=(False, True), steps=150)], None)
    assert found["episodes"] == 2
    assert found["success"] == 0.5
    assert found["substep_success"] == [0.5, 1.0]
    assert (found["delay_median"], found["delay_p10"], found["delay_p90"]) == pytest.approx((6.0, 2.8, 9.2))
    assert found["early_share"] == pytest.approx(1 / 3)  # a time-out is no detection
    assert found["time_out_share"] == 0.25
    assert found["false_alarms_per_1000_steps"] == pytest.approx(4.0)
    assert found["false_alarms_per_1000_steps_on_failed"] == pytest.approx(1000 / 150)
    assert found["steps_to_success"] == 61
    assert found["regret"] is None


def test_regret_is_paired_by_start_state():
    oracle = [trace(number, number != 3) for number in range(4)]
    mine = [trace(number, number == 0) for number in (2, 1, 0)]  # state 3 was not played
    found = figures(mine, oracle)
    assert found["regret"] == pytest.approx(2 / 3)
    low, high = found["regret_interval_95"]
    assert 0 <= low <= 2 / 3 <= high <= 1
    assert figures(oracle, oracle)["regret"] == 0.0


def test_rows_compare_with_the_oracle_of_the_same_executor():
    good, bad = [trace(0, True)], [trace(0, False)]
    table = rows({("eos", "policy"): bad, (ORACLE, "policy"): bad, ("eos", "expert"): bad, (ORACLE, "expert"): good, ("x", "y"): good})
    assert [(row["switch"], row["executor"], row["regret"]) for row in table] == [
        ("eos", "policy", 0.0), (ORACLE, "policy", 0.0), ("eos", "expert", 1.0), (ORACLE, "expert", 0.0), ("x", "y", None)
    ]  # fmt: skip


def test_what_is_not_defined_is_none():
    found = figures([trace(0, False)], None)
    names = ("delay_median", "delay_p10", "delay_p90", "early_share", "time_out_share", "steps_to_success", "regret")
    assert [found[name] for name in names] == [None] * 7
    assert found["false_alarms_per_1000_steps"] == 0.0
    assert figures([trace(0, True)], None)["false_alarms_per_1000_steps_on_failed"] is None
    assert figures([trace(0, True), trace(1, True, reached=(True,))], None)["substep_success"] is None  # other plans


def test_wilson():
    assert wilson(0, 0) is None
    np.testing.assert_allclose(wilson(15, 50), [0.191, 0.438], atol=1e-3)
    low, high = wilson(50, 50)
    assert 0.9 < low < 1.0
    assert high == pytest.approx(1.0)
