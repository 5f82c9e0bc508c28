"""Quantiles of latency, as Prometheus computes them of what a server counts."""

import re

import numpy as np
import pytest

from eosjax.serving.chunk import Chunk
from eosjax.serving.inference import Answer
from eosjax.serving.metrics import Metrics


def histogram_quantile(share, text, part):
    """The function of Prometheus: linear within the bucket that holds the quantile."""
    pattern = rf'^eosjax_request_seconds_bucket{{le="([^"]+)",part="{part}"}} (\S+)$'
    buckets = [(float(limit), float(count)) for limit, count in re.findall(pattern, text, re.MULTILINE)]
    rank = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for limit, count in buckets:
        if count >= rank:
            return low + (limit - low) * (rank - below) / (count - below)
        low, below = limit, count
    raise AssertionError


@pytest.mark.parametrize("centre", [0.002, 0.04, 0.7])
def test_quantiles_are_within_a_quarter(centre):
    seconds = np.random.default_rng(0).lognormal(np.log(centre), 0.5, 2000).clip(0.001, 10)
    metrics = Metrics(lambda: 0)
    for each in seconds.tolist():
        metrics.answered(Answer(Chunk(np.zeros((1, 1)), None), 0.0, each / 2, 1), None, each)
    text = metrics.text().decode()
    for share in (0.5, 0.9, 0.99):
        exact = float(np.quantile(seconds, share))
        for part, expected in (("total", exact), ("networks", exact / 2)):
            assert max(expected, 0.0012) / 1.25 <= histogram_quantile(share, text, part) <= max(expected, 0.0008) * 1.25
