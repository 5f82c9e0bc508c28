"""The policy of a run is read back as it was saved, and nothing else is taken for it."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest

from eosjax import config as configs
from eosjax.bench.full import load_buffer
from eosjax.models.hf.pretrained import Pretrained
from eosjax.runs.checkpoint import CheckpointError
from eosjax.runs.load import check_base, load_run
from tests import saved_runs
from tests.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saved_runs.make_run(tmp_path_factory.mktemp("run"), steps=(10, 20))


@pytest.fixture
def copied(saved, tmp_path):
    """The folder of a copy of the run, to harm."""
    return shutil.copytree(saved.folder, tmp_path / "run")


def test_the_newest_checkpoint_on_its_base(saved):
    run = load_run(saved.folder)
    chex.assert_trees_all_equal_shapes_and_dtypes(run.params, saved.params)
    chex.assert_trees_all_equal(jax.device_get(run.params), saved.params)
    assert (run.step, run.config, run.statistics) == (20, saved.config, saved_runs.STATISTICS)
    assert (run.vla_config.chunk, run.vla_config.proprio_dim, run.vla_config.lora_rank) == (2, 3, 4)
    assert "fingerprints" not in run.record
    assert run.operating_point == saved_runs.POINT


def test_an_older_checkpoint_without_the_base(saved):
    run = load_run(saved.folder, 10, with_base=False)
    assert (run.step, run.record["samples"]) == (10, 80)
    assert run.params.keys() == saved.params.keys() - {"vla"}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(run.params))
    differs = jax.tree.map(lambda old, new: (old != new).any(), run.params["lora"], saved.params["lora"])
    assert all(jax.tree.leaves(differs))
    check_base(run, Pretrained(saved.folder.parent / "base"))


def test_a_policy_that_was_trained_whole(tmp_path):
    saved = saved_runs.make_run(tmp_path, use_lora=False, use_eos_classification=False)
    run = load_run(saved.folder)
    assert run.params.keys() == {"vla", "proprio_projector", "action_head"}
    chex.assert_trees_all_equal(run.params, saved.params)
    assert run.operating_point is None
    assert load_buffer(run, saved.folder) is None


def test_encoders_that_were_left_alone_are_read_from_the_base(tmp_path):
    saved = saved_runs.make_run(tmp_path, use_lora=False, freeze_vision=True)
    run = load_run(saved.folder)
    assert run.params.keys() == {"vla", "vision_backbone", "proprio_projector", "action_head", "eos_head"}
    chex.assert_trees_all_equal(jax.device_get(run.params), saved.params)
    base = Pretrained(saved.folder.parent / "base")
    check_base(load_run(saved.folder, with_base=False), base)
    write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="other: the base weights are not those"):
        check_base(run, Pretrained(tmp_path / "other"))


def test_another_base_is_refused(copied, tmp_path):
    write_checkpoint(tmp_path / "other", seed=1)
    config = copied / configs.CONFIG_FILE
    text = config.read_text()
    before = next(line for line in text.splitlines() if line.startswith("vla_path"))
    config.write_text(text.replace(before, f"vla_path: {tmp_path / 'other'}"))
    with pytest.raises(CheckpointError, match="other: the base weights are not those that the run began with"):
        load_run(copied)
    with pytest.raises(CheckpointError, match="other: the base weights are not those"):
        check_base(load_run(copied, with_base=False), Pretrained(tmp_path / "other"))


def test_no_run_and_no_checkpoint(copied, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config.yaml; expected the folder of a training run"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoints: no checkpoint of step 15; there are those of 10, 20"):
        load_run(copied, 15)
    shutil.rmtree(copied / configs.CHECKPOINTS)
    with pytest.raises(CheckpointError, match="checkpoints: no checkpoint$"):
        load_run(copied)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "eos_hidden_dim: 6",
            "eos_hidden_dim: 8",
            r"eos_head/fc1/bias: expected float32 \(8,\), .* got float32 \(6,\)",
        ),
        ("use_lora: true", "use_lora: false", r"vla/.*: expected float32 .* got nothing"),
        ("use_proprio: true", "use_proprio: false", r"content of \.trainable\['proprio_projector'\]"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(copied, before, after, message):
    config = copied / configs.CONFIG_FILE
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))
    with pytest.raises(CheckpointError, match=message):
        load_run(copied, with_base=False)


def test_a_damaged_checkpoint_is_named(copied):
    files = [path for path in (copied / configs.CHECKPOINTS / "20" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"checkpoints/20: damaged: "):
        load_run(copied)
    assert load_run(copied, 10, with_base=False).step == 10


def test_a_checkpoint_without_an_operating_point_is_refused(copied):
    record = copied / configs.CHECKPOINTS / "20" / "record" / "metadata"
    content = json.loads(record.read_text())
    del content["operating_point"]
    record.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="20: written by an earlier version, without an operating point"):
        load_run(copied)
