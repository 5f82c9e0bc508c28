"""What is told of a buffer, against other ways to tell it."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from eosjax.bench import probes


def test_class_from_age_is_the_roc_area():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 40), rng.integers(0, 4, 30)
    labels, ages = np.repeat([1, 0], [40, 30]), np.concatenate([positive, negative])
    assert probes.class_from_age(positive, negative) == pytest.approx(roc_auc_score(labels, ages))
    assert np.isnan(probes.class_from_age(positive, negative[:0]))


def test_age_from_hidden_finds_a_drift_and_no_other():
    rng = np.random.default_rng(0)
    ages = np.repeat(np.arange(60), 4)
    noise = rng.standard_normal((ages.size, 2, 3))
    assert probes.age_from_hidden(noise + 0.1 * ages[:, None, None], ages) > 0.95
    assert abs(probes.age_from_hidden(noise, ages) - 0.5) < 0.15
    # rows that entered together are alike: to know them by heart must not count
    together = rng.standard_normal((60, 2, 30))[ages]
    assert abs(probes.age_from_hidden(together, ages) - 0.5) < 0.2
    assert np.isnan(probes.age_from_hidden(noise, np.zeros(ages.size, np.int64)))
    assert np.isnan(probes.age_from_hidden(noise[:0], ages[:0]))


def test_class_balanced_loss_weighs_the_classes():
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.standard_normal(50), rng.random(50) < 0.2
    weights = np.where(labels, 0.4 / labels.sum(), 0.6 / (~labels).sum())
    assert probes.class_balanced_loss(logits, labels, 0.4) == pytest.approx(
        log_loss(labels, 1 / (1 + np.exp(-logits)), sample_weight=weights)
    )
    assert np.isnan(probes.class_balanced_loss(logits, np.ones(50, bool), 0.4))


def test_drift_is_relative_and_a_mean_over_rows():
    now = np.array([[[3.0, 4.0]], [[0.0, 2.0]]])
    assert probes.drift(now, now) == 0
    assert probes.drift(now, np.array([[[3.0, 3.0]], [[0.0, 0.0]]])) == pytest.approx((1 / 5 + 1) / 2)
