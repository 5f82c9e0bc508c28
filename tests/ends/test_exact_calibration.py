"""The exact correction of each way to train the head."""

import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.ends.calibration import Calibration, exact_calibration, trained_prior
from eosjax.losses import FRESH_LOSSES

SHARE = 0.0124


def logit(p):
    return float(np.log(p / (1 - p)))


def test_the_default_is_the_worked_case():
    calibration = exact_calibration(TrainConfig(), SHARE)
    assert trained_prior(TrainConfig(), SHARE) == 15 / 35
    assert calibration.probabilities(0.0) == pytest.approx(0.0165, abs=5e-5)
    assert exact_calibration(TrainConfig(eos_sample_positive=20, eos_min_positive=20), SHARE).shift == pytest.approx(logit(SHARE))


@pytest.mark.parametrize("kind", FRESH_LOSSES)
@pytest.mark.parametrize("truth", [0.004, 0.1, 0.7])
def test_it_undoes_what_the_loss_does(kind, truth):
    """At the logit where the loss itself, as it is trained with, is minimal in the mean, the probability is the truth."""
    z = np.linspace(-14, 14, 28_001)
    ends, others = (np.asarray(FRESH_LOSSES[kind](z, np.full(z.shape, label), logit(SHARE)), np.float64) for label in (1.0, 0.0))
    best = z[np.argmin(truth * ends + (1 - truth) * others)]
    config = TrainConfig(eos_loss=kind)
    assert trained_prior(config, SHARE) == SHARE
    assert exact_calibration(config, SHARE).probabilities(best) == pytest.approx(truth, rel=0.02)


def test_plain_cross_entropy_needs_none():
    assert exact_calibration(TrainConfig(eos_loss="bce"), SHARE) == Calibration()
