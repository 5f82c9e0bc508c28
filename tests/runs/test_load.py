"""The policy of a run is read back as it was saved, from its folder alone, and nothing else is taken for it."""

import shutil

import chex
import jax
import numpy as np
import pytest

from eosjax import config as configs
from eosjax.bench.full import load_buffer
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.stacks import put_together
from eosjax.runs.checkpoint import CheckpointError
from eosjax.runs.faults import UnreadableError
from eosjax.runs.load import check_base, choose_checkpoint, load_run, open_tokenizer
from eosjax.runs.record import VERSION
from tests import saved_runs
from tests.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saved_runs.make_run(tmp_path_factory.mktemp("run"), steps=(10, 20))


@pytest.fixture
def copied(saved, tmp_path):
    """The folder of a copy of the run, to harm."""
    return shutil.copytree(saved.folder, tmp_path / "run")


def test_the_policy_on_its_base(saved):
    run = load_run(saved.folder)
    chex.assert_trees_all_equal_shapes_and_dtypes(run.params, saved.params)
    chex.assert_trees_all_equal(jax.device_get(run.params), saved.params)
    apart = load_run(saved.folder, apart=True).params
    assert isinstance(apart["vla"]["language_model"]["model"]["layers"]["mlp"]["up_proj"]["kernel"], tuple)
    chex.assert_trees_all_equal(jax.device_get(put_together(apart)), saved.params)
    assert (run.step, run.config) == (20, saved.config)
    assert (run.vla_config.chunk, run.vla_config.proprio_dim, run.vla_config.lora_rank) == (2, 3, 4)
    assert run.operating_point == saved_runs.POINT


def test_nothing_but_the_folder_and_the_base_is_read(saved, tmp_path, monkeypatch):
    """In another folder, with the base somewhere else, without the YAML file, and with other built-in descriptions."""
    whole = shutil.copytree(saved.folder.parent, tmp_path / "moved")
    (whole / "specs.yaml").unlink()
    (whole / "run" / configs.CONFIG_FILE).unlink()
    (whole / "base" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    monkeypatch.setattr("eosjax.data.specs.SPECS", {})
    run = load_run(whole / "run", vla_path=str(whole / "base"))
    chex.assert_trees_all_equal(jax.device_get(run.params), saved.params)
    assert run.record.run.datasets[0].spec.image_keys == ("image",)
    found = open_tokenizer(whole / "run", run.record)
    assert found.tokenizer.to_str() == open_tokenizer(saved.folder, run.record).tokenizer.to_str()


def test_an_older_checkpoint_without_the_base(saved):
    run = load_run(saved.folder, 10, with_base=False)
    assert run.step == 10
    assert run.params.keys() == saved.params.keys() - {"vla"}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(run.params))
    differs = jax.tree.map(lambda old, new: (old != new).any(), run.params["lora"], saved.params["lora"])
    assert all(jax.tree.leaves(differs))
    check_base(run, Pretrained(saved.folder.parent / "base"))


def test_a_policy_that_was_trained_whole(tmp_path):
    saved = saved_runs.make_run(tmp_path, use_lora=False, use_eos_classification=False)
    run = load_run(saved.folder, vla_path="not needed")
    assert run.params.keys() == {"vla", "proprio_projector", "action_head"}
    chex.assert_trees_all_equal(run.params, saved.params)
    assert run.operating_point is None
    assert load_buffer(run) is None


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


def test_another_base_is_refused(saved, tmp_path):
    write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"other: .*: \d+ of \d+ arrays differ, such as .*: expected fingerprint \d+, got \d+"):
        load_run(saved.folder, vla_path=str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match="other: the base weights are not those"):
        check_base(load_run(saved.folder, with_base=False), Pretrained(tmp_path / "other"))


