"""The full path on a run of a few updates: what it measures is what the checkpoints hold, and what is done is not done again."""

import dataclasses
import json

import pytest

from eosjax.bench import full
from eosjax.config import TrainConfig
from eosjax.ends.baselines import ORACLE
from eosjax.ends.comparison import HEAD
from eosjax.flags import parse
from eosjax.reports.bench_tables import POLICY_QUALITY
from eosjax.runs.data import open_data
from eosjax.runs.load import load_run
from eosjax.runs.policy_source import PolicySource
from eosjax.types import UserError

FLAGS = (
    "--vla_path demo --use_lora False --image_aug False --batch_size 4 --num_devices 1 --val_share 0.4 --max_steps 8 --log_freq 2 "
    "--eos_hidden_dim 8"
).split()


@pytest.fixture
def base(data, bodies, write_labels, tmp_path):
    return parse([*map(str, data), *FLAGS, f"--substep_labels_path={write_labels(bodies)}"])


def test_a_run_is_trained_looked_at_and_kept(base, tmp_path, monkeypatch, capsys):
    moved = {}
    look = full.look

    def and_drift(config):
        """Before all checkpoints but the last are removed."""
        data = open_data(config, PolicySource.open(config))
        moved.update(full.drifts(config, data, load_run(config.run_dir, 8), {"none": 0.0, "half": 0.5, "one": 1.0}))
        return look(config)

    monkeypatch.setattr(full, "look", and_drift)
    full.compare(base, ["buffer 50"], [3], tmp_path / "out")
    assert moved["none"] == 0
    assert moved["one"] > 0
    assert moved["half"] == pytest.approx(moved["one"] / 2)  # of the two checkpoints around it
    folder = tmp_path / "out" / "buffer-50-seed3"
    result = json.loads((folder / full.RESULT).read_text())
    head = result["held_out"][HEAD]
    assert 0 <= head["event/f1@2"] <= 1
    assert head["exact/frame/nll"] > 0
    assert {key for _, key in POLICY_QUALITY} <= set(head)
    assert result["held_out"][ORACLE]["event/ap@2"] == 1
    end = result["buffer"]["end"]
    assert end["age_positive"] > end["age_negative"]  # ends are rare, so that their ring turns over more slowly
    assert end["class_from_age"] > 0.7
    assert end["drift_positive"] > 0
    table = capsys.readouterr().out
    assert "| buffer 50, end |" in table
    assert (tmp_path / "out" / "summary.md").read_text().strip() in table
    assert b"<svg" in (tmp_path / "out" / "curves.svg").read_bytes()
    assert [path.name for path in (folder / "checkpoints").glob("[0-9]*")] == ["8"]

    config = full.method_config(base, "buffer 50", 3, tmp_path / "out")
    assert (config.eos_sample_positive, config.seed, config.save_freq) == (15, 3, 1)
    monkeypatch.setattr(full, "run", lambda config: pytest.fail("trained again"))
    half_removed = folder / "checkpoints" / "5"  # by a run that was killed while it cleaned up
    half_removed.mkdir()
    assert full.train_and_look(config) == result
    assert not half_removed.exists()
    with pytest.raises(UserError, match=r"buffer-50-seed3: measured with other flags: --lambda_eos is 0.5, was 2.0; choose another folder"):
        full.train_and_look(dataclasses.replace(config, lambda_eos=0.5))
    (folder / full.RESULT).unlink()
    monkeypatch.setattr(full, "look", lambda config: {"again": True})
    assert full.train_and_look(config) == {"again": True}


def test_a_stopped_run_is_told(base, tmp_path, monkeypatch):
    monkeypatch.setattr(full, "run", lambda config: None)
    with pytest.raises(UserError, match="plain-BCE-seed0: stopped; the same command goes on from there"):
        full.train_and_look(full.method_config(base, "plain BCE", 0, tmp_path))


def test_a_method_takes_neither_the_loss_nor_the_draws_of_the_recipe(tmp_path):
    recipe = TrainConfig(eos_loss="buffer_fresh", eos_sample_positive=30, eos_min_positive=30, eos_buffer_capacity=100)
    configs = [full.method_config(recipe, method, 0, tmp_path) for method in ("buffer 50", "buffer 50 and fresh rows, into the policy")]
    assert [(each.eos_loss, each.eos_sample_positive, each.eos_buffer_capacity) for each in configs] == [
        ("balanced_buffer", 15, 50),
        ("buffer_fresh", 15, 50),
    ]
