"""Prior shift: worked numbers, and Bayes' rule on counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.evaluation.calibration import corrected_probability, prior_shift


def logit(p):
    return np.log(p / (1 - p))


@pytest.mark.parametrize(("raw", "corrected", "tolerance"), [(0.984, 0.5, 0.01), (0.5, 0.0165, 5e-5), (0.03, 0.00052, 5e-6)])
def test_worked_numbers_for_15_of_35_and_a_true_share_of_1_24_percent(raw, corrected, tolerance):
    assert corrected_probability(logit(raw), 15 / 35, 0.0124) == pytest.approx(corrected, abs=tolerance)


SHARES = st.floats(1e-4, 1 - 1e-4)


@settings(deadline=None, derandomize=True)
@given(SHARES, SHARES, st.floats(1e-3, 1e3))
def test_it_is_bayes_rule_with_another_prior(trained, true, likelihood_ratio):
    def posterior(prior):
        return likelihood_ratio * prior / (likelihood_ratio * prior + 1 - prior)

    assert corrected_probability(logit(posterior(trained)), trained, true) == pytest.approx(posterior(true), rel=1e-6)


@pytest.mark.parametrize("shares", [(0.0, 0.5), (0.5, 1.0), (float("nan"), 0.5)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        prior_shift(*shares)
