"""Adapters as PEFT saves them: merged they are PEFT's own `merge_and_unload`; what eosjax cannot compute is refused by name."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eosjax.models.hf import weights
from eosjax.models.hf.adapter import load_adapter, write_adapter
from eosjax.models.hf.adapter_config import ADAPTER_FIELDS, AdapterConfig
from eosjax.models.hf.export import merged_tensors
from eosjax.models.hf.table import LM_HEAD
from eosjax.models.hf.weights import WeightsError
from tests.parity.conftest import POLICY, random_params
from tests.parity.test_lora import randomise

torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
peft = pytest.importorskip("peft", reason="peft is not installed (extra `parity`)")
pytest.importorskip("transformers", reason="transformers is not installed (extra `parity`)")

from benchmarks.torch_policy import TorchOpenVLA, load  # noqa: E402

ATTENTION = ["q_proj", "v_proj"]
CONV = "vision_backbone.fused_featurizer.patch_embed.proj"
LAYER = "language_model.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def base():
    """The tensors of a base checkpoint; those of the output projection, which is not run, among them."""
    tensors = dict(weights.export_weights(random_params(POLICY), POLICY))
    shape = (POLICY.llama.vocab_size, POLICY.llama.width)
    return tensors | {LM_HEAD: np.random.default_rng(3).standard_normal(shape).astype(np.float32)}


@pytest.fixture
def saved(base, tmp_path, rng):
    """A function (**fields of LoraConfig) -> PEFT's model with random branches, after it was saved in `tmp_path`."""

    def save(**fields):
        policy = TorchOpenVLA(POLICY)
        assert not load(policy, base)
        model = peft.get_peft_model(policy, peft.LoraConfig(**{"r": 4, "target_modules": ATTENTION, **fields}))
        randomise(model, rng)
        model.save_pretrained(tmp_path)
        return model

    return save


def merged(base, folder, rank):
    """(our merged tensors, the notes on the adapter)."""
    config = dataclasses.replace(POLICY, lora_rank=rank, lora_scaling=AdapterConfig.read(folder).scaling)
    lora, (made_for, *notes) = load_adapter(folder, config, base)
    assert made_for == "made for the base None"
    return dict(merged_tensors(base, config, {"lora": lora})), notes


@pytest.mark.parametrize(
    ("fields", "rank", "notes"),
    [
        ({"lora_alpha": 7}, 4, 1),
        ({"lora_alpha": 4, "use_rslora": True, "target_modules": "all-linear"}, 4, 1),
        ({"lora_alpha": 4, "init_lora_weights": "gaussian", "target_modules": ["qkv", "proj", "fc1", "fc2", "fc3", "lm_head"]}, 4, 1),
        ({"lora_alpha": 16, "alpha_pattern": {"q_proj": 8}}, 4, 2),
        ({"lora_alpha": 3, "use_rslora": True, "alpha_pattern": {LAYER: 5}, "rank_pattern": {r"layers.\d+.self_attn.v_proj": 7}}, 7, 3),
        ({"lora_alpha": 2, "rank_pattern": {"^language_model.model.layers.0.self_attn.q_proj": 2}, "exclude_modules": [LAYER]}, 4, 3),
        ({"lora_alpha": 2, "target_modules": r".*\.layers\.[01]\.mlp\.(up|down)_proj"}, 4, 1),
        ({"lora_alpha": 2, "init_lora_weights": "orthogonal"}, 4, 1),
    ],
)  # fmt: skip
def test_merged_weights_are_those_of_peft(base, saved, tmp_path, fields, rank, notes):
    model = saved(**fields)
    found, told = merged(base, tmp_path, rank)
    theirs = model.merge_and_unload().state_dict()
    changed = 0
    for name, array in found.items():
        if name == LM_HEAD:  # not run: its branch is left aside
            continue
        np.testing.assert_allclose(array, theirs[name].numpy(), rtol=0, atol=1e-6, err_msg=name)
        changed += (array != base[name]).any()
    assert changed >= 3
    assert len(told) == notes, told


