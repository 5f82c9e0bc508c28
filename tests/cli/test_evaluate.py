"""The command gives the figures of the validation in training, from the checkpoint alone."""

import json
import re

import pytest

from eosjax.runs.load import load_run
from tests.page import Page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset_name", "other", "--split", "train"), "--split train: is about the run's own data; of --dataset_name all labelled"),
        (("--dataset_name", "other", "--split", "val"), "--split val: is about the run's own data"),
        (("--dataset_name", "../other"), "--dataset_name: expected a plain name"),
        (("--dataset_specs", "specs.yaml"), "--dataset_specs: is about another dataset; name it with --dataset_name"),
        (("--substep_labels_format", "auto"), "--substep_labels_format: is about another dataset"),
        (("--statistics_of", "libero_goal"), "--statistics_of: is about another dataset"),
        (("--out", "{tmp_path}"), "expected a folder without results, it has metrics.json"),
        (("--out", "{tmp_path}/metrics.json/results"), "metrics.json is a file"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_read(refused, flags, message, tmp_path):
    (tmp_path / "metrics.json").touch()
    assert message in refused("evaluate", "--checkpoint", "nowhere", *(flag.format(tmp_path=tmp_path) for flag in flags))


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


def test_a_moved_run_gives_the_same_figures(run, trained, labels, tmp_path, monkeypatch):
    """In another folder, without its YAML file, with other built-in descriptions, and the labels somewhere else."""
    assert run("evaluate", "--checkpoint", trained, "--out", tmp_path / "before")[0] == 0
    moved = trained.rename(tmp_path / "moved")
    (moved / "config.yaml").unlink()
    monkeypatch.setattr("eosjax.data.specs.SPECS", {})
    elsewhere = labels.rename(tmp_path / "labels.json")
    status, out, _ = run("evaluate", "--checkpoint", moved, "--out", tmp_path / "after", "--substep_labels_path", elsewhere)
    assert status == 0
    assert "checkpoint of step 2 (the best" in out
    before, after = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("before", "after"))
    del before["about"]["title"], after["about"]["title"]
    assert before == after


def test_any_number_of_devices(run, trained, tmp_path):
    for devices in (1, 3):
        status = run("evaluate", "--checkpoint", trained, "--num_devices", devices, "--out", tmp_path / str(devices))[0]
        assert status == 0
    one, three = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("1", "3"))
    assert three["frame/average_precision"] == pytest.approx(one["frame/average_precision"], rel=1e-5)
    assert three["frame/nll"] == pytest.approx(one["frame/nll"], rel=1e-4)


def test_another_dataset_is_measured_and_never_called_the_runs_own(run, trained, tiny, labels, tmp_path):
    """Here the run's own files with the cameras the other way round: all episodes are judged."""
    name = tiny.name
    specs = tmp_path / "specs.yaml"
    fields = "image_keys: [wrist_image, image], state_keys: [state], gripper: minus_open_plus_closed, action_size: 7, proprio_size: 8"
    specs.write_text(f"{name}: {{{fields}, control_hz: 20}}\n")
    flags = ("--dataset_name", name, "--dataset_specs", specs, "--substep_labels_path", labels, "--data_root_dir", tiny.root)
    status, out, _ = run("evaluate", "--checkpoint", trained, *flags)
    assert status == 0
    found = json.loads((trained / "evaluation" / f"2-{name}" / "metrics.json").read_text())
    assert found["about"]["title"].endswith(f"on {name} with the statistics of {name}")
    assert "val split" not in out
    assert re.search(rf"warning: {name}: .*% of the steps are ends, a sub-step of .* steps on average", out)  # the episodes have few steps
    assert found["about"]["episodes"] > json.loads(run_own(run, trained))["about"]["episodes"]
    assert list(found["methods"]) == ["EOS head"]
    status, _, err = run("evaluate", "--checkpoint", trained, *flags[:2], *flags[4:], "--out", tmp_path / "own")
    assert (status, f"these are the data of {name}, which the run was trained on; leave --dataset_name out" in err) == (2, True)
    specs.write_text(f"{name}: {{{fields.replace('7', '6')}, control_hz: 10}}\n")
    status, _, err = run("evaluate", "--checkpoint", trained, *flags, "--out", tmp_path / "other")
    assert status == 2
    for text in ("does not fit", "action_size is 6, was 7", "control_hz is 10.0, was 20.0"):
        assert text in err


def run_own(run, trained):
    """metrics.json of the run's own validation."""
    assert run("evaluate", "--checkpoint", trained)[0] == 0
    return (trained / "evaluation" / "2-val" / "metrics.json").read_text()


def test_other_labels_are_refused(run, trained, labels):
    content = json.loads(labels.read_text())
    for task in content.values():
        for episode in (body for bodies in task.values() for body in bodies.values()):
            for step in episode["timestep_labels"]:
                step["is_substep_end"] |= step["timestep"] == 1
    labels.write_text(json.dumps(content))
    status, _, err = run("evaluate", "--checkpoint", trained)
    assert status == 2
    assert "the data are not those that the run was trained on:" in err
    assert ".labels is" in err