@pytest.mark.parametrize(
    ("scores", "default", "best"),
    [
        ({10: 0.9, 20: 0.1}, 10, 10),
        ({10: 0.1, 20: 0.9}, 20, 20),
        ({10: 0.9}, 10, 10),
        ({10: 0.5, 20: 0.5}, 20, 20),
        ({}, 20, None),
    ],
)
def test_the_best_is_the_default_where_there_is_a_validation(tmp_path, scores, default, best):
    folder = saved_runs.make_run(tmp_path, steps=(10, 20), scores=scores).folder
    chosen = choose_checkpoint(folder)
    assert chosen.record.step == default
    assert ("the best" if scores else "the newest; none was validated") in chosen.sentence()
    assert choose_checkpoint(folder, "newest").record.step == 20
    assert choose_checkpoint(folder, "10").record.step == choose_checkpoint(folder, 10).record.step == 10
    if best:
        assert choose_checkpoint(folder, "best").record.step == best
    else:
        with pytest.raises(CheckpointError, match="no checkpoint was validated, so that none is the best; expected newest or a step"):
            choose_checkpoint(folder, "best")


def test_without_an_eos_head_the_best_has_the_smallest_action_loss(tmp_path):
    saved = saved_runs.make_run(tmp_path, use_eos_classification=False)
    record = choose_checkpoint(saved.folder).record
    assert record.validation.figures.keys() >= {"val/action_loss"}


def test_no_run_and_no_checkpoint(copied, tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoints: no checkpoint; expected the folder of a training run"):
        load_run(tmp_path)
    for step in (15, "15", "last"):
        with pytest.raises(CheckpointError, match=rf"checkpoints: no checkpoint of step {step}; expected best, newest or one of 10, 20"):
            load_run(copied, step)


def test_another_tokenizer_and_other_prompts_are_refused(copied, monkeypatch):
    record = choose_checkpoint(copied).record
    path = copied / "tokenizer.json"
    content = path.read_text()
    path.write_text(content + "\n")
    with pytest.raises(CheckpointError, match=r"not the tokenizer that .*: expected SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}"):
        open_tokenizer(copied, record)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.json: cannot be read: No such file"):
        open_tokenizer(copied, record)
    path.write_text(content)
    monkeypatch.setattr("eosjax.data.samples.tokens.evaluation_prompt", lambda instruction: f"Do: {instruction}")
    with pytest.raises(CheckpointError, match=r"trained on prompts like 'In: What action .*; this version asks 'Do: {instruction}'"):
        open_tokenizer(copied, record)


@pytest.mark.parametrize("part", ["state", "record"])
def test_a_damaged_checkpoint_is_named(copied, part):
    files = [path for path in (copied / configs.CHECKPOINTS / "20" / part).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"checkpoints/20: damaged: "):
        load_run(copied, "newest")
    assert load_run(copied, 10, with_base=False).step == 10


def test_a_damaged_record_does_not_hide_the_others(copied, caplog):
    (copied / configs.CHECKPOINTS / "20" / "record" / "metadata").write_text("{")
    assert choose_checkpoint(copied).record.step == 10
    assert "checkpoints/20: damaged" in caplog.text
    (copied / configs.CHECKPOINTS / "10" / "record" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match="checkpoints/20: damaged"):
        choose_checkpoint(copied)


def test_a_record_that_cannot_be_read_now_is_not_passed_over(copied):
    path = copied / configs.CHECKPOINTS / "10" / "record" / "metadata"
    path.unlink()
    path.mkdir()
    with pytest.raises(UnreadableError, match="checkpoints/10: cannot be read, which shows no damage"):
        choose_checkpoint(copied)
    assert choose_checkpoint(copied, "newest").record.step == 20


def test_a_checkpoint_under_another_number_is_refused(copied):
    shutil.copytree(copied / configs.CHECKPOINTS / "20", copied / configs.CHECKPOINTS / "30")
    with pytest.raises(CheckpointError, match="30: expected the checkpoint of step 30, got that of step 20"):
        choose_checkpoint(copied, "30")
    assert choose_checkpoint(copied).record.step == 20


def test_a_checkpoint_of_the_old_form_is_named(copied):
    (copied / configs.CHECKPOINTS / "20" / "record" / "metadata").write_text('{"samples": 160, "operating_point": null}')
    with pytest.raises(CheckpointError, match=f"20: written by another version .*: expected a record of version {VERSION}, got none"):
        load_run(copied, "newest")
