"""Sweeps against the plain protocols, and each rule against brute force over all thresholds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.ends.events import ScoredEpisode, match
from eosjax.ends.protocols import Rule, replay
from eosjax.ends.sweeps import (
    Pick,
    Sweep,
    dense_sweep,
    deployed_sweep,
    option_grid,
    pick,
    replay_at,
    thresholds_between,
    tune,
    window_of,
)
from eosjax.flag_values import OperatingRule

SEEDS = st.integers(0, 2**32 - 1)
RULES = [
    OperatingRule("false_alarms", 0.5),
    OperatingRule("false_alarms", 0),
    OperatingRule("f1", 1),
    OperatingRule("cost", 3),
    OperatingRule("early", 0.3),
]


def made_up(seed, count=3, coarse=False):
    """Chunks of probabilities (NaN past the episode) that rise at ends, and the ends, of some episodes."""
    rng = np.random.default_rng(seed)
    scores, ends = [], []
    for _ in range(count):
        length, k = int(rng.integers(8, 25)), 4
        truth = rng.random(length) < 0.15
        step = np.add.outer(np.arange(length), np.arange(k))
        padded = np.concatenate([truth, np.zeros(k, bool)])
        values = np.where(step < length, rng.random(step.shape) * 0.7 + 0.3 * padded[step], np.nan)
        scores.append(np.round(values, 1) if coarse else values)
        ends.append(truth)
    return scores, ends


@given(SEEDS, st.integers(1, 3), st.integers(1, 5), st.none() | st.integers(5, 9), st.booleans())
def test_many_thresholds_at_once_are_replays_one_by_one(seed, debounce, min_steps, time_out, cumulative):
    (scores, *_), _ = made_up(seed)
    thresholds = np.array([0.95, 0.7, 0.5, 0.1])
    fired = replay_at(scores, thresholds, Rule(0.0, debounce, min_steps, time_out, cumulative))
    for row, threshold in zip(fired, thresholds, strict=True):
        assert np.flatnonzero(row).tolist() == replay(scores, Rule(threshold, debounce, min_steps, time_out, cumulative)).fired.tolist()


@given(SEEDS, st.booleans())
def test_the_deployed_sweep_counts_what_replays_fire(seed, coarse):
    scores, ends = made_up(seed, coarse=coarse)
    sweep = deployed_sweep(scores, ends, collar=1)
    assert sweep.true.tolist() == [each.sum() for each in ends]
    for column, threshold in enumerate(sweep.thresholds):
        fired = [replay(each, Rule(threshold)).fired for each in scores]
        assert sweep.fired[:, column].tolist() == [each.size for each in fired]
        pairs = [len(match(each, np.flatnonzero(true), 1)) for each, true in zip(fired, ends, strict=True)]
        assert sweep.hits[:, column].tolist() == pairs
    assert sweep.fired[:, 0].sum() == 0  # above all scores
    assert (sweep.fired[:, -1] == [each.size for each in ends]).all()  # from the lowest score on, every step fires


@given(SEEDS, st.integers(0, 3))
def test_the_dense_sweep_counts_what_candidates_fire(seed, window):
    rng = np.random.default_rng(seed)
    episodes = [ScoredEpisode("", np.round(rng.random(20), 1), rng.random(20) < 0.2) for _ in range(3)]
    sweep = dense_sweep(episodes, 2, window)
    for column, threshold in enumerate(sweep.thresholds):
        decisions = [each.decisions(threshold, window) for each in episodes]
        assert sweep.fired[:, column].tolist() == [each.fired.size for each in decisions]
        assert sweep.hits[:, column].tolist() == [len(match(each.fired, each.true, 2)) for each in decisions]


def test_a_head_that_says_zero_never_fires():
    sweep = dense_sweep([ScoredEpisode("", np.zeros(9), np.arange(9) == 4)], 2)
    assert sweep.fired.sum() == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_thresholds_tell_all_scores_apart(scores):
    scores = np.array(scores)
    found = thresholds_between(scores)
    assert (np.diff(found) < 0).all() or found.size == 1
    reached = [frozenset(np.flatnonzero(scores >= threshold)) for threshold in found]
    assert reached[0] == frozenset()
    assert set(reached) == {frozenset(), *(frozenset(np.flatnonzero(scores >= score)) for score in scores)}


def test_thresholds_lie_in_the_middle_and_of_many_scores_mostly_near_the_top():
    assert thresholds_between(np.array([0.2, 0.4, 0.4])).tolist() == pytest.approx([0.7, 0.3, 0.2])
    assert thresholds_between(np.array([1.0]))[0] > 1
    assert thresholds_between(np.array([np.nextafter(0.5, 1), 0.5]))[1] == np.nextafter(0.5, 1)
    scores = np.linspace(0, 1, 10_001)
    many = thresholds_between(scores, 200)
    assert many.size <= 200
    assert (many[0] > 1, many[-1]) == (True, 0)
    assert np.abs(np.diff(many)).max() < 0.06
    above = [(scores >= threshold).sum() for threshold in many]
    assert above[1:20] == list(range(1, 20))


def loss_of(rule, hits, fired, true, episodes):
    alarms, misses = fired - hits, true - hits
    if rule.kind == "false_alarms":
        return misses if alarms <= rule.value * episodes else np.inf
    if rule.kind == "early":
        return misses if alarms <= rule.value * fired else np.inf
    if rule.kind == "cost":
        return rule.value * misses + alarms
    return 1 - 2 * hits / max(fired + true, 1)


@given(SEEDS, st.sampled_from(RULES))
def test_a_rule_picks_what_brute_force_over_all_thresholds_finds_best(seed, rule):
    scores, ends = made_up(seed)
    collar, delay = window_of(rule)
    best = pick(deployed_sweep(scores, ends, collar, delay=delay), rule)

    def outcome(threshold):
        fired = [replay(each, Rule(threshold)).fired for each in scores]
        hits = sum(len(match(each, np.flatnonzero(true) + delay, collar)) for each, true in zip(fired, ends, strict=True))
        total = sum(each.size for each in fired)
        return loss_of(rule, hits, total, sum(each.sum() for each in ends), len(ends)), total - hits

    every = [2.0, *np.unique(np.concatenate([each[~np.isnan(each)] for each in scores]))]
    assert outcome(best.threshold) == pytest.approx(min(map(outcome, every)))
    assert (best.loss, best.false_alarms) == pytest.approx(outcome(best.threshold))


def test_worked_rules():
    # Two episodes, five true ends; from above: nothing, sure, fair, eager
    sweep = Sweep(
        np.array([0.9, 0.7, 0.5, 0.3]), np.array([[0, 1, 2, 2], [0, 1, 2, 3]]), np.array([[0, 1, 3, 9], [0, 1, 2, 9]]), np.array([2, 3])
    )
    assert pick(sweep, OperatingRule("false_alarms", 0)) == Pick(3, 0, 0.7)
    assert pick(sweep, OperatingRule("false_alarms", 0.5)) == Pick(1, 1, 0.5)
    assert pick(sweep, OperatingRule("false_alarms", 7)) == Pick(0, 13, 0.3)
    assert pick(sweep, OperatingRule("f1", 2)) == Pick(pytest.approx(0.2), 1, 0.5)
    assert pick(sweep, OperatingRule("early", 0.2)) == Pick(1, 1, 0.5)
    assert pick(sweep, OperatingRule("early", 0.1)) == Pick(3, 0, 0.7)
    assert pick(sweep, OperatingRule("cost", 0.1)) == Pick(pytest.approx(0.3), 0, 0.7)
    assert pick(sweep, OperatingRule("cost", 20)) == Pick(13, 13, 0.3)
    with pytest.raises(ValueError, match="expected false_alarms, f1, cost or early, got fixed"):
        pick(sweep, OperatingRule("fixed"))


def test_of_equally_good_thresholds_the_one_with_fewest_false_alarms_and_then_the_middle_one():
    true, hits = np.array([1]), np.array([[0, 1, 1, 1, 1]])
    sweep = Sweep(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), hits, np.array([[0, 1, 1, 1, 2]]), true)
    assert pick(sweep, OperatingRule("false_alarms", 5)).threshold == 0.7


def test_windows():
    assert [window_of(rule) for rule in RULES] == [(2, 0), (2, 0), (1, 0), (2, 0), (1, 1)]


@pytest.mark.parametrize(("step", "hit"), [(3, False), (4, True), (6, True), (7, False)])
def test_in_the_loop_a_firing_is_a_hit_up_to_two_steps_after_the_end_and_never_before(step, hit):
    ends, scores = np.arange(12) == 4, np.where(np.arange(12) == step, 0.9, 0.1)
    collar, delay = window_of(OperatingRule("early", 0))
    for sweep in (
        deployed_sweep([scores[:, None]], [ends], collar, delay=delay),
        dense_sweep([ScoredEpisode("", scores, ends)], collar, delay=delay),
    ):
        at = np.flatnonzero(sweep.thresholds > 0.2)[-1]
        assert (sweep.hits[0, at], sweep.fired[0, at]) == (hit, 1)


def test_options_are_bounded_by_the_substeps_of_training():
    ends = np.zeros(100, bool)
    ends[[9, 29, 69]] = True  # 10, 20 and 40 steps long; what follows the last end is no sub-step
    grid = option_grid([ends, ends])
    assert grid[0] == Rule(0.0)
    combinations = itertools.product((1, 2, 3), (1, 10), (None, 40), (False, True))
    assert {(each.debounce, each.min_steps, each.time_out, each.cumulative) for each in grid} == set(combinations)
    at_once = np.ones(5, bool)
    assert {each.min_steps for each in option_grid([at_once])} == {1}


def test_an_end_that_is_spread_over_a_chunk_is_found_cumulatively():
    """The head knows that the chunk has an end, but not at which slot: two chunks say .3 three times, one of them .6 where nothing ends."""
    scores, ends = np.full((32, 8), 0.01), np.zeros(32, bool)
    ends[[15, 31]] = True
    scores[8, 5:] = scores[24, 5:] = 0.3
    scores[16, 2] = 0.6
    options = [Rule(0.0), Rule(0.0, cumulative=True)]
    found = tune([scores], [ends], OperatingRule("f1", 2), options)
    assert found.cumulative
    assert 1 - 0.99**7 * 0.4 < found.threshold < 1 - 0.99**5 * 0.7**3
    assert replay(scores, found).fired.tolist() == [15, 31]


def test_tuning_takes_an_option_only_if_it_helps():
    quiet, ends = np.full((30, 1), 0.1), np.zeros(30, bool)
    ends[[14, 29]] = True
    clear = quiet.copy()
    clear[ends] = 0.9
    options = [Rule(0.0), Rule(0.0, debounce=2), Rule(0.0, min_steps=10), Rule(0.0, time_out=15)]

    def tuned(scores):
        found = tune([scores], [ends], OperatingRule("f1", 0), options)
        return found.debounce, found.min_steps, found.time_out

    assert tuned(clear) == (1, 1, None)
    flicker = clear.copy()
    flicker[[3, 18]] = 0.95  # too early in their sub-steps to be ends
    assert tuned(flicker) == (1, 10, None)
    assert tuned(quiet) == (1, 1, 15)
    assert tune([clear], [ends], OperatingRule("f1", 0), options).threshold == 0.5
