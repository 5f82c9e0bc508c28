"""Each form of an exported policy is loaded as PyTorch code would and gives the numbers of the run."""

import importlib.util
import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.data.stats import stats_to_json
from eosjax.models.heads import ActionHead, EosHead
from eosjax.models.hf import files
from eosjax.models.hf.part_files import PARTS, read_part
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.hf.weights import WeightsError
from eosjax.models.openvla import OpenVLA
from eosjax.models.policies import vla_variables
from eosjax.runs.load import load_run
from tests import saved_runs
from tests.checkpoints import write_checkpoint

QUICK = {"xla_backend_optimization_level": 0}  # these programs take far longer to compile than to run
NO_TORCH = "torch, transformers or peft is not installed (extra `parity`)"
with_torch = pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")), reason=NO_TORCH)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with adapters and without proprioception, which the torch policy of these tests does not have."""
    return saved_runs.make_run(tmp_path_factory.mktemp("export"), steps=(10, 20), use_proprio=False)


@pytest.fixture(scope="module")
def loaded(saved):
    return load_run(saved.folder)


@pytest.fixture(scope="module")
def inputs(loaded):
    """Images and token ids."""
    rng, config = np.random.default_rng(0), loaded.vla_config
    size = config.dino.image_size
    images = rng.integers(0, 256, (2, 1, size, size, 3), dtype=np.uint8)
    return images, rng.integers(0, 500, (2, 5 + config.action_tokens), dtype=np.int32)


@pytest.fixture(scope="module")
def hidden(loaded, inputs):
    """Hidden states of the run's policy, [b k a d]."""
    images, ids = inputs
    arguments = (images, ids, np.ones(ids.shape, bool), np.zeros((len(ids), 0), np.float32))
    return np.asarray(jax.jit(OpenVLA(loaded.vla_config).apply, compiler_options=QUICK)(vla_variables(loaded.params), *arguments))


@pytest.fixture
def export(run, saved, tmp_path):
    """A function (format, *flags) -> folder that the command wrote."""

    def export(form, *flags, folder=saved.folder):
        status, out, err = run("export", "--checkpoint", folder, "--out", tmp_path / "out", "--format", form, *flags)
        assert (status, err) == (0, "")
        assert f"\nwritten: {tmp_path / 'out'} ({form}, step " in out
        return tmp_path / "out"

    return export


def torch_hidden(model, inputs):
    import torch

    with torch.no_grad():
        return model(torch.tensor(inputs[0]), torch.tensor(inputs[1]).long()).numpy()


def torch_policy(loaded, folder):
    """The torch policy on the weights of a checkpoint folder."""
    from benchmarks.torch_policy import TorchOpenVLA, load

    model = TorchOpenVLA(loaded.vla_config)
    aside = load(model, files.Tensors.of_folder(folder))
    assert all(name.startswith("vision_backbone.") for name in aside)  # of blocks that are not run
    return model


@with_torch
def test_peft_loads_the_adapter(export, saved, loaded, inputs, hidden):
    import peft

    folder = export("peft")
    base = torch_policy(loaded, Path(saved.config.vla_path))
    before = torch_hidden(base, inputs)
    model = peft.PeftModel.from_pretrained(base, folder)
    np.testing.assert_allclose(torch_hidden(model, inputs), hidden, atol=2e-5)
    assert np.abs(before - hidden).max() > 0.1
    assert peft.PeftConfig.from_pretrained(folder).base_model_name_or_path == saved.config.vla_path


@with_torch
def test_torch_loads_the_merged_checkpoint(export, loaded, inputs, hidden):
    np.testing.assert_allclose(torch_hidden(torch_policy(loaded, export("merged")), inputs), hidden, atol=2e-5)


