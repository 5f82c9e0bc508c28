"""Intervals against the percentiles of drawn episodes."""

import numpy as np
import pytest

from eosjax.ends.bootstrap import bootstrap


def test_intervals_are_percentiles_over_drawn_episodes():
    values = np.random.default_rng(1).normal(size=20)

    def metrics(weights):
        return {"mean": float(weights @ values / weights.sum()), "never": float("nan")}

    measured = bootstrap([metrics], 20, replicates=2000, seed=3)
    assert measured.values["mean"] == pytest.approx(values.mean())
    means = np.random.default_rng(0).choice(values, (20_000, 20)).mean(1)
    assert measured.intervals["mean"] == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.04)
    assert np.isnan(measured.intervals["never"]).all()
    assert bootstrap([metrics], 20, replicates=2000, seed=3).intervals["mean"] == measured.intervals["mean"]
    assert bootstrap([metrics], 20, replicates=2000, seed=4).intervals["mean"] != measured.intervals["mean"]
