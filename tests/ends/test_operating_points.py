"""Choosing an operating point: what is fitted, what is picked, what comes back from a file, and that no episode judges itself."""

import dataclasses
import json

import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.ends.calibration import Calibration, prior_shift, sigmoid
from eosjax.ends.measure import measure_decisions, measure_scores
from eosjax.ends.operating_points import OperatingPoint, Selection, choose, cross_fit, selection
from eosjax.ends.protocols import ChunkedEpisode, Rule, merge_votes, replay
from eosjax.ends.sweeps import dense_sweep, deployed_sweep, pick
from eosjax.flag_values import OperatingRule

EXACT = Calibration(shift=prior_shift(15 / 35, 0.05))
HOW = Selection(EXACT, OperatingRule("f1", 2))


def made_up(seed=0, count=8, noise=1.0):
    """Episodes with raw logits of two Gaussians, of ends and others, 7 apart; what lies past the episode would fire."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(count):
        ends = np.zeros(60, bool)
        ends[np.cumsum(rng.integers(8, 18, size=3))] = True
        step = np.add.outer(np.arange(60), np.arange(5))
        padded = np.concatenate([ends, np.zeros(5, bool)])
        logits = 2 * (rng.normal(-4, noise, step.shape) + 3.5 * padded[step]) - EXACT.shift
        episodes.append(ChunkedEpisode(f"episode {number}", np.where(step < 60, logits, 99.0), ends))
    return episodes


def f1_deployed(episodes, points):
    decisions = [point.deployed(each) for point, each in zip(points, episodes, strict=True)]
    return measure_decisions(decisions, replicates=0).values["event/f1@2"]


def test_the_point_is_a_fit_and_the_pick_of_each_protocol():
    episodes = made_up()
    point = choose(episodes, dataclasses.replace(HOW, threshold=0.9))
    votes = [each.votes for each in episodes]
    logits, ends = (np.concatenate(column) for column in zip(*votes, strict=True))
    assert logits.size == 8 * (60 * 5 - 4 - 3 - 2 - 1)
    assert point.calibration == EXACT.fit(logits, ends, 24)
    assert point.calibration.scale == pytest.approx(7 / 2**2, rel=0.1)  # as the log-odds of two Gaussians of deviation 2 rise
    probabilities = [point.calibration.probabilities(each.logits) for each in episodes]
    truth = [each.ends for each in episodes]
    assert point.rule == Rule(pick(deployed_sweep(probabilities, truth, 2), HOW.rule).threshold)
    assert point.dense_threshold == pick(dense_sweep([point.dense(each) for each in episodes], 2), HOW.rule).threshold
    assert point.plain_threshold == point.rule.threshold
    assert (point.chosen_by, point.episodes) == ("f1:2", 8)


def test_figures_at_the_point_are_the_best_of_all_thresholds():
    episodes = made_up(noise=1.6)
    point = choose(episodes, HOW)
    best = f1_deployed(episodes, [point] * 8)
    assert best > 0.5
    others = np.linspace(0.001, 0.999, 37)
    assert all(f1_deployed(episodes, [point.at(threshold)] * 8) <= best + 1e-12 for threshold in others)
    scored = [point.dense(each) for each in episodes]
    dense = [measure_scores(scored, threshold, replicates=0).values["event/f1@2"] for threshold in (point.dense_threshold, *others)]
    assert max(dense) == dense[0]


def test_protocols_read_calibrated_probabilities():
    (episode,) = made_up(count=1)
    point = OperatingPoint(Calibration(shift=-1.0, scale=0.5, bias=0.2), Rule(0.3, debounce=2), 0.5, 0.4)
    logits = 0.5 * (episode.logits - 1) + 0.2
    np.testing.assert_allclose(point.dense(episode).scores, sigmoid(merge_votes(logits)))
    found = point.deployed(episode)
    assert found.fired.tolist() == replay(sigmoid(logits), Rule(0.3, debounce=2)).fired.tolist()
    assert (found.true.tolist(), found.steps) == (np.flatnonzero(episode.ends).tolist(), 60)


def test_fixed_takes_the_threshold_as_it_is():
    point = choose(made_up(), Selection(EXACT, OperatingRule("fixed"), 0.7))
    assert (point.rule, point.plain_threshold, point.dense_threshold, point.chosen_by) == (Rule(0.7), 0.7, 0.7, "fixed")
    assert point.calibration.scale != 1


def test_options_are_chosen_with_their_own_threshold():
    episodes = made_up(noise=1.6)
    options = [Rule(0.0), Rule(0.0, debounce=2), Rule(0.0, min_steps=6), Rule(0.0, min_steps=6, time_out=20)]
    point = choose(episodes, dataclasses.replace(HOW, options=options))
    late = choose(episodes, dataclasses.replace(HOW, options=[Rule(0.0, debounce=2, min_steps=6)]))
    assert late.plain_threshold == point.plain_threshold == choose(episodes, HOW).rule.threshold != late.rule.threshold
    found = f1_deployed(episodes, [point] * 8)
    for option in options:
        alone = choose(episodes, dataclasses.replace(HOW, options=[option]))
        assert dataclasses.replace(alone.rule, threshold=0.0) == option
        assert f1_deployed(episodes, [alone] * 8) <= found


def test_without_held_out_episodes_only_what_is_exact_is_corrected():
    fitted = dataclasses.replace(EXACT, scale=2.0, bias=1.0)
    point = OperatingPoint.unseen(fitted, 0.4)
    assert point == OperatingPoint(EXACT, Rule(0.4), 0.4, 0.4)
    assert point.sentence() == "threshold 0.4; no held-out episodes were looked at: only what is exact is corrected"


def test_a_sentence_says_where_it_comes_from():
    calibration = Calibration(note="fitted on 24 ends in 100 rows")
    point = OperatingPoint(calibration, Rule(0.12345, 2, 10, 40, True), 0.3, 0.2, "f1:2", 8)
    assert point.sentence() == (
        "threshold 0.123, cumulative, debounce 2, at least 10 steps, time-out 40, or without a clock threshold 0.3, chosen by f1:2 on 8 "
        "held-out episodes; calibration fitted on 24 ends in 100 rows"
    )
    assert point.at(0.5).sentence() == "threshold 0.5, as given; calibration fitted on 24 ends in 100 rows"
    assert OperatingPoint(calibration, Rule(0.2), 0.2, 0.2, "cost:3", 2).sentence().startswith("threshold 0.2, chosen by cost:3 on 2")


@pytest.mark.parametrize("options", [(), (Rule(0.0, debounce=2, min_steps=3, time_out=30),)])
def test_a_point_comes_back_from_json_bit_for_bit(options):
    point = choose(made_up(), dataclasses.replace(HOW, options=options))
    assert OperatingPoint.from_json(json.loads(json.dumps(point.to_json(), allow_nan=False))) == point


def test_the_point_of_an_episode_was_chosen_on_the_other_folds():
    episodes = made_up(count=5)
    points = cross_fit(episodes, HOW, folds=3)
    for number, point in enumerate(points):
        assert point == choose([each for other, each in enumerate(episodes) if other % 3 != number % 3], HOW)
    assert len(cross_fit(episodes[:2], HOW)) == 2


def test_a_rule_for_the_loop_takes_a_time_out_that_did_not_help_to_choose():
    ends = np.arange(24) % 12 == 11
    config = TrainConfig(eos_operating_point="early:0.1")
    how = selection(config, 0.05, [ends])
    assert (how.time_out, {each.time_out for each in how.options}) == (12, {None})
    episodes = made_up()
    point, without = choose(episodes, how), choose(episodes, dataclasses.replace(how, time_out=None))
    assert point.rule == dataclasses.replace(without.rule, time_out=12)
    assert without.rule.time_out is None
    plain = selection(dataclasses.replace(config, eos_tune_decision=False), 0.05, [ends])
    assert (plain.options, plain.time_out) == ([], None)
    assert selection(TrainConfig(eos_operating_point="f1:2"), 0.05, [ends]).time_out is None


def test_choosing_on_noise_looks_better_than_it_is():
    """Chunks that know nothing: at the chosen point something is hit by luck, at points chosen without the episode less."""
    gains = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        episodes = [each._replace(logits=rng.normal(size=each.logits.shape)) for each in made_up(seed, count=6)]
        how = Selection(EXACT, OperatingRule("false_alarms", 1))
        recall = [
            measure_decisions([at.deployed(each) for at, each in zip(points, episodes, strict=True)], replicates=0).values["event/f1@2"]
            for points in ([choose(episodes, how)] * 6, cross_fit(episodes, how))
        ]
        gains.append(recall[0] - recall[1])
    assert np.mean(gains) > 0.02