@with_torch
def test_torch_loads_the_heads(export, loaded, hidden):
    import torch
    from torch import nn

    folder = export("heads", "--torch")
    width, size = loaded.vla_config.llama.width, hidden.shape[2] * hidden.shape[3]
    eos_head = nn.Sequential(
        nn.Linear(size, 6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 3), nn.ReLU(), nn.Dropout(0.1), nn.Linear(3, 1)
    ).eval()
    state = torch.load(folder / "eos_head--20_checkpoint.pt", weights_only=True)
    eos_head.load_state_dict({name.removeprefix("module.model."): array for name, array in state.items()})
    flat = torch.tensor(hidden).flatten(2)
    logits = EosHead(hidden_dim=6).apply({"params": loaded.params["eos_head"]}, hidden)
    np.testing.assert_allclose(eos_head(flat)[..., 0].detach().numpy(), logits, atol=2e-5)

    state = torch.load(folder / "action_head--20_checkpoint.pt", weights_only=True)
    assert all(name.startswith("module.model.") for name in state)

    def linear(x, name):
        return nn.functional.linear(x, state[f"module.model.{name}.weight"], state[f"module.model.{name}.bias"])

    def norm(x, name):
        return nn.functional.layer_norm(x, x.shape[-1:], state[f"module.model.{name}.weight"], state[f"module.model.{name}.bias"])

    x = linear(norm(flat, "layer_norm1"), "fc1").relu()
    for i in range(2):
        x = x + linear(norm(x, f"mlp_resnet_blocks.{i}.ffn.0"), f"mlp_resnet_blocks.{i}.ffn.1").relu()
    theirs = linear(norm(x, "layer_norm2"), "fc2")
    actions = ActionHead(width, action_dim=2).apply({"params": loaded.params["action_head"]}, hidden)
    np.testing.assert_allclose(theirs.numpy(), actions, atol=2e-5)


@pytest.mark.parametrize("form", ["heads", "peft", "merged"])
def test_every_form_has_heads_statistics_and_calibration(export, loaded, form):
    folder = export(form)
    names = {f"{part}--20_checkpoint.safetensors" for part in ("action_head", "eos_head")}
    assert {path.name for path in folder.glob("*checkpoint*")} == names
    files_of = Pretrained(folder).part_files(["action_head", "eos_head"]).of
    assert files_of.keys() == {"action_head", "eos_head"}
    for part, path in files_of.items():
        chex.assert_trees_all_equal(Pretrained(folder).load_part(path, part, loaded.vla_config, loaded.params[part]), loaded.params[part])
    recorded = loaded.record.run.dataset()
    assert json.loads((folder / "dataset_statistics.json").read_text()) == stats_to_json({"tiny": recorded.statistics})
    eos = json.loads((folder / "eos_calibration.json").read_text())
    point = saved_runs.POINT
    assert (eos["trained_prior"], eos["true_prior"], eos["eos_loss"]) == (15 / 35, saved_runs.SHARE, "balanced_buffer")
    assert (eos["threshold"], eos["chosen_by"], eos["held_out_episodes"]) == (0.2, "false_alarms:1", 7)
    assert (eos["debounce"], eos["min_steps"], eos["time_out"], eos["cumulative"], eos["plain_threshold"]) == (1, 4, None, False, 0.4)
    assert (eos["step"], eos["chosen_at_step"]) == (20, 20)
    z = np.linspace(-5, 5, 11)
    by_the_formula = eos["scale"] * (z + eos["shift"]) + eos["bias"]
    assert eos["gamma"] == 0
    assert eos["formula"].startswith("logit p = scale * (f + shift) + bias, where f = z, the raw logit, if gamma is 0")
    np.testing.assert_allclose(by_the_formula, point.calibration.logits(z))


def test_the_merged_folder_is_a_checkpoint_to_train_from(export, saved, loaded):
    (saved.folder.parent / "base" / "action_head--7_checkpoint.pt").write_bytes(b"of an earlier run")
    folder = export("merged", "--max_shard_gb", "2e-5")
    base = Pretrained.open(saved.config.vla_path)
    merged = Pretrained.open(str(folder))
    assert merged.config_json == base.config_json
    assert merged.tokenizer_file.read_bytes() == base.tokenizer_file.read_bytes()
    assert merged.tensors.shapes == base.tensors.shapes
    assert 5 < len(list(folder.glob("model-*.safetensors"))) < len(merged.tensors)
    untouched = "vision_backbone.featurizer.blocks.2.norm1.weight"
    np.testing.assert_array_equal(merged.tensors[untouched], base.tensors[untouched])
    assert {path.name for path in merged.part_files(PARTS).of.values()} == {
        "action_head--20_checkpoint.safetensors",
        "eos_head--20_checkpoint.safetensors",
    }


