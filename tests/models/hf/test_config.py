import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.models.hf.config import TIMM_VITS, action_vocabulary, vla_config_from_hf
from eosjax.models.hf.config_fields import CONFIG_FIELDS, TEXT_FIELDS
from eosjax.models.hf.weights import WeightsError, abstract_variables, export_weights
from eosjax.models.llama import LlamaConfig, rope_tables

OPENVLA_7B = {
    "use_fused_vision_backbone": True,
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "image_sizes": [224, 224],
    "text_config": {"model_type": "llama", "vocab_size": 32064},
}


def test_configuration_of_openvla_7b():
    config = vla_config_from_hf(OPENVLA_7B, chunk=8, param_dtype="bfloat16")
    shapes = abstract_variables(config)["params"]
    # All 7,541,237,184 parameters of the published checkpoint but the parts that are not run.
    block = 12 * 1024**2 + 15 * 1024
    siglip_block = 4 * 1152**2 + 2 * 1152 * 4304 + 4304 + 9 * 1152
    pool = 4 * 1152**2 + 2 * 1152 * 4304 + 4304 + 8 * 1152
    unused = block + siglip_block + pool + 2 * 1024 + 2 * 1152 + 32064 * 4096
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 7_541_237_184 - unused
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}


def test_configuration_reads_what_the_files_say():
    text = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "rms_norm_eps": 1e-5}
    pixels = [{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}, {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}]
    config = vla_config_from_hf(
        OPENVLA_7B | {"text_config": text, "image_sizes": [28, 28]}, {"tvf_normalize_params": pixels}, proprio_dim=8
    )
    assert config.llama == LlamaConfig(40, 32, 3, 4, 4, 11008, rms_norm_eps=1e-5)
    assert config.dino.image_mean == (0.1, 0.2, 0.3)
    assert config.siglip.image_std == (0.25, 0.25, 0.25)
    assert config.dino.num_patches == 4
    assert config.proprio_dim == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone"),
        ({"timm_model_ids": ["resnet50", "resnet50"]}, "timm_model_ids: expected two of vit_large.*resnet50"),
        ({"timm_model_ids": None}, "timm_model_ids: expected two of .*, got None"),
        ({"model_type": "prismatic_moe"}, r"config.json: model_type: expected 'openvla' or 'prismatic', got 'prismatic_moe'"),
        ({"num_experts": 4}, "config.json: num_experts: unknown field"),
        ({"image_resize_strategy": "letterbox"}, "image_resize_strategy: expected 'resize-naive', got 'letterbox'"),
        ({"image_sizes": [224]}, "image_sizes: expected a list of 2 values"),
        ({"image_sizes": [224, 10**400]}, "image_sizes: expected a whole number from 1 to 4096, got 1000"),
        ({"image_sizes": [224, 225]}, "config.json: ViTConfig: image_size 225 is no multiple"),
        ({"timm_override_act_layers": [None, "quick_gelu"]}, "timm_override_act_layers: expected None or .*: another activation"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: .*: quantised weights are not read"),
        ({"text_config": None}, "text_config: expected an object, got None"),
        ({"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}, r"text_config.rope_scaling.type: expected 'default'"),
        (
            {"text_config": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}},
            r"rope_parameters.rope_type: expected 'default'",
        ),
        ({"text_config": {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}}, "two bases of the rotary frequencies"),
        ({"text_config": {"rope_theta": float("nan")}}, "rope_theta: expected a number from 1 to 1e"),
        (
            {"text_config": {"model_type": "mistral", "sliding_window": 4096}},
            "model_type: expected 'llama', .*\n.*sliding_window: expected None",
        ),
        ({"text_config": {"hidden_act": "gelu"}}, "text_config.hidden_act: expected 'silu' or 'swish', got 'gelu'"),
        ({"text_config": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: expected 1 or None, got 0.5"),
        ({"text_config": {"attention_bias": True}}, "attention_bias: expected False or None, got True"),
        ({"text_config": {"head_dim": 64}}, "head_dim: expected hidden_size / num_attention_heads = 128, got 64"),
        ({"text_config": {"hidden_size": 4095}}, "config.json: LlamaConfig: width 4095"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers: expected a whole number from 1 to 1000"),
    ],
)
def test_refuses_other_architectures(change, message):
    with pytest.raises(WeightsError, match=message):
        vla_config_from_hf(OPENVLA_7B | change)


PIXELS = [{"mean": [0.5] * 3, "std": [0.5] * 3, "inplace": False}] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "preprocessor_config.json: means: expected a list of 2 values, got None"),
        ({"tvf_normalize_params": PIXELS[:1]}, "tvf_normalize_params: expected a list of 2 values"),
        (
            {"tvf_normalize_params": [{"mean": [0.5] * 3, "std": [0.0] * 3}] * 2},
            "tvf_normalize_params: expected a number from 0.001 to 10, got 0",
        ),
        ({"tvf_normalize_params": [None, None]}, "tvf_normalize_params: expected an object, got None"),
        (
            {"tvf_normalize_params": PIXELS, "tvf_do_letterbox": True},
            "tvf_do_letterbox: expected False or None, got True: images get no border",
        ),
        (
            {"tvf_normalize_params": PIXELS, "tvf_crop_params": [{"output_size": [200, 200]}] * 2},
            "tvf_crop_params: expected the image_sizes",
        ),
        ({"tvf_normalize_params": PIXELS, "tvf_resize_params": [{"size": 224}] * 2}, "tvf_resize_params: expected the image_sizes"),
        ({"tvf_normalize_params": PIXELS, "do_rescale": False}, "preprocessor_config.json: do_rescale: unknown field"),
    ],
)
def test_refuses_other_preprocessing(content, message):
    with pytest.raises(WeightsError, match=message):
        vla_config_from_hf(OPENVLA_7B, content)


