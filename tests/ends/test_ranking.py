"""Curves against scikit-learn, weights against copies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from eosjax.ends.ranking import Ranking


def random_ranking(seed):
    """Some episodes of things with tied scores, shuffled, with positives that are not among them, and drawn weights."""
    rng = np.random.default_rng(seed)
    count, episodes = int(rng.integers(1, 60)), int(rng.integers(1, 5))
    scores, hits = rng.integers(0, 12, count) / 12, rng.random(count) < 0.3
    of = rng.integers(0, episodes, count)
    hits[0] = True
    positives = np.bincount(of, weights=hits, minlength=episodes).astype(int)
    weights = rng.integers(0, 4, episodes)
    weights[of[0]] += 1
    return scores, hits, of, positives, weights


@given(st.integers(0, 2**32 - 1))
def test_average_precision_is_scikit_learns_with_weights_as_with_copies(seed):
    scores, hits, of, positives, weights = random_ranking(seed)
    curve = Ranking.of(scores, hits, of, positives).curve(weights)
    copies = weights[of]
    expected = average_precision_score(np.repeat(hits, copies), np.repeat(scores, copies))
    assert curve.average_precision(interpolated=False) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_curve_is_scikit_learns(seed):
    scores, hits, of, positives, _ = random_ranking(seed)
    curve = Ranking.of(scores, hits, of, positives).curve(np.ones(positives.size, int))
    precision, recall, thresholds = precision_recall_curve(hits, scores)
    np.testing.assert_array_equal(curve.thresholds, thresholds[::-1])
    np.testing.assert_allclose(curve.precision, precision[-2::-1], atol=1e-12)
    np.testing.assert_allclose(curve.recall, recall[-2::-1], atol=1e-12)
    both = curve.precision + curve.recall
    np.testing.assert_allclose(
        curve.f1, np.where(both > 0, 2 * curve.precision * curve.recall / np.where(both > 0, both, 1), 0), atol=1e-12
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_interpolation_takes_the_best_precision_from_each_recall_on(seed, missed):
    scores, hits, of, positives, weights = random_ranking(seed)
    positives[0] += missed  # never among the things: precision 0 there
    curve = Ranking.of(scores, hits, of, positives).curve(weights)
    total = int(weights @ positives)
    points = list(zip(curve.hits.tolist(), curve.precision.tolist(), strict=True))
    expected = sum(max((precision for found, precision in points if found >= number), default=0) for number in range(1, total + 1)) / total
    assert curve.average_precision(interpolated=True) == pytest.approx(expected, abs=1e-12)


def test_without_positives_there_is_no_recall():
    curve = Ranking.of(np.array([0.5]), np.array([False]), np.array([0]), np.array([0])).curve(np.array([1]))
    assert np.isnan(curve.average_precision(interpolated=True))
    assert np.isnan(curve.recall).all()


def test_without_anything_fired_average_precision_is_zero():
    nothing = np.zeros(0)
    curve = Ranking.of(nothing, nothing.astype(bool), nothing.astype(int), np.array([3])).curve(np.array([1]))
    assert curve.average_precision(interpolated=True) == 0


def test_nan_has_no_rank():
    with pytest.raises(ValueError, match="got NaN"):
        Ranking.of(np.array([0.5, np.nan]), np.array([True, False]), np.array([0, 0]), np.array([1]))
