import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from eosjax.models.hf.config import TIMM_VITS, vla_config_from_hf
from eosjax.models.hf.weights import WeightsError, abstract_variables, export_weights
from eosjax.models.llama import LlamaConfig

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
        ({"text_config": {"vocab_size": 9, "rope_scaling": {"type": "linear"}}}, "rope_scaling"),
    ],
)
def test_refuses_other_architectures(change, message):
    with pytest.raises(WeightsError, match=message):
        vla_config_from_hf(OPENVLA_7B | change)


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
    assert named.dino == TIMM_VITS["vit_large_patch14_reg4_dinov2.lvd142m"]
