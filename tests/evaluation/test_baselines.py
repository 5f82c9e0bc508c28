"""The simple rules against loops over steps."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.evaluation import baselines
from eosjax.evaluation.frame import average_precision


def episodes(seed, lengths):
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *lengths])
    return starts, rng.random(starts[-1]) < 0.2, rng.integers(0, 2, starts[-1]).astype(np.float32)


CASES = given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 30), min_size=1, max_size=4))


@settings(deadline=None, derandomize=True)
@CASES
def test_time_in_the_substep_starts_anew_behind_each_end(seed, lengths):
    starts, ends, _ = episodes(seed, lengths)
    expected = []
    for first, stop in zip(starts, starts[1:], strict=False):
        count = 0
        for frame in range(first, stop):
            expected.append(count)
            count = 0 if ends[frame] else count + 1
    assert baselines.steps_since_substep(ends, starts).tolist() == expected


@settings(deadline=None, derandomize=True)
@CASES
def test_gripper_lag_counts_from_the_last_change_in_the_episode(seed, lengths):
    starts, _, gripper = episodes(seed, lengths)
    gripper[0], gripper[-1] = 0, 1  # both commands occur
    lags = baselines.steps_since_gripper(gripper, starts)
    for first, stop in zip(starts, starts[1:], strict=False):
        lag = None
        for frame in range(first, stop):
            changed = frame > first and gripper[frame] != gripper[frame - 1]
            lag = 0 if changed else None if lag is None else lag + 1
            assert lags[frame] == (400 if lag is None else lag)


def test_fitted_scores_rank_by_the_share_of_ends_in_the_training_steps():
    numbers = np.array([0, 0, 1, 1, 2, 2, 1, 2])
    ends = np.array([0, 0, 1, 1, 0, 1, 0, 1], bool)
    train = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)
    scores = baselines.fitted_scores(numbers, ends, train)
    assert scores[0] < scores[4] < scores[2]
    assert scores[6] == scores[2]
    assert scores[7] == scores[4]  # the test step's own label is not looked at


def test_a_clock_that_is_right_is_found_out():
    starts = np.arange(0, 1001, 50)
    ends = np.arange(1000) % 10 == 9
    train = np.arange(1000) < 500
    gripper = (np.arange(1000) // 10 % 2).astype(np.float32)
    rules = baselines.rule_scores(ends, gripper, starts, train)
    held_out = {name: average_precision(ends[~train], scores[~train]) for name, scores in rules.items()}
    assert held_out["time since the sub-step began"] == 1.0
    assert held_out["always off"] == 0.1
    assert 0.1 < held_out["gripper just changed"] <= 1.0
