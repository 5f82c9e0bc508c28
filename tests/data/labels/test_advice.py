import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.data.labels.advice import advise_positives, explain_share, steps_to_first_update


@pytest.mark.parametrize(("share", "count"), [(0.001, 10), (0.0499, 10), (0.05, 15), (0.1, 15), (0.101, 20), (0.9, 20)])
def test_counts_are_the_advice_of_the_original(share, count):
    assert advise_positives(share).count == count


@pytest.mark.parametrize(("share", "expected"), [(1 / 64, 15), (1 / 32, 8), (0.5, 1), (63 / 64, 20)])
def test_first_update_waits_for_the_rarer_class(share, expected):
    """64 rows a step: 1, 2, 32 ends a step, and 1 other step a step."""
    assert steps_to_first_update(share, 64, min_positive=15, min_negative=20) == expected


def test_the_wait_is_that_of_a_buffer_that_is_filled():
    rows, share = 64, 0.03
    rng = np.random.default_rng(0)
    waits = []
    for _ in range(300):
        ends = others = steps = 0
        while ends < TrainConfig.eos_min_positive or others < TrainConfig.eos_min_negative:
            drawn = rng.binomial(rows, share)
            ends, others, steps = ends + drawn, others + rows - drawn, steps + 1
        waits.append(steps)
    assert np.mean(waits) == pytest.approx(steps_to_first_update(share, rows, 15, 20), abs=1)


def test_the_share_is_explained_in_one_line():
    text = explain_share(0.03125, 64, 15, 20, 50)
    assert text.startswith("3.12% of the training steps are ends: about 2.0 of the 64 rows of a step")
    assert "after about 8 step(s)" in text
    assert text.endswith("about 25 step(s)")
