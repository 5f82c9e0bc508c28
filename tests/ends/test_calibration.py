"""Worked numbers; each exact correction against the numerical minimiser of its loss; the fit against scikit-learn."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from eosjax.config import TrainConfig
from eosjax.ends.calibration import (
    Calibration,
    adjustment_shift,
    exact_calibration,
    focal_logit,
    prior_shift,
    sigmoid,
    trained_prior,
    weight_shift,
)
from eosjax.losses import FRESH_LOSSES

SHARE = 0.0124  # of ends


def logit(p):
    return np.log(p / (1 - p))


@pytest.mark.parametrize(("raw", "corrected", "tolerance"), [(0.984, 0.5, 0.01), (0.5, 0.0165, 5e-5), (0.03, 0.00052, 5e-6)])
def test_worked_numbers_for_15_of_35_and_a_true_share_of_1_24_percent(raw, corrected, tolerance):
    calibration = Calibration(shift=prior_shift(15 / 35, 0.0124))
    assert calibration.probabilities(logit(raw)) == pytest.approx(corrected, abs=tolerance)


SHARES = st.floats(1e-4, 1 - 1e-4)


@given(SHARES, SHARES, st.floats(1e-3, 1e3))
def test_the_prior_shift_is_bayes_rule_with_another_prior(trained, true, likelihood_ratio):
    def posterior(prior):
        return likelihood_ratio * prior / (likelihood_ratio * prior + 1 - prior)

    said = Calibration(shift=prior_shift(trained, true)).probabilities(logit(posterior(trained)))
    assert said == pytest.approx(posterior(true), rel=1e-6)


def minimiser(loss, truth):
    """The logit that minimises the expected loss(z, label) where the label is 1 with probability `truth`: bisection on its derivative."""
    low, high = -40.0, 40.0
    for _ in range(80):
        z, small = (low + high) / 2, 1e-5
        ends, others = (loss(z + small, label) - loss(z - small, label) for label in (1, 0))
        low, high = (z, high) if truth * ends + (1 - truth) * others < 0 else (low, z)
    return (low + high) / 2


def bce(z, label):
    return np.logaddexp(0, -z if label else z)


def focal(gamma):
    return lambda z, label: sigmoid(np.float64(-z if label else z)) ** gamma * bce(z, label)


@pytest.mark.parametrize("truth", [0.003, 0.03, 0.4, 0.9])
@pytest.mark.parametrize(
    ("loss", "calibration"),
    [
        (bce, Calibration()),
        (lambda z, label: bce(z, label) * (30 if label else 1), Calibration(shift=weight_shift(30))),
        (lambda z, label: bce(z + logit(0.03), label), Calibration(shift=adjustment_shift(0.03))),
        (focal(2.0), Calibration(gamma=2.0)),
        (focal(0.5), Calibration(gamma=0.5)),
        (lambda z, label: focal(2.0)(z, label) * (0.25 if label else 0.75), Calibration(gamma=2.0, shift=weight_shift(0.25 / 0.75))),
    ],
    ids=["bce", "pos_weight", "logit_adjust", "focal", "focal 0.5", "focal with alpha"],
)
def test_each_correction_recovers_the_truth_from_what_its_loss_is_minimal_at(loss, calibration, truth):
    assert calibration.probabilities(minimiser(loss, truth)) == pytest.approx(truth, rel=1e-4)


def test_a_head_of_balanced_draws_recovers_the_truth():
    truth, share, trained = 0.2, 0.03, 15 / 35
    # Among drawn rows ends are more frequent by the ratio of the shares, others less by that of theirs.
    ends, others = truth * trained / share, (1 - truth) * (1 - trained) / (1 - share)
    said = Calibration(shift=prior_shift(trained, share)).probabilities(minimiser(bce, ends / (ends + others)))
    assert said == pytest.approx(truth, rel=1e-4)


@given(st.lists(st.floats(-700, 700), min_size=2, max_size=9, unique=True), st.floats(0, 8))
@example([-700.0, 700.0], 2.0)
def test_the_inverse_of_the_focal_loss_rises_is_odd_and_finite(values, gamma):
    raw = np.sort(values)
    found = focal_logit(raw, gamma)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose(focal_logit(-raw, gamma), -found, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(focal_logit(raw, 0), raw)


def noisy(seed, scale, bias, rows=4000):
    """Scores, and ends that come with the probability sigmoid(scale * score + bias)."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(-3, 2, rows)
    return scores, rng.random(rows) < sigmoid(scale * scores + bias)


