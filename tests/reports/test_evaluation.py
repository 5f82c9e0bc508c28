"""Which episodes are shown, and the rows of the tables."""

import json

import numpy as np
import pytest

from eosjax.ends.events import Decisions, ScoredEpisode
from eosjax.ends.measure import measure_decisions
from eosjax.reports.evaluation import ScoreEvaluation
from eosjax.reports.tables import delay_row, event_rows, frame_rows


def episode(name, fired, true, steps=60):
    scores, ends = np.full(steps, 0.01), np.zeros(steps, bool)
    scores[list(fired)], ends[list(true)] = 0.9, True
    return ScoredEpisode(name, scores, ends)


GOOD = episode("good", [10, 31], [10, 30])
FAIR = episode("fair", [10, 50], [10, 30])
POOR = episode("poor", [20, 50], [10, 30])
QUIET = episode("quiet", [], [])


def report(*episodes, replicates=20):
    return ScoreEvaluation.of("title", episodes, threshold=0.5, replicates=replicates)


def shown(*episodes):
    return {each.rank: each.episode.name for each in report(*episodes).shown}


def test_the_best_the_median_and_the_worst_are_shown_once_each():
    assert shown(POOR, GOOD, FAIR) == {"best": "good", "median": "fair", "worst": "poor"}
    assert shown(POOR, GOOD) == {"best": "good", "worst": "poor"}
    assert shown(FAIR) == {"best": "fair"}
    assert shown(FAIR, QUIET, POOR)["best"] == "quiet"  # nothing to find, nothing fired


def test_of_equal_f1_the_smaller_brier_score_is_better():
    exact = episode("exact", [10, 30], [10, 30])
    surer = exact._replace(name="surer", scores=np.where(exact.ends, 0.99, 0.01))
    assert shown(exact, surer) == {"best": "surer", "worst": "exact"}


def test_hits_misses_and_false_alarms_of_an_episode():
    (each,) = report(FAIR).shown
    assert (each.pairs.tolist(), each.misses.tolist(), each.false_alarms.tolist()) == ([[10, 10]], [30], [50])
    assert each.f1 == 0.5


def test_rows_of_the_tables():
    measured = report(GOOD, FAIR, POOR, replicates=0).measured
    header, *rows = event_rows(measured)
    assert [row[0] for row in rows] == ["±1", "±2", "±4", "±8", "mean"]
    assert dict(zip(header, rows[1], strict=True)) == {
        "collar": "±2",
        "precision": "0.500",
        "recall": "0.500",
        "F1": "0.500",
        "AP": f"{measured.values['event/ap@2']:.3f}",
        "misses/episode": "1.00",
        "false alarms/episode": "1.00",
        "/1,000 steps": "16.7",
    }
    assert delay_row(measured)[1].startswith("median +0.0 steps, 10 % +0.0, 90 % +0.8; share early 0.00 ")
    assert frame_rows(measured)[0][1].endswith("(share of ends 0.033)")


def test_intervals_stand_in_brackets():
    measured = report(GOOD, FAIR, POOR).measured
    low, high = measured.intervals["event/recall@1"]
    assert event_rows(measured)[1][2] == f"0.500 [{low:.3f}, {high:.3f}]"


def test_firings_alone_have_no_average_precision():
    measured = measure_decisions([Decisions(np.array([10]), np.array([11]), 20)])
    header, *rows = event_rows(measured)
    assert "AP" not in header
    assert [row[0] for row in rows] == ["±1", "±2", "±4", "±8"]


def test_json_has_the_figures_by_name_and_none_where_there_is_none():
    content = report(QUIET, QUIET).to_json()
    json.dumps(content, allow_nan=False)
    assert content["event/recall@2"] is None
    assert content["intervals_95"]["event/recall@2"] == [None, None]
    assert content["event/false_alarms_per_episode@2"] == 0
    about = {"title": "title", "protocol": "dense", "threshold": 0.5, "nms": 2, "episodes": 2, "steps": 120, "ends": 0, "fired": 0}
    assert content["about"] == about


def test_the_curve_has_the_figures_at_the_threshold():
    made = report(GOOD, FAIR, POOR)
    curve = made.curve(2)
    at = np.flatnonzero(curve.thresholds >= 0.5)[-1]
    assert curve.f1[at] == pytest.approx(made.measured.values["event/f1@2"])
    assert curve.average_precision(interpolated=True) == made.measured.values["event/ap@2"]