def test_layers_without_a_branch_are_named_and_missing_ones_are_refused(base, saved, tmp_path):
    saved(target_modules="all-linear", lora_alpha=4)
    _, (note,) = merged(base, tmp_path, 4)
    assert note == (
        "no branch for 2 layers, which stay as in the base: vision_backbone.featurizer.patch_embed.proj, " + CONV
    )  # fmt: skip
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    content["target_modules"].append(CONV)
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=rf"not in the checkpoint \(2\):\n  base_model.model.{CONV}.lora_A.weight\n"):
        merged(base, tmp_path, 4)


def test_another_rank_is_named(base, saved, tmp_path):
    saved(rank_pattern={"q_proj": 8})
    with pytest.raises(WeightsError, match=r"r: expected --lora_rank \(4\), got 8; add --lora_rank 8"):
        merged(base, tmp_path, 4)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(content | {"rank_pattern": {}}))
    with pytest.raises(WeightsError, match=r"q_proj.lora_A.weight: expected the rank 4 of adapter_config.json on axis 0, got .*\(8, 32\)"):
        merged(base, tmp_path, 4)


def test_the_output_projection_that_peft_stores_beside_must_be_that_of_the_base(base, saved, tmp_path):
    saved(target_modules=[*ATTENTION, "lm_head"], lora_alpha=4)
    path = tmp_path / "adapter_model.safetensors"
    beside = {f"base_model.model.{name.replace('.weight', '.base_layer.weight')}": base[name] for name in [LM_HEAD]}
    save_file(load_file(path) | beside, path)  # PEFT stores it for models of transformers
    config = dataclasses.replace(POLICY, lora_rank=4, llama=dataclasses.replace(POLICY.llama, lm_head=True))
    assert load_adapter(tmp_path, config, base).lora["language_model"]["lm_head"]["a"].shape == (32, 4)
    other = base | {LM_HEAD: 1 + base[LM_HEAD]}
    with pytest.raises(WeightsError, match=r"lm_head.base_layer.weight: expected the values of language_model.lm_head.weight of the base"):
        load_adapter(tmp_path, config, other)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_2"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"bias": "all"}, "bias"),
        ({"bias": "lora_only", "target_modules": ["qkv"]}, "bias"),
        ({"modules_to_save": ["fc3"]}, "modules_to_save"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"lora_bias": True, "target_modules": ["qkv"]}, "lora_bias"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(base, saved, tmp_path, fields, field):
    saved(**fields)
    with pytest.raises(WeightsError, match=rf"adapter_config.json: {field}: expected .*, got "):
        merged(base, tmp_path, 4)


@pytest.mark.parametrize("fields", [{"bias": "lora_only", "target_modules": ["qkv"]}, {"modules_to_save": ["fc3"]}])
def test_no_tensor_of_an_adapter_is_left_aside_silently(base, saved, tmp_path, fields):
    """Even if adapter_config.json does not tell of it."""
    model = saved(lora_alpha=4, **fields)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.data += 1
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text()) | {"bias": "none", "modules_to_save": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(
        WeightsError, match=r"adapter_model.safetensors: .*(bias|fc3.weight): expected the values of .* of the base weights, got others"
    ):
        merged(base, tmp_path, 4)


@pytest.mark.parametrize("scaling", [0.5, 4 / 3**0.5])
def test_an_adapter_of_any_scale_is_read_by_peft(base, tmp_path, rng, scaling):
    config = dataclasses.replace(POLICY, lora_rank=4, lora_scaling=scaling)
    shapes = weights.abstract_variables(config)["lora"]
    lora = jax.tree.map(lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    write_adapter(tmp_path, lora, config, "owner/base")
    policy = TorchOpenVLA(POLICY)
    load(policy, base)
    theirs = peft.PeftModel.from_pretrained(policy, str(tmp_path)).merge_and_unload().state_dict()
    for name, array in merged_tensors(base, config, {"lora": lora}):
        np.testing.assert_allclose(array, theirs[name].numpy(), rtol=0, atol=1e-6, err_msg=name)


def test_every_field_of_peft_has_a_treatment():
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} <= ADAPTER_FIELDS.keys()
    content = json.loads(json.dumps(peft.LoraConfig(r=2, target_modules="q").to_dict(), default=list))
    assert AdapterConfig.from_json(content).scaling == 4.0
