"""The baselines' features against loops over steps; their scores find what they look at, and know nothing of what is to come."""

import collections
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.ends import baselines
from eosjax.ends.baselines import CLOCK_TREES, GRIPPER, STATE_TREES, TIME, BaselineInputs, baseline_scores
from eosjax.ends.frame import average_precision


def random_episodes(seed: int, lengths: list[int]) -> BaselineInputs:
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *lengths])
    n = starts[-1]
    return BaselineInputs(
        ends=rng.random(n) < 0.2,
        gripper=rng.integers(0, 2, n).astype(np.float32),
        proprio=rng.normal(size=(n, 3)).astype(np.float32),
        instruction_ids=rng.integers(0, 5, n).astype(np.int32),
        episode_starts=starts,
    )


def episode_frames(starts: np.ndarray) -> list[range]:
    return [range(first, stop) for first, stop in zip(starts, starts[1:], strict=False)]


CASES = given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any))


@settings(deadline=None, derandomize=True)
@CASES
def test_time_and_place_start_anew_behind_each_end_and_with_each_episode(seed, lengths):
    ends, *_, starts = random_episodes(seed, lengths)
    times, places = [], []
    for frames in episode_frames(starts):
        time = place = 0
        for frame in frames:
            times.append(time)
            places.append(place)
            time, place = (0, place + 1) if ends[frame] else (time + 1, place)
    assert baselines.steps_since_substep(ends, starts).tolist() == times
    assert baselines.places(ends, starts).tolist() == places


@settings(deadline=None, derandomize=True)
@CASES
def test_gripper_lag_counts_from_the_last_change_in_the_episode(seed, lengths):
    _, gripper, *_, starts = random_episodes(seed, lengths)
    lags = baselines.steps_since_gripper(gripper > 0.5, starts)
    for frames in episode_frames(starts):
        lag = None
        for frame in frames:
            changed = frame > frames.start and gripper[frame] != gripper[frame - 1]
            lag = 0 if changed else None if lag is None else lag + 1
            assert lags[frame] == (400 if lag is None else lag)


def test_long_waits_are_not_told_apart():
    ends = np.zeros(1000, bool)
    assert baselines.steps_since_substep(ends, np.array([0, 1000]))[[399, 400, 999]].tolist() == [399, 400, 400]


@settings(deadline=None, derandomize=True)
@CASES
def test_differences_are_to_the_past_of_the_same_episode(seed, lengths):
    *_, proprio, _, starts = random_episodes(seed, lengths)
    differences = baselines.past_differences(proprio, starts)
    for frames in episode_frames(starts):
        for frame in frames:
            expected = [proprio[frame] - proprio[max(frame - back, frames.start)] for back in (1, 2, 4, 8)]
            np.testing.assert_array_equal(differences[frame], np.concatenate(expected))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=1, max_size=60))
def test_codes_are_the_ranks_of_the_instructions_in_training(rows):
    ids, train = (np.array(column) for column in zip(*rows, strict=True))
    ranks = {
        i: rank
        for rank, (i, _) in enumerate(sorted(collections.Counter(ids[train].tolist()).items(), key=lambda item: (-item[1], item[0])))
    }
    expected = [ranks.get(i, np.nan) for i in ids.tolist()]
    np.testing.assert_array_equal(baselines.instruction_codes(ids, train), expected)


def test_rare_instructions_beyond_what_trees_can_tell_apart_have_no_code():
    ids = np.concatenate([np.arange(300), np.arange(10, 300)])
    codes = baselines.instruction_codes(ids, np.ones(ids.size, bool))
    assert codes[[10, 259]].tolist() == [0, 249]
    assert np.isnan(codes[[0, 260, 299]]).all()


def test_fitted_scores_rank_by_the_share_of_ends_in_the_training_steps():
    numbers = np.array([0, 0, 1, 1, 2, 2, 1, 2])
    ends = np.array([0, 0, 1, 1, 0, 1, 0, 1], bool)
    train = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)
    scores = baselines.fitted_scores(numbers, ends, train)
    assert scores[0] < scores[4] < scores[2]
    assert scores[6] == scores[2]
    assert scores[7] == scores[4]  # the test step's own label is not looked at


