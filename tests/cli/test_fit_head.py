"""A head fitted on the states of a run: the policy stays, the new run is one for all other commands, and nothing is lost or overwritten."""

import json

import chex
import pytest

from eosjax.cli import fit_head
from eosjax.runs.load import load_run
from eosjax.training.run import run as train
from tests.cli.conftest import run_config

FIT = ("--passes", "2", "--batch_size", "16")


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_policy_stays_and_the_head_is_new(run, trained, labels, tmp_path, monkeypatch):
    before = snapshot(trained)
    status, out, err = run("fit-head", "--checkpoint", trained, "--out", tmp_path / "new", *FIT, "--seeds", "7,8")
    assert (status, err) == (0, "")
    for text in ("pass 2/2: eos_loss ", "event AP@2", "before ", "after ", "F1@2", "boosted trees", f"run: {tmp_path / 'new'}"):
        assert text in out
    old, new = load_run(trained), load_run(tmp_path / "new")
    fit = new.record.run.head_fit
    assert (fit.run, fit.checkpoint, fit.passes, fit.passes_kept) == ("run", old.record.fingerprint, 2, 2)
    assert (new.step, new.config.run_dir, new.record.score is not None) == (2, tmp_path / "new", True)
    heads = [each.params.pop("eos_head") for each in (old, new)]
    chex.assert_trees_all_equal(new.params, old.params)
    chex.assert_trees_all_equal_shapes(*heads)
    assert not (heads[0]["fc1"]["kernel"] == heads[1]["fc1"]["kernel"]).any()
    assert {path.name for path in (tmp_path / "new").iterdir()} >= {
        *("config.yaml", "tokenizer.json", "dataset_statistics.json", "metrics.jsonl"),
        *("comparison.json", "precision_recall.png", "timeline.png"),
    }
    assert {path: content for path, content in snapshot(trained).items() if "hidden" not in path.parts} == before
    assert not list(tmp_path.glob(".new*"))

    status, out, _ = run("evaluate", "--checkpoint", tmp_path / "new", "--out", tmp_path / "evaluation")
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    figures = new.record.validation.figures
    assert {f"val/{name}": found[name] for name in ("frame/average_precision", "event/ap@2", "deployed/event/f1@2")} == pytest.approx(
        {name: figures[name] for name in ("val/frame/average_precision", "val/event/ap@2", "val/deployed/event/f1@2")}, rel=1e-5
    )
    assert figures["val/action_loss"] == old.record.validation.figures["val/action_loss"]
    shown = run("show", tmp_path / "new")[1]
    assert f"the hidden states of run, checkpoint {fit.checkpoint[:12]}: 2 passes, 16 rows an update, learning rate 0.001, seed " in shown
    with pytest.raises(Exception, match=r"an EOS head of `eosjax fit-head`: there is nothing to go on with; go on with run"):
        train(run_config([], labels, tmp_path, f"--config_path={tmp_path / 'new' / 'config.yaml'}", "--run_id_override=new", "--resume"))

    # The states are there: other labels and the next fit need no forward pass, and Ctrl-C leaves them and nothing else.
    monkeypatch.setattr(fit_head, "store_hidden", lambda *_: pytest.fail("computed again"))
    text = json.loads(labels.read_text())
    for body in text["libero_goal"].values():
        for episode in body.values():
            for entry in episode["timestep_labels"][-3:]:
                entry["is_substep_end"] = False
            episode["timestep_labels"][-3]["is_substep_end"] = True
    other = tmp_path / "other.json"
    other.write_text(json.dumps(text))
    flags = ("--checkpoint", trained, "--substep_labels_path", other, *FIT, "--eos_loss", "bce", "--patience", "1", "--eos_hidden_dim", "4")
    status, out, err = run("fit-head", "--out", tmp_path / "relabelled", *flags)
    assert (status, err) == (0, "")
    assert "other labels than those of the run" in out
    relabelled = load_run(tmp_path / "relabelled")
    assert (relabelled.config.eos_loss, relabelled.config.substep_labels_path, relabelled.config.eos_hidden_dim) == ("bce", other, 4)
    assert relabelled.params["eos_head"]["fc1"]["kernel"].shape[1] == 4
    then, now = (each.record.run.datasets[0] for each in (old, relabelled))
    assert (now.labels != then.labels, now.held_out, now.frames) == (True, then.held_out, then.frames)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_head, "fit_heads", interrupt)
    status, out, err = run("fit-head", "--out", tmp_path / "third", *flags)
    assert (status, "hidden states: " in out) == (130, True)
    assert not list(tmp_path.glob("*third*"))


def test_a_policy_without_a_head_gets_one(run, data, labels, tmp_path, monkeypatch):
    config = run_config(data, labels, tmp_path, "--use_eos_classification=False", "--use_substep_eos=False")
    train(config)
    status, out, err = run("fit-head", "--checkpoint", config.run_dir, "--out", tmp_path / "new", *FIT)
    assert (status, err) == (0, "")
    assert "the policy was trained on the instructions of whole tasks; from now on it is told those of the sub-steps" in out
    new = load_run(tmp_path / "new")
    assert new.operating_point is not None
    assert (new.config.use_eos_classification, new.config.eos_loss, new.config.eos_hidden_dim) == (True, "balanced_buffer", 8)
    assert run("export", "--checkpoint", tmp_path / "new", "--format", "heads", "--out", tmp_path / "export")[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--passes", "0"), "--passes: expected 1 or more, got 0"),
        (("--patience", "0"), "--patience: expected 1 or more, got 0"),
        (("--batch_size", "1"), "--batch_size: expected 2 or more, got 1"),
        (("--learning_rate", "-1"), "--learning_rate: expected a number above 0, got -1"),
        (("--seeds", "1,1"), "--seeds: expected different numbers, got 1,1"),
    ],
)
def test_flags_are_checked_before_anything_is_read(refused, tmp_path, flags, message):
    assert message in refused("fit-head", "--checkpoint", "nowhere", "--out", tmp_path / "new", *flags)


def test_what_is_there_stays(refused, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "expected a folder that is new or empty" in refused("fit-head", "--checkpoint", "nowhere", "--out", tmp_path)