@pytest.mark.parametrize(("seed", "scale", "bias"), [(0, 1.0, 0.0), (1, 0.5, -1.0), (2, 3.0, 2.0)])
def test_the_fit_is_logistic_regression_without_penalty(seed, scale, bias):
    scores, ends = noisy(seed, scale, bias)
    found = Calibration(shift=0.7).fit(scores, ends)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(scores[:, None], ends)
    assert found.scale == pytest.approx(oracle.coef_[0, 0], rel=1e-5)
    assert found.bias + found.scale * 0.7 == pytest.approx(oracle.intercept_[0], rel=1e-4, abs=1e-4)
    assert found.probabilities(scores).mean() == pytest.approx(ends.mean())
    assert found.note == f"fitted on {ends.sum()} ends in 4,000 rows"


def test_the_fit_stands_on_the_inverse_of_the_focal_loss():
    scores, ends = noisy(3, 1.0, 0.0)
    found = Calibration(gamma=2.0).fit(scores, ends)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(focal_logit(scores, 2.0)[:, None], ends)
    np.testing.assert_allclose(found.probabilities(scores), oracle.predict_proba(focal_logit(scores, 2.0)[:, None])[:, 1], rtol=1e-4)


SCORES = np.linspace(-3, 3, 60)


@pytest.mark.parametrize(
    ("ends", "distinct", "why"),
    [
        (np.zeros(60, bool), None, "not fitted: 0 ends in 60 rows"),
        (np.arange(60) % 7 == 0, None, "not fitted: 9 ends in 60 rows, 10 of each class are needed"),
        (np.arange(60) % 2 == 0, 5, "not fitted: 5 ends in 60 rows"),
        (np.arange(60) % 7 > 0, None, "10 of each class are needed"),
        (np.arange(60) >= 40, None, "do not overlap"),
        (np.arange(60) < 20, None, "do not overlap"),
        ((np.arange(60) < 40) ^ (np.arange(60) % 3 == 0), None, "lower where ends are"),
    ],
)
def test_where_no_fit_can_be_trusted_the_exact_part_is_left(ends, distinct, why):
    exact = Calibration(shift=-3.0, gamma=1.0)
    found = exact.fit(SCORES, ends, distinct)
    assert why in found.note
    assert found.exact == exact
    assert (found.scale, found.bias) == (1, 0)


def test_equal_scores_do_not_overlap():
    assert "do not overlap" in Calibration().fit(np.zeros(60), np.arange(60) % 2 == 0).note


def test_a_fit_replaces_the_one_before():
    scores, ends = noisy(0, 1.0, 0.0)
    exact = Calibration(shift=-1.0)
    assert exact.fit(scores, ends).fit(scores, ends) == exact.fit(scores, ends)


@pytest.mark.parametrize("shares", [(0.0, 0.5), (0.5, 1.0), (float("nan"), 0.5)])
def test_numbers_that_make_no_sense_are_refused(shares):
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        prior_shift(*shares)
    with pytest.raises(ValueError, match="positive_weight: expected a number above 0, got 0"):
        weight_shift(0)
    with pytest.raises(ValueError, match="gamma: expected a number from 0 on, got -1"):
        focal_logit(np.zeros(1), -1)


def test_the_exact_calibration_of_the_default_is_the_worked_case():
    calibration = exact_calibration(TrainConfig(), SHARE)
    assert trained_prior(TrainConfig(), SHARE) == 15 / 35
    assert exact_calibration(TrainConfig(eos_loss="buffer_fresh"), SHARE) == calibration
    assert calibration.probabilities(0.0) == pytest.approx(0.0165, abs=5e-5)
    assert exact_calibration(TrainConfig(eos_sample_positive=20, eos_min_positive=20), SHARE).shift == pytest.approx(logit(SHARE))


@pytest.mark.parametrize("kind", FRESH_LOSSES)
@pytest.mark.parametrize("truth", [0.004, 0.1, 0.7])
def test_the_exact_calibration_of_a_run_undoes_its_loss(kind, truth):
    """At the logit where the loss itself, as it is trained with, is minimal in the mean, the probability is the truth."""
    z = np.linspace(-14, 14, 28_001)
    ends, others = (np.asarray(FRESH_LOSSES[kind](z, np.full(z.shape, label), logit(SHARE)), np.float64) for label in (1.0, 0.0))
    best = z[np.argmin(truth * ends + (1 - truth) * others)]
    config = TrainConfig(eos_loss=kind)
    assert trained_prior(config, SHARE) == SHARE
    assert exact_calibration(config, SHARE).probabilities(best) == pytest.approx(truth, rel=0.02)


def test_plain_cross_entropy_needs_no_correction():
    assert exact_calibration(TrainConfig(eos_loss="bce"), SHARE) == Calibration()
