"""The worked cases through all of the code, pooling and intervals against plain recomputation, and sed_eval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss

from eosjax.ends.events import Decisions, ScoredEpisode
from eosjax.ends.measure import ScoreTables, measure_decisions, measure_scores
from eosjax.ends.protocols import Rule, replay


def episode(fired, true, steps=100, name="a"):
    """Scores at the steps of `fired` (a mapping), 0 elsewhere."""
    scores, ends = np.zeros(steps), np.zeros(steps, bool)
    scores[list(fired)] = list(fired.values())
    ends[list(true)] = True
    return ScoredEpisode(name, scores, ends)


def random_episodes(seed, count=5):
    rng = np.random.default_rng(seed)
    return [
        ScoredEpisode(str(number), rng.random(length) ** 3, rng.random(length) < 0.1)
        for number, length in enumerate(rng.integers(5, 60, count))
    ]


CASE = episode({9: 0.9, 12: 0.8, 55: 0.7, 91: 0.6}, [10, 50, 90])


def test_worked_case():
    values = measure_scores([CASE], 0.5).values
    assert values["event/precision@2"] == 0.5
    assert values["event/recall@2"] == pytest.approx(2 / 3)
    assert values["event/f1@2"] == pytest.approx(4 / 7)
    assert values["event/ap@2"] == pytest.approx(0.5)
    assert values["event/misses_per_episode@2"] == 1
    assert values["event/false_alarms_per_episode@2"] == 2
    assert values["event/false_alarms_per_1000_steps@2"] == 20
    # At 8, as at 5: pairs 9-10, 55-50 and 91-90.
    assert values["event/f1@8"] == pytest.approx(6 / 7)
    assert values["event/ap@8"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    assert values["event/ap_mean"] == pytest.approx((0.5 + 0.5 + 0.5 + 2.5 / 3) / 4)
    assert values["event/delay_median"] == 1
    assert values["event/delay_p10"] == pytest.approx(-1 + 0.2 * 2)
    assert values["event/delay_p90"] == pytest.approx(1 + 0.8 * 4)
    assert values["event/early_share"] == pytest.approx(1 / 3)
    assert values["frame/share_of_ends"] == 0.03


def test_greedy_matching_would_halve_this_one():
    measured = measure_decisions([Decisions(np.array([6, 12]), np.array([10, 14]), 20)])
    assert measured.values["event/f1@4"] == 1.0
    assert measured.values["event/f1@2"] == 0.5
    assert measured.intervals == {}  # one episode tells nothing about others


def test_threshold_and_window_decide_what_fires():
    assert measure_scores([CASE], 0.75).values["event/precision@2"] == 0.5  # 9 and 12
    assert measure_scores([CASE], 0.9).values["event/precision@2"] == 1.0  # a score at the threshold fires
    assert measure_scores([CASE], 0.5, window=3).values["event/precision@2"] == pytest.approx(2 / 3)  # 9 rules out 12
    assert measure_scores([CASE], 0.5, window=3).values["event/ap@2"] == pytest.approx((1 + 2 / 3) / 3)


def test_never_firing_has_no_precision():
    values = measure_scores([episode({}, [3, 9])], 0.5).values
    assert np.isnan(values["event/precision@2"])
    assert np.isnan(values["event/delay_median"])
    assert (values["event/recall@2"], values["event/f1@2"], values["event/ap@2"]) == (0, 0, 0)
    assert values["frame/average_precision"] == values["frame/share_of_ends"] == 0.02


def test_without_any_end_there_is_no_recall():
    values = measure_scores([episode({3: 0.9}, [])], 0.5).values
    assert values["event/precision@2"] == 0
    for name in ("event/recall@2", "event/ap@2", "event/ap_mean", "frame/average_precision"):
        assert np.isnan(values[name])


@given(st.integers(0, 2**32 - 1))
def test_frames_agree_with_scikit_learn(seed):
    episodes = random_episodes(seed)
    episodes[0].ends[:2] = [True, False]
    scores, ends = np.concatenate([each.scores for each in episodes]), np.concatenate([each.ends for each in episodes])
    values = measure_scores(episodes, 0.5, replicates=0).values
    assert values["frame/average_precision"] == pytest.approx(average_precision_score(ends, scores))
    assert values["frame/nll"] == pytest.approx(log_loss(ends, scores))
    assert values["frame/brier"] == pytest.approx(brier_score_loss(ends, scores))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 4), min_size=2, max_size=8))
def test_a_drawn_episode_counts_as_its_copies(seed, drawn):
    """Every figure, with weights as the bootstrap has them, against the same code on real copies."""
    episodes = random_episodes(seed)
    weights = np.bincount(drawn, minlength=len(episodes))
    tables = ScoreTables.of(episodes, threshold=0.3)
    weighted = {name: value for table in (tables.decisions, tables.events, tables.frames) for name, value in table.metrics(weights).items()}
    copies = measure_scores([episodes[number] for number in drawn], 0.3, replicates=0).values
    assert weighted.keys() == copies.keys()
    for name, value in copies.items():
        assert weighted[name] == pytest.approx(value, nan_ok=True), name


def test_draws_without_any_end_are_left_out_of_the_interval_of_recall():
    episodes = [Decisions(np.array([5]), np.array([5]), 10), Decisions(np.array([], int), np.array([], int), 10)]
    measured = measure_decisions(episodes, replicates=200)
    assert measured.intervals["event/recall@1"] == (1, 1)
    assert measured.intervals["event/false_alarms_per_episode@1"] == (0, 0)


def test_the_deployed_protocol_is_measured_by_its_firings():
    scores = np.zeros((40, 4))
    scores[[12, 28], [1, 3]] = 1  # planned at 0, 4, 8, 12; cut at 13; at 14, 18, 22, 26, 30: the second is never seen
    played = replay(scores, Rule(0.5))
    values = measure_decisions([Decisions(played.fired, np.array([14, 31]), 40)]).values
    assert (values["event/precision@1"], values["event/recall@1"], values["event/delay_median"]) == (1, 0.5, -1)
    assert "event/ap@1" not in values


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8]))
def test_agrees_with_sed_eval(seed, collar):
    """Its times are floating-point seconds, where |0.3 - 0.1| <= 0.2 is False: a step is a second here, and the collar ends between two."""
    sed_eval = pytest.importorskip("sed_eval", reason="sed_eval, an oracle of event metrics, is not installed")
    containers = pytest.importorskip("dcase_util.containers")
    rng = np.random.default_rng(seed)
    oracle = sed_eval.sound_event.EventBasedMetrics(["end"], evaluate_offset=False, t_collar=collar + 0.5, event_matching_type="optimal")
    decisions = []
    for number in range(3):
        fired, true = (np.sort(rng.choice(80, rng.integers(1, 12), replace=False)) for _ in range(2))
        decisions.append(Decisions(fired, true, 80))
        lists = [
            containers.MetaDataContainer(
                [{"filename": str(number), "event_label": "end", "onset": float(step), "offset": step + 1.0} for step in steps]
            )
            for steps in (true, fired)
        ]
        oracle.evaluate(*lists)
    expected = oracle.results_overall_metrics()["f_measure"]
    values = measure_decisions(decisions, replicates=0).values
    assert values[f"event/precision@{collar}"] == pytest.approx(expected["precision"])
    assert values[f"event/recall@{collar}"] == pytest.approx(expected["recall"])
    if expected["precision"] + expected["recall"] > 0:
        assert values[f"event/f1@{collar}"] == pytest.approx(expected["f_measure"])
