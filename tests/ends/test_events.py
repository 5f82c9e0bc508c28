"""Matching against brute force and SciPy, the worked cases, suppression against a plain loop."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from eosjax.ends.events import candidates, count_pairs, hits, match

steps_of = st.lists(st.integers(0, 30), unique=True, max_size=5)
COLLARS = st.integers(0, 8)


def pairs(fired, true, collar):
    return match(np.array(fired, np.int64), np.array(true, np.int64), collar)


def test_worked_cases():
    assert pairs([9, 12, 55, 91], [10, 50, 90], 2).tolist() == [[9, 10], [91, 90]]
    assert pairs([9, 12, 55, 91], [10, 50, 90], 5).tolist() == [[9, 10], [55, 50], [91, 90]]
    assert pairs([12, 6], [10, 14], 4).tolist() == [[6, 10], [12, 14]]  # nearest first would leave 6 without a partner


def test_of_equally_good_partners_the_earlier_firing_is_taken():
    assert pairs([8, 12], [10], 2).tolist() == [[8, 10]]


def test_nothing_to_match():
    assert pairs([], [], 2).shape == pairs([1], [], 2).shape == pairs([], [1], 2).shape == pairs([1], [9], 2).shape == (0, 2)


@given(steps_of, steps_of, COLLARS)
def test_most_pairs_then_least_delay_of_all_one_to_one_matchings(fired, true, collar):
    best = (0, 0)
    short, long = sorted((fired, true), key=len)
    for partners in itertools.permutations(long, len(short)):
        delays = [abs(a - b) for a, b in zip(short, partners, strict=True) if abs(a - b) <= collar]
        best = max(best, (len(delays), -sum(delays)))
    found = pairs(fired, true, collar)
    delays = np.abs(found[:, 0] - found[:, 1])
    assert (len(found), -delays.sum()) == best
    assert delays.max(initial=0) <= collar
    assert set(found[:, 0]) <= set(fired)
    assert set(found[:, 1]) <= set(true)
    assert all(len(np.unique(side)) == len(side) for side in found.T)


@given(st.integers(0, 2**32 - 1), COLLARS)
def test_agrees_with_scipy_on_many_events(seed, collar):
    rng = np.random.default_rng(seed)
    fired, true = (rng.choice(200, size=rng.integers(1, 60), replace=False) for _ in range(2))
    delay = np.abs(fired[:, None] - true)
    cost = np.where(delay <= collar, delay - 1e6, 0.0)
    chosen = linear_sum_assignment(cost)
    within = delay[chosen] <= collar
    found = match(fired, true, collar)
    assert len(found) == within.sum()
    assert np.abs(found[:, 0] - found[:, 1]).sum() == delay[chosen][within].sum()


@given(st.integers(0, 2**32 - 1), COLLARS)
def test_hits_above_any_threshold_are_as_many_as_the_matching_there_has(seed, collar):
    rng = np.random.default_rng(seed)
    fired = np.sort(rng.choice(60, size=rng.integers(0, 25), replace=False))
    true = np.sort(rng.choice(60, size=rng.integers(0, 15), replace=False))
    scores = rng.integers(1, 8, size=fired.size) / 8  # with ties
    found = hits(fired, scores, true, collar)
    for threshold in np.unique(scores):
        above = scores >= threshold
        assert found[above].sum() == len(match(fired[above], true, collar))


def earliest_first(fired, true, collar):
    """The size of a largest matching: in time order each true end takes the first firing left within its collar."""
    count, left = 0, sorted(fired.tolist())
    for end in true.tolist():
        within = [step for step in left if abs(step - end) <= collar]
        if within:
            count += 1
            left = [step for step in left if step > within[0]]
    return count


@given(st.integers(0, 2**32 - 1), COLLARS)
def test_many_sets_of_firings_are_counted_at_once(seed, collar):
    rng = np.random.default_rng(seed)
    steps = np.sort(rng.choice(60, size=rng.integers(0, 30), replace=False))
    sets = rng.random((5, steps.size)) < rng.random((5, 1))
    true = np.flatnonzero(rng.random(60) < 0.3)
    counts = count_pairs(sets, steps, true, collar).tolist()
    assert counts == [len(match(steps[row], true, collar)) for row in sets]
    assert counts == [earliest_first(steps[row], true, collar) for row in sets]


def test_hits_of_the_worked_case():
    fired, scores, true = np.array([9, 12, 55, 91]), np.array([0.9, 0.8, 0.7, 0.6]), np.array([10, 50, 90])
    assert hits(fired, scores, true, 2).tolist() == [True, False, False, True]
    assert hits(fired, scores, true, 5).tolist() == [True, False, True, True]


def test_the_last_firing_may_move_all_others():
    # Each firing first takes the end before it; the last one has only that of its neighbour, and all have to move on by one.
    count = 3000
    fired, true = np.arange(count) * 2 - 1, np.arange(count) * 2
    assert hits(fired, np.r_[0.0, np.arange(count, 1, -1.0)], true, 1).all()


@pytest.mark.parametrize(
    ("scores", "window", "steps"),
    [
        ([0.1, 0.9, 0.8, 0.2, 0.5], 1, [1, 4]),
        ([0.1, 0.9, 0.8, 0.2, 0.5], 2, [1, 4]),
        ([0.1, 0.9, 0.8, 0.2, 0.5], 0, [0, 1, 2, 3, 4]),
        ([0.0, 0.9, 0.9, 0.9, 0.0], 2, [1]),  # a plateau fires where it begins
        ([0.0, 0.0, 0.0], 1, []),
    ],
)
def test_candidates_of_small_cases(scores, window, steps):
    assert candidates(np.array(scores), window).tolist() == steps


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(0, 5), st.integers(1, 6))
def test_suppression_against_its_definition(levels, window, threshold):
    scores = np.array(levels, float) / 6
    chosen = []
    for step in sorted(range(len(levels)), key=lambda step: (-levels[step], step)):
        if levels[step] and all(abs(step - other) > window for other in chosen):
            chosen.append(step)
    found = candidates(scores, window)
    assert found.tolist() == sorted(chosen)
    above = np.where(scores >= threshold / 6, scores, 0.0)
    assert candidates(above, window).tolist() == [step for step in found if scores[step] >= threshold / 6]
