"""Both protocols against plain loops, and each decision option on its own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.ends.protocols import Clock, Rule, RuleError, cut_chunk, merge_votes, replay

HALF = Rule(0.5)


def chunks(per_step, k):
    """Every anchor says the same about a step; NaN past the episode, which must not be read."""
    padded = np.concatenate([per_step, np.full(k, np.nan)])
    return np.stack([padded[step : step + k] for step in range(len(per_step))])


def scores_at(crossings, length):
    scores = np.zeros(length)
    scores[list(crossings)] = 1.0
    return scores


def test_the_first_crossing_cuts_the_chunk_and_the_clock_jumps_behind_it():
    played = replay(chunks(scores_at([5, 6, 13], 20), k=4), HALF)
    assert played.anchors.tolist() == [0, 4, 6, 7, 11, 14, 18]
    assert played.fired.tolist() == [5, 6, 13]
    assert not played.timed_out.any()


def test_only_what_the_policy_says_where_it_plans_counts():
    scores = np.zeros((12, 4))
    scores[5] = 1.0  # step 5 is inside the chunk planned at 4: never asked
    assert replay(scores, HALF).fired.tolist() == []
    scores[4, 2] = 1.0
    assert replay(scores, HALF).fired.tolist() == [6]


def test_a_score_at_the_threshold_is_a_crossing():
    assert replay(np.full((1, 1), 0.5), HALF).fired.tolist() == [0]
    assert replay(np.full((1, 1), np.nextafter(0.5, 0)), HALF).fired.tolist() == []


def test_debounce_wants_a_row_that_may_run_on_into_the_next_chunk():
    scores = chunks(scores_at([1, 3, 4, 9, 10, 11], 16), k=4)  # 3 and 4 lie in two chunks
    assert replay(scores, Rule(0.5, debounce=2)).fired.tolist() == [4, 10]
    assert replay(scores, Rule(0.5, debounce=3)).fired.tolist() == [11]
    assert replay(scores, Rule(0.5, debounce=4)).fired.tolist() == []


def test_no_substep_is_shorter_than_the_least():
    scores = chunks(np.ones(12), k=5)
    assert replay(scores, Rule(0.5, min_steps=4)).fired.tolist() == [3, 7, 11]
    assert replay(chunks(scores_at([2, 6], 8), k=8), Rule(0.5, min_steps=4)).fired.tolist() == [6]


def test_time_out_ends_what_no_crossing_ends():
    played = replay(chunks(scores_at([2], 14), k=4), Rule(0.5, time_out=5))
    assert played.fired.tolist() == [2, 7, 12]
    assert played.timed_out.tolist() == [False, True, True]
    at_once = replay(chunks(scores_at([4], 6), k=4), Rule(0.5, time_out=5))
    assert (at_once.fired.tolist(), at_once.timed_out.tolist()) == ([4], [False])  # seen in the same step: not timed out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"debounce": 0}, "debounce: expected 1 step or more, got 0"),
        ({"min_steps": 0}, "min_steps: expected 1 step or more, got 0"),
        ({"min_steps": 5, "time_out": 4}, r"time_out: expected min_steps \(5\) or more, got 4"),
        ({"threshold": float("nan")}, "threshold: expected a number, got NaN"),
    ],
)
def test_rules_that_make_no_sense(options, why):
    with pytest.raises(RuleError, match=why):
        Rule(**{"threshold": 0.5} | options)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 6),
    st.none() | st.integers(6, 12),
    st.booleans(),
)
def test_replay_is_a_robot_that_is_asked_step_by_step(seed, length, k, debounce, min_steps, time_out, cumulative):
    scores = np.random.default_rng(seed).random((length, k))
    rule = Rule(0.6, debounce, min_steps, time_out, cumulative)
    plan, fired, anchors, lasted, row = [], [], [], 0, 0
    for step in range(length):
        if not plan:
            plan, goes_on = list(scores[step]), 1.0
            anchors.append(step)
        lasted += 1
        score = plan.pop(0)
        goes_on *= 1 - score
        row = row + 1 if (1 - goes_on if cumulative else score) >= 0.6 else 0
        if (row >= debounce and lasted >= min_steps) or lasted == time_out:
            fired.append(step)
            plan, lasted, row = [], 0, 0
    played = replay(scores, rule)
    assert played.fired.tolist() == fired
    assert played.anchors.tolist() == anchors


def test_the_clock_of_a_chunk_without_an_end_goes_on():
    assert cut_chunk(np.array([0.0, 1.0, 1.0]), Rule(0.5, debounce=3), Clock(4, 0)) == (None, False, Clock(7, 2))
    assert cut_chunk(np.array([1.0, 1.0]), Rule(0.5, debounce=3), Clock(7, 2)) == (0, False, Clock(0, 0))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6))
def test_votes_are_averaged_step_by_step(seed, length, k):
    logits = np.random.default_rng(seed).normal(size=(length, k))
    votes = [[logits[anchor, step - anchor] for anchor in range(length) if 0 <= step - anchor < k] for step in range(length)]
    for anchor in range(length):
        logits[anchor, length - anchor :] = np.nan  # past the episode
    np.testing.assert_allclose(merge_votes(logits), [np.mean(vote) for vote in votes], rtol=1e-12)
