"""The command gives the figures of the validation in training, from the checkpoint alone."""

import json

import pytest

from eosjax.runs.load import load_run
from tests.page import Page


def test_figures_are_those_of_the_validation(run, trained, labels):
    status, out, err = run("evaluate", "--checkpoint", trained)
    assert (status, err) == (0, "")
    folder = trained / "evaluation" / "2-val"
    found = json.loads((folder / "metrics.json").read_text())
    logged = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    figures = {name.removeprefix("val/"): value for name, value in logged.items() if name.startswith("val/") and name != "val/action_loss"}
    assert len([name for name in figures if name.startswith("deployed/")]) > 10
    assert len([name for name in figures if not name.startswith("deployed/")]) > 10
    assert {name: found[name] for name in figures} == pytest.approx(figures, rel=1e-5)
    assert {name for name, value in found.items() if value is None}.isdisjoint(figures)
    assert f"action loss              {logged['val/action_loss']:.4f}" in out

    point = load_run(trained).operating_point
    assert found["operating_point"] == point.to_json()
    assert (point.chosen_by, found["about"]["threshold"]) == ("false_alarms:1", point.dense_threshold)
    assert point.sentence() in out
    assert "Those are the episodes measured here; at points chosen without the episode" in out
    assert {"deployed_cross_fitted/event/f1@2", "deployed/event/f1@2"} <= set(found)
    assert "deployed/event/recall@2" in found["intervals_95"]
    assert set(found["reliability"]) == {"raw", "exactly corrected", "calibrated"}
    assert {"EOS head", "oracle", "always off", "chance (random scores)"} <= set(found["methods"])
    assert found["methods"]["EOS head"]["event/ap@2"] == found["event/ap@2"]
    page = Page((folder / "report.html").read_text())
    page.check_loads_and_runs_nothing()
    assert any(tag == "img" for tag, _ in page.tags)
    for text in ("As deployed", "Beside baselines without images", "exactly corrected", "chance (random scores)"):
        assert text in page.text


def test_other_episodes_another_threshold_and_what_is_refused(run, trained, labels):
    moved = labels.rename(labels.with_name("moved.json"))
    status, _, err = run("evaluate", "--checkpoint", trained, "--split", "train")
    assert (status, "labels" in err) == (2, True)
    flags = ("--split", "train", "--substep_labels_path", moved, "--threshold", "0.001")
    status, out, _ = run("evaluate", "--checkpoint", trained, *flags)
    assert status == 0
    assert "fired at threshold 0.001" in out
    assert "threshold 0.001, as given" in out
    assert "at points chosen without the episode" not in out
    status, _, err = run("evaluate", "--checkpoint", trained, *flags)
    assert (status, "expected a folder without results" in err) == (2, True)
    for flags, message in (
        (("--threshold", "0"), "--threshold: expected"),
        (("--nms", "-1"), "--nms: expected 0"),
        (("--step", "1"), "no checkpoint of step 1"),
    ):
        assert message in run("evaluate", "--checkpoint", trained, *flags)[2]
