"""A run described from its folder alone, with the check of what it needs."""

import json
import shutil
from types import SimpleNamespace

import pytest

from eosjax.data.labels.table import refused
from tests import saved_runs


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 10 to 30, of which 10 and 20 were validated; the first is the best."""
    return saved_runs.make_run(tmp_path_factory.mktemp("show"), steps=(10, 20, 30), scores={10: 0.75, 20: 0.5})


def test_it_says_what_the_run_is(run, saved):
    status, out, err = run("show", saved.folder)
    assert (status, err) == (0, "")
    for text in (
        "adapters of rank 4 and heads",
        "L1 regression, chunks of 2 x 2",
        "balanced_buffer, lambda_eos 2; 2.00% of the training steps are ends",
        "checkpoint of step 10 (the best of 2 validated: val/frame/average_precision 0.7500)",
        "threshold 0.2, at least 4 steps",
        "not needed" if not saved.config.use_lora else f"found: {saved.config.vla_path}",
        "missing: ",
    ):
        assert text in out
    rows = [line.split() for line in out.splitlines()]
    assert ["10", "80", "0.2500", "0.7500", "–", "0.2", "10"] in rows
    assert ["30", "240", "–", "–", "–", "0.2", "20"] in rows
    assert "chosen at step 20, not at this checkpoint's step 30" in run("show", saved.folder, "--step", "newest")[1]


def test_json_has_the_whole_record(run, saved):
    content = json.loads(run("show", saved.folder, "--json", "--step", "20")[1])
    assert (content["step"], content["why"]) == (20, "as asked for")
    assert content["record"]["run"]["config"]["lora_rank"] == 4
    assert content["record"]["run"]["datasets"][0]["spec"]["chunk"] == 2
    assert content["checkpoints"]["10"] == {"validated": True, "figures": {"val/action_loss": 0.25, "val/frame/average_precision": 0.75}}
    assert content["checkpoints"]["30"]["validated"] is False
    assert content["here"]["base weights"].startswith("found: ")


def test_what_is_missing_and_what_has_changed(run, saved, tmp_path, monkeypatch):
    moved = shutil.copytree(saved.folder, tmp_path / "run")
    (moved / "tokenizer.json").write_text("{}")
    (moved / "checkpoints" / "30" / "record" / "metadata").write_text("{}")
    out = run("show", moved, "--step", "20", "--vla_path", "nobody/nowhere")[1]
    assert "missing or another one: " in out
    assert "missing: nobody/nowhere is neither a folder nor in the cache of the hub; --vla_path says where it is" in out
    assert "30    written by another version of eosjax" in out
    data = tmp_path / "data"
    folders = iter([tmp_path / "no store", tmp_path, tmp_path])
    monkeypatch.setattr("eosjax.data.frames.store.store_folder", lambda root, name, spec, cache: next(folders))
    prints = iter(["frames 0", "other frames"])
    monkeypatch.setattr("eosjax.data.frames.store.FrameStore", lambda folder: SimpleNamespace(fingerprint=next(prints)))
    for expected in ("found: ", "here: ", "changed: "):
        assert f"{expected}{data / 'tiny'}" in run("show", saved.folder, "--data_root_dir", data)[1]


def test_labels_are_compared_as_well_as_frames(run, saved, tmp_path, monkeypatch):
    """Which labels come out of the file at the given place is another test's; here they are `Labels` with a fingerprint."""
    monkeypatch.setattr("eosjax.data.frames.store.store_folder", lambda root, name, spec, cache: tmp_path)
    monkeypatch.setattr("eosjax.data.frames.store.FrameStore", lambda folder: SimpleNamespace(fingerprint="frames 0"))
    found = {"same.json": "labels 0", "others.json": "labels 1"}
    monkeypatch.setattr("eosjax.runs.data.read_labels", lambda config, name, store, path, spec: open_labels(path, found))
    monkeypatch.setattr("eosjax.runs.data.label_fingerprint", lambda labels: labels)
    for path, expected in (
        ("same.json", "labels tiny   here: same.json"),
        ("others.json", "labels tiny   changed: others.json: expected labels labels 0, got labels 1"),
        ("gone.json", "labels tiny   missing or others: gone.json: labels refused: 1 x unreadable file\n"),
    ):
        assert expected in run("show", saved.folder, "--substep_labels_path", path)[1]


def open_labels(path, found):
    if path.name not in found:
        raise refused(path, "unreadable file", "no such file")
    return found[path.name]


def test_no_run(refused, tmp_path):
    assert "no checkpoint; expected the folder of a training run" in refused("show", tmp_path)