def test_weights_that_were_trained_whole_take_the_place_of_the_base(export, tmp_path, run):
    saved = saved_runs.make_run(tmp_path, use_lora=False, use_eos_classification=False)
    folder = export("merged", folder=saved.folder)
    config = load_run(saved.folder).vla_config
    chex.assert_trees_all_equal(Pretrained(folder).load_base(config, lambda _, array: np.asarray(array))[0], saved.params["vla"])
    assert (folder / "proprio_projector--10_checkpoint.safetensors").is_file()
    assert not (folder / "eos_calibration.json").exists()
    status, _, err = run("export", "--checkpoint", saved.folder, "--out", tmp_path / "other", "--format", "peft")
    assert status == 2
    assert "the run has no adapter, it was trained with --use_lora False; use --format merged or heads" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "run", "specs.yaml"]


@pytest.fixture
def diffusion_with_film(tmp_path):
    return saved_runs.make_run(tmp_path / "runs", use_diffusion=True, use_l1_regression=False, use_film=True)


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_diffusion_policy_with_film(export, diffusion_with_film, form):
    """Its parts come back from their files, as do the FiLM layers: on a base with the branches merged in, or on the old one."""
    saved, folder = diffusion_with_film, export(form, folder=diffusion_with_film.folder)
    config, checkpoint = load_run(saved.folder, with_base=False).vla_config, Pretrained(folder)
    paths = checkpoint.part_files([*saved.params]).of
    assert paths.keys() == {"action_head", "noisy_action_projector", "proprio_projector", "film", "eos_head"}
    for part, path in paths.items():
        if part != "film":
            chex.assert_trees_all_equal(checkpoint.load_part(path, part, config, saved.params[part]), saved.params[part])
    assert all(name.startswith("module.noise_predictor") for name in read_part(folder / "action_head--10_checkpoint.safetensors"))
    merged = form == "merged"
    base = checkpoint.load_base(config, lambda _, array: np.asarray(array))[0] if merged else saved.params["vla"]
    assert paths["film"].name == "vision_backbone--10_checkpoint.safetensors"
    layers = checkpoint.load_film(paths["film"], config, base, merged=merged)
    chex.assert_trees_all_equal(layers, saved.params["film"])
    with pytest.raises(WeightsError, match="FiLM vision backbone: .* is not that of the base weights"):
        checkpoint.load_film(paths["film"], config, base, merged=not merged)


def test_encoders_that_were_left_alone(export, tmp_path):
    saved = saved_runs.make_run(tmp_path / "runs", use_lora=False, freeze_vision=True)
    before, after = Pretrained.open(saved.config.vla_path).tensors, Pretrained(export("merged", folder=saved.folder)).tensors
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert {name for name in before if name.startswith("vision_backbone.")} < same
    assert same - {"language_model.lm_head.weight"} == {name for name in before if name.startswith("vision_backbone.")}


def test_an_older_step(export):
    assert (export("heads", "--step", "10") / "action_head--10_checkpoint.safetensors").is_file()


def test_the_demo_policy_has_no_checkpoint_to_merge_into(run, tmp_path):
    demo = saved_runs.save_run(tmp_path / "run", TrainConfig(vla_path="demo", use_lora=False), (1,))
    status, _, err = run("export", "--checkpoint", demo.folder, "--out", tmp_path / "out", "--format", "merged")
    assert (status, "the demo policy comes from no checkpoint of the PyTorch side" in err) == (2, True)


def test_nothing_is_overwritten_and_nothing_is_left_by_halves(run, saved, tmp_path, monkeypatch):
    def export(*flags, folder=saved.folder):
        status, _, err = run("export", "--checkpoint", folder, "--out", tmp_path / "out", "--format", "merged", *flags)
        return status, err

    (tmp_path / "out").mkdir()  # empty: may be filled
    (tmp_path / "out" / "mine").write_text("kept")
    status, err = export()
    assert (status, "out: exists; expected a folder that is new or empty" in err) == (2, True)
    (tmp_path / "out" / "mine").unlink()
    assert "no checkpoint of step 3" in export("--step", "3")[1]
    assert "--max_shard_gb: expected more than 0" in export("--max_shard_gb", "0")[1]
    assert "--max_shard_gb: expected more than 0" in export("--max_shard_gb", "nan")[1]
    assert "expected the folder of a training run" in export(folder=tmp_path)[1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "--torch: torch is not installed" in export("--torch")[1]

    write_checkpoint(tmp_path / "base", seed=1)
    status, err = export("--vla_path", tmp_path / "base")
    assert (status, "the base weights are not those that the run began with" in err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]
    assert not list((tmp_path / "out").iterdir())
    assert export()[0] == 0
    assert (tmp_path / "out" / "config.json").is_file()