def test_pixels_come_from_means_where_no_transform_is_stored():
    config = vla_config_from_hf(OPENVLA_7B, {"means": [[0.1] * 3, [0.2] * 3], "stds": [[0.3] * 3, [0.4] * 3]})
    assert (config.dino.image_mean, config.siglip.image_std) == ((0.1,) * 3, (0.4,) * 3)


def test_the_files_of_the_original_pass(golden):
    folder = golden / "tiny32k" / "checkpoint"
    config, preprocessor = (json.loads((folder / name).read_text()) for name in ("config.json", "preprocessor_config.json"))
    read = vla_config_from_hf(config, preprocessor)
    assert (read.llama.width, read.llama.depth, read.llama.vocab_size, read.dino.image_size) == (64, 2, 32064, 56)
    assert read.dino.image_mean[0] == pytest.approx(0.485)
    assert action_vocabulary(config) == 32_000
    # As openvla/openvla-7b has it on the hub.
    public = config | {
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "image_sizes": [224, 224],
        "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
        "torch_dtype": "bfloat16",
    }
    assert vla_config_from_hf(public).llama == LlamaConfig()


def test_what_todays_transformers_writes_passes():
    """Every field of its LlamaConfig has a treatment; rotary frequencies of the base that it wrote are its own."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `parity`)")
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    written = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    text = json.loads(written.to_json_string(use_diff=False))
    assert text.keys() <= TEXT_FIELDS.keys()
    llama = vla_config_from_hf(OPENVLA_7B | {"text_config": text}).llama
    assert llama == LlamaConfig(64, 32, 2, 4, 2, 48, rms_norm_eps=1e-5, rope_theta=500.0)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(written)
    theirs = rotary(torch.zeros(1), torch.arange(40)[None])
    for ours, table in zip(rope_tables(jnp.arange(40)[None], llama.head_dim, llama.rope_theta), theirs, strict=True):
        np.testing.assert_allclose(ours, table[..., : llama.head_dim // 2], atol=2e-6)
    base = transformers.PretrainedConfig().to_dict().keys()
    assert base <= TEXT_FIELDS.keys()
    assert base <= CONFIG_FIELDS.keys()


@pytest.mark.parametrize(
    ("change", "found"),
    [({}, 32_000), ({"pad_to_multiple_of": 0}, 32_064), ({"text_config": {"vocab_size": 1000}, "n_action_bins": 256}, 936)],
)
def test_the_vocabulary_of_actions_is_that_of_the_original(change, found):
    assert action_vocabulary(OPENVLA_7B | change) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_action_bins": 128}, "config.json: n_action_bins: expected 256 for actions as tokens, got 128"),
        ({"pad_to_multiple_of": -1}, "pad_to_multiple_of: expected a whole number from 0"),
        ({"text_config": {"vocab_size": 300}}, "expected more than 256 ids beside pad_to_multiple_of 64, got 300"),
    ],
)
def test_a_vocabulary_without_room_for_actions_is_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        action_vocabulary(OPENVLA_7B | change)


def test_encoders_are_measured_by_their_tensors(tiny):
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_variables(tiny)["params"])
    shapes = {name: array.shape for name, array in export_weights(params, tiny)}
    # The checkpoint has the last block, which the model does not run.
    shapes |= {f"vision_backbone.{part}.blocks.2.norm1.weight": (1,) for part in ("featurizer", "fused_featurizer")}
    text = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    files = OPENVLA_7B | {"text_config": text | {"intermediate_size": 24}, "image_sizes": [8, 8]}
    with pytest.raises(WeightsError, match=r"featurizer: config.json names vit_large.* width 8, .*--vision_heads"):
        vla_config_from_hf(files, shapes=shapes)
    config = vla_config_from_hf(files, shapes=shapes, vision_heads=(2, 2), chunk=2, action_dim=2, proprio_dim=3)
    dino, siglip = (dataclasses.replace(vit, image_mean=(0, 0, 0), image_std=(1, 1, 1)) for vit in (config.dino, config.siglip))
    wanted = [dataclasses.replace(vit, image_mean=(0, 0, 0), image_std=(1, 1, 1)) for vit in (tiny.dino, tiny.siglip)]
    assert [dataclasses.replace(dino, layer_scale=0.5), siglip] == wanted
    assert config.llama == tiny.llama


def test_the_published_sizes_need_no_head_count():
    named = vla_config_from_hf(OPENVLA_7B)
    shapes = {}
    for prefix, vit in zip(("featurizer", "fused_featurizer"), (named.dino, named.siglip), strict=True):
        name = f"vision_backbone.{prefix}"
        shapes |= {f"{name}.blocks.{i}.mlp.fc1.weight": (vit.mlp_dim, vit.width) for i in range(vit.depth)}
        shapes[f"{name}.patch_embed.proj.weight"] = (vit.width, 3, vit.patch_size, vit.patch_size)
        if vit.class_token:
            shapes |= {f"{name}.cls_token": (1, 1, vit.width), f"{name}.reg_token": (1, 4, vit.width)}
            shapes[f"{name}.blocks.0.ls1.scale_factor"] = (vit.width,)
    assert vla_config_from_hf(OPENVLA_7B, shapes=shapes) == named
    assert vla_config_from_hf(OPENVLA_7B, shapes=shapes, vision_heads=(16, 16)) == named
    with pytest.raises(WeightsError, match="--vision_heads: vit_so400m.* has 16 heads, got 12"):
        vla_config_from_hf(OPENVLA_7B, shapes=shapes, vision_heads=(16, 12))
    assert named.dino == TIMM_VITS["vit_large_patch14_reg4_dinov2.lvd142m"]
