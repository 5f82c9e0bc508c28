"""Both protocols of one policy side by side, never under the same name."""

import json

import numpy as np
import pytest

from eosjax.ends.calibration import Calibration
from eosjax.ends.measure import measure_decisions, measure_scores
from eosjax.ends.operating_points import cross_fit
from eosjax.reports.evaluation import PolicyEvaluation, reliability
from tests.ends.test_operating_points import EXACT, HOW, choose, made_up

EPISODES = made_up(noise=1.6)
POINT = choose(EPISODES, HOW)


def report(without=()):
    baselines = {"blind": [POINT.dense(each)._replace(scores=np.zeros(60)) for each in EPISODES]}
    return PolicyEvaluation.of("title", EPISODES, POINT, without, baselines, replicates=30)


def test_figures_of_each_protocol_stand_under_its_own_name():
    content = json.loads(json.dumps(report().to_json(), allow_nan=False))
    dense = measure_scores([POINT.dense(each) for each in EPISODES], POINT.dense_threshold, replicates=30)
    deployed = measure_decisions([POINT.deployed(each) for each in EPISODES], replicates=30)
    for measured, prefix in ((dense, ""), (deployed, "deployed/")):
        for name, value in measured.values.items():
            assert content[prefix + name] == value
            assert content["intervals_95"][prefix + name] == list(measured.intervals[name])
    assert content["event/f1@2"] != content["deployed/event/f1@2"]
    assert not any(name.startswith("deployed_cross_fitted/") for name in content)
    assert content["methods"]["blind"]["event/ap@2"] == 0
    assert content["operating_point"] == POINT.to_json()
    assert content["about"]["title"] == "title"


def test_points_chosen_without_the_episode_are_told_beside():
    without = cross_fit(EPISODES, HOW)
    made = report(without)
    expected = measure_decisions([at.deployed(each) for at, each in zip(without, EPISODES, strict=True)], replicates=0).values
    assert made.to_json()["deployed_cross_fitted/event/recall@4"] == expected["event/recall@4"]
    assert f"F1 {expected['event/f1@2']:.3f} [" in made.deployed_sentence()
    assert "chosen without the episode" not in report().deployed_sentence()


def test_reliability_is_that_of_single_chunks():
    rows = reliability(EPISODES, POINT.calibration)
    votes = [each.votes for each in EPISODES]
    logits, ends = (np.concatenate(column) for column in zip(*votes, strict=True))
    for name, kind in (("raw", Calibration()), ("exactly corrected", EXACT), ("calibrated", POINT.calibration)):
        right = np.where(ends, kind.probabilities(logits), kind.probabilities(-logits) if name == "raw" else 1 - kind.probabilities(logits))
        assert rows[name][0] == pytest.approx(-np.mean(np.log(right)), rel=1e-9)
    assert rows["calibrated"][0] < rows["exactly corrected"][0]
    assert rows["calibrated"][1] < rows["exactly corrected"][1]
    assert report().reliability_rows()[3] == ("calibrated", f"{rows['calibrated'][0]:.4f}", f"{rows['calibrated'][1]:.4f}")
