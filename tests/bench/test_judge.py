"""Chosen on one half, measured on the other."""

import numpy as np
import pytest

from eosjax.bench.feeds import Split
from eosjax.bench.judge import CHANCE, Judge, mean_figures, pooled, spread
from eosjax.ends.calibration import Calibration
from tests.hidden import CHUNK, make_columns

COLUMNS = make_columns(30)


@pytest.fixture(scope="module")
def judge():
    held_out = np.flatnonzero(COLUMNS.held_out)
    return Judge(COLUMNS, Split(np.flatnonzero(~COLUMNS.held_out), held_out[::2], held_out[1::2]), CHUNK)


def once(judge, figures):
    return figures(np.ones(judge.split.test.size, np.int64))


def truth(judge):
    """bool [m]: whether each of the rows that a head is asked about is an end."""
    return COLUMNS.labels(CHUNK).reshape(-1)[judge.numbers]


def of_test(judge):
    """bool [m]: whether each row is of the test episodes."""
    return np.isin(COLUMNS.episode_of[judge.numbers // CHUNK], judge.split.test)


def test_rows_are_whole_chunks_of_both_halves(judge):
    frames = np.concatenate([COLUMNS.frames_of(judge.split.val), COLUMNS.frames_of(judge.split.test)])
    assert np.array_equal(judge.numbers.reshape(-1, CHUNK), frames[:, None] * CHUNK + np.arange(CHUNK))


def test_a_perfect_head_is_perfect_in_both_protocols(judge):
    found = once(judge, judge.head(np.where(truth(judge), 8.0, -8.0), Calibration()).figures)
    for name in ("event/f1@2", "event/ap@2", "frame/average_precision", "deployed/event/f1@2"):
        assert found[name] == 1
    assert found["deployed/event/delay_median"] == 0


def test_thresholds_and_calibration_come_from_the_validation_half_alone(judge):
    rng = np.random.default_rng(0)
    logits = 2.0 * truth(judge) + rng.standard_normal(judge.numbers.size)
    first = judge.head(logits, Calibration())
    changed = np.where(of_test(judge), -5 * logits + 1, logits)
    second = judge.head(changed, Calibration())
    assert (first.threshold, first.deployed_threshold, first.calibration) == (
        second.threshold,
        second.deployed_threshold,
        second.calibration,
    )
    assert once(judge, first.figures) != once(judge, second.figures)
    third = judge.head(np.where(of_test(judge), logits, 2 * logits), Calibration())
    assert third.calibration != first.calibration


def test_calibration_mends_what_is_said_and_leaves_the_ranks(judge):
    logits = 2.0 * truth(judge) + np.random.default_rng(0).standard_normal(judge.numbers.size)
    plain, shifted = (judge.head(logits + shift, Calibration()) for shift in (0, 4))
    before, after = once(judge, plain.figures), once(judge, shifted.figures)
    assert after["exact/frame/nll"] > before["exact/frame/nll"] + 0.5
    assert after["frame/nll"] == pytest.approx(before["frame/nll"], abs=1e-6)
    assert after["frame/nll"] < after["exact/frame/nll"]
    assert after["event/ap@2"] == pytest.approx(before["event/ap@2"])
    undone = judge.head(logits + 4, Calibration(shift=-4.0))
    assert once(judge, undone.figures)["exact/frame/nll"] == pytest.approx(before["exact/frame/nll"])


def test_baselines_are_measured_like_heads(judge):
    baselines = {name: once(judge, figures) for name, figures in judge.baselines().items()}
    assert baselines["oracle"]["frame/average_precision"] == 1
    assert baselines["always off"]["event/recall@2"] == 0
    assert baselines[CHANCE]["frame/average_precision"] < 0.4
    assert len(baselines) == 7


def test_pooled_is_the_mean_over_heads_and_resamples_episodes_for_all_alike():
    values = np.array([0.2, 0.6, 0.7])

    def head(offset):
        return lambda weights: {"x": float(weights @ values / weights.sum() + offset), "y": float("nan")}

    same = pooled([head(0.0), head(0.0)], 3, replicates=200)
    apart = pooled([head(-0.1), head(0.1)], 3, replicates=200)
    assert apart.values["x"] == pytest.approx(0.5)
    assert np.isnan(apart.values["y"])
    assert apart.intervals["x"] == pytest.approx(same.intervals["x"])
    assert same.intervals["x"][0] < 0.5 < same.intervals["x"][1]


def test_means_and_spreads_leave_out_what_is_not_defined():
    rows = [{"a": 1.0, "b": float("nan")}, {"a": 3.0, "b": 2.0}]
    assert mean_figures(rows) == {"a": 2.0, "b": 2.0}
    assert spread(rows)["a"] == pytest.approx(np.sqrt(2))
    assert np.isnan(spread(rows)["b"])
