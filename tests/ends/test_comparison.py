"""Methods on equal footing: figures against `measure_scores`, and thresholds that never saw the episode."""

import json

import numpy as np
import pytest

from eosjax.ends.comparison import FIGURES, compare, measure
from eosjax.ends.events import ScoredEpisode
from eosjax.ends.measure import DecisionTable, measure_scores
from eosjax.reports.tables import comparison_json, comparison_rows


def made_up(seed=0, count=7):
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(count):
        ends = np.zeros(80, bool)
        ends[np.cumsum(rng.integers(6, 20, size=4))] = True
        episodes.append(ScoredEpisode(str(number), np.round(20 * np.clip(rng.random(80) * 0.8 + 0.3 * ends, 0, 1)) / 20, ends))
    return episodes


def test_ranked_figures_are_those_of_the_report():
    episodes = made_up()
    found = measure(episodes, replicates=50)
    whole = measure_scores(episodes, 0.5, replicates=50)
    assert FIGURES == ("frame/average_precision", "event/ap@2", "event/f1@2")
    for name in FIGURES[:2]:
        assert found.values[name] == whole.values[name]
        assert found.intervals[name] == whole.intervals[name]


def decisions_of(episodes):
    """What fires in each episode, as `measure` has it."""
    seen = []
    original = DecisionTable.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecisionTable, "of", classmethod(lambda cls, decisions: seen.append(decisions) or original(decisions)))
        measure(episodes, replicates=0)
    return seen[0]


def test_each_threshold_is_a_best_one_of_the_other_folds():
    """With five folds the sixth episode shares one with the first, and neither has a say in the other's threshold."""
    episodes, grid = made_up(3), np.arange(0.025, 1.1, 0.05)  # between all scores
    decisions = decisions_of(episodes)
    for number, decided in enumerate(decisions):
        others = [each for other, each in enumerate(episodes) if other % 5 != number % 5]
        tables = [DecisionTable.of([each.decisions(at, 2) for each in others]) for at in grid]
        f1 = np.array([each.metrics(np.ones(len(others), np.int64))["event/f1@2"] for each in tables])
        allowed = [episodes[number].decisions(at, 2).fired.tolist() for at in grid[f1 == f1.max()]]
        assert decided.fired.tolist() in allowed
    expected = DecisionTable.of(decisions).metrics(np.ones(7, np.int64))["event/f1@2"]
    assert measure(episodes, replicates=0).values["event/f1@2"] == expected > 0


def test_no_episode_has_a_say_in_its_own_threshold():
    ends = np.isin(np.arange(80), [9, 29, 49, 69])
    noise = np.isin(np.arange(80), np.arange(15, 27, 3)) | np.isin(np.arange(80), np.arange(35, 47, 3)) | (np.arange(80) == 59)
    faint = ScoredEpisode("faint", 0.3 * ends, ends)
    loud = ScoredEpisode("loud", 0.9 * ends + 0.5 * noise, ends)
    # The loud one sets 0.7, at which the faint one is silent; the faint one a threshold at which all nine noises of the loud one fire.
    assert measure([faint, loud], replicates=0).values["event/f1@2"] == pytest.approx(2 * 4 / (0 + 4 + 9 + 8))


def test_one_episode_alone_and_scores_that_say_nothing():
    (episode,) = made_up(count=1)
    assert measure([episode]).intervals == {}
    silent = [each._replace(scores=np.zeros(80)) for each in made_up()]
    values = measure(silent, replicates=0).values
    assert (values["event/ap@2"], values["event/f1@2"]) == (0, 0)
    assert values["frame/average_precision"] == pytest.approx(np.mean([each.ends for each in silent]))


def test_the_table_has_the_best_first_and_the_file_the_same_figures():
    good = made_up()
    methods = {
        "none": [each._replace(scores=np.zeros(80)) for each in good],
        "all": [each._replace(scores=each.ends * 1.0) for each in good],
        "some": good,
    }
    comparison = compare(methods, replicates=20)
    header, *rows = comparison_rows(comparison)
    assert header == ("method", "frame AP", "event AP ±2", "F1 ±2")
    assert [row[0] for row in rows] == ["all", "some", "none"]
    assert rows[0][1:] == ("1.000 [1.000, 1.000]",) * 3
    content = json.loads(json.dumps(comparison_json(comparison), allow_nan=False))
    assert content["some"]["event/ap@2"] == comparison.measured["some"].values["event/ap@2"]
    assert set(content["all"]["intervals_95"]) == set(FIGURES)