def held_out(inputs: BaselineInputs) -> dict[str, float]:
    """Average precision of each baseline on the second half of the frames, fitted on the first."""
    train = np.arange(inputs.ends.size) < inputs.episode_starts[len(inputs.episode_starts) // 2]
    return {name: average_precision(inputs.ends[~train], scores[~train]) for name, scores in baseline_scores(inputs, train).items()}


def test_a_clock_that_is_right_is_found_out():
    """The second sub-step of an episode takes twice as long as the first."""
    nothing = random_episodes(0, [30] * 40)
    ends = np.isin(np.arange(1200) % 30, (9, 29))
    found = held_out(nothing._replace(ends=ends))
    assert found[TIME] == found[baselines.ORACLE] == 1.0
    assert found[CLOCK_TREES] > 0.95
    assert found[baselines.ALWAYS_OFF] == pytest.approx(2 / 30)
    assert found[GRIPPER] < 0.3
    assert found[STATE_TREES] < 0.3


def test_a_gripper_that_gives_the_ends_away_is_found_out():
    """The end comes three steps behind the change of the command."""
    rng = np.random.default_rng(1)
    gripper = np.repeat(np.arange(200) % 2, rng.integers(4, 14, 200))[:1500].astype(np.float32)
    changed = np.diff(gripper, prepend=gripper[0]) != 0
    ends = np.roll(changed, 3) & (np.arange(1500) % 50 > 7)
    found = held_out(random_episodes(1, [50] * 30)._replace(gripper=gripper, ends=ends))
    assert found[GRIPPER] > 0.8  # all but the changes at the seams of episodes
    assert found[CLOCK_TREES] > 0.8
    assert found[TIME] < 0.5
    assert found[STATE_TREES] < 0.5


def test_a_state_that_gives_the_ends_away_is_found_out():
    """The end is a leap of the first value; which leap counts depends on the instruction."""
    inputs = random_episodes(2, [60] * 40)
    ids = np.repeat(inputs.instruction_ids[::60] % 2, 60)
    leap = np.diff(inputs.proprio[:, 0], prepend=0.0)
    ends = np.where(ids == 0, leap > 2.0, leap < -2.0) & (np.arange(2400) % 60 > 0)
    found = held_out(inputs._replace(instruction_ids=ids, ends=ends))
    assert found[STATE_TREES] > 0.8
    assert found[CLOCK_TREES] < 0.4
    assert held_out(inputs._replace(ends=ends))[STATE_TREES] < found[STATE_TREES] - 0.2


def test_scores_are_probabilities():
    inputs = random_episodes(3, [25] * 40)
    train = np.arange(1000) < 600
    for name, scores in baseline_scores(inputs, train).items():
        assert ((scores >= 0) & (scores <= 1)).all(), name
        assert scores.dtype == np.float64
        if name != baselines.ALWAYS_OFF:
            assert scores[train].mean() == pytest.approx(inputs.ends[train].mean(), rel=0.1), name


def test_scores_do_not_depend_on_what_they_must_not_know():
    """Only the past of the same episode counts, and of held-out labels only earlier ones."""
    inputs = random_episodes(4, [40] * 12)
    train = np.arange(480) < 240
    scores = baseline_scores(inputs, train)
    frame, last = 290, 320  # in the eighth episode
    labels, future = inputs.ends.copy(), np.arange(frame, last)
    labels[future] ^= True
    gripper, proprio, ids = inputs.gripper.copy(), inputs.proprio.copy(), inputs.instruction_ids.copy()
    gripper[future[1:]], proprio[future[1:]], ids[future[1:]] = 7.0, -9.0, 11
    changed = inputs._replace(ends=labels, gripper=gripper, proprio=proprio, instruction_ids=ids)
    for name, other in baseline_scores(changed, train).items():
        same = np.ones(480, bool)
        same[frame if name == baselines.ORACLE else frame + 1 : last] = False
        np.testing.assert_array_equal(other[same], scores[name][same], err_msg=name)


def test_scores_are_the_same_each_time():
    inputs, train = random_episodes(5, [40] * 10), np.arange(400) < 200
    first, again = baseline_scores(inputs, train), baseline_scores(inputs, train)
    for name, scores in first.items():
        np.testing.assert_array_equal(again[name], scores, err_msg=name)


@pytest.mark.parametrize("ends", [np.zeros(60, bool), np.ones(60, bool)])
def test_there_must_be_something_to_fit(ends):
    inputs = random_episodes(6, [30, 30])._replace(ends=ends)
    with pytest.raises(ValueError, match=f"got {ends[:30].sum()} ends in 30 steps"):
        baseline_scores(inputs, np.arange(60) < 30)


def test_the_module_is_light():
    subprocess.run([sys.executable, "-c", "import sys, eosjax.ends.baselines; sys.exit('sklearn' in sys.modules)"], check=True)
