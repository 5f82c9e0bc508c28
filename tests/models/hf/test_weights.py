import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.models.heads import ActionHead, EosHead
from eosjax.models.hf import table, weights
from eosjax.models.llama import LlamaConfig
from eosjax.models.openvla import VLAConfig
from eosjax.models.vit import ViTConfig


def random_tree(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)


def base_params(config, seed=0):
    params = random_tree(weights.abstract_variables(config)["params"], seed)
    params.pop("proprio_projector", None)
    return params


@st.composite
def configs(draw):
    def pick(*values):
        return draw(st.sampled_from(values))

    patch, grid = pick(1, 2, 3), pick(1, 2)

    def vit(**extra):
        return ViTConfig(patch * grid, patch, pick(4, 6), pick(2, 3), pick(1, 2), pick(3, 8), **extra)

    dino = vit(class_token=pick(True, False), register_tokens=pick(0, 2), layer_scale=pick(None, 0.5))
    llama = LlamaConfig(pick(5, 9), 8, pick(1, 3), 4, pick(1, 2, 4), pick(6, 10), lm_head=pick(True, False))
    return VLAConfig(dino, vit(), llama, chunk=1, action_dim=1, proprio_dim=pick(0, 2), param_dtype=pick("float32", "bfloat16"))


@settings(deadline=None, derandomize=True, max_examples=8)
@given(configs())
def test_import_undoes_export_bit_for_bit(config):
    params = base_params(config)
    tensors = dict(weights.export_weights(params, config))
    back = weights.import_weights(tensors, config)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, params)
    chex.assert_trees_all_equal(back, params)
    again = dict(weights.export_weights(back, config))
    assert again.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (again[name].dtype, again[name].tobytes()) == (array.dtype, array.tobytes()), name


def test_tensors_have_the_layout_of_torch(tiny):
    params = base_params(tiny)
    tensors = dict(weights.export_weights(params, tiny))
    shapes = {
        "vision_backbone.featurizer.patch_embed.proj.weight": (8, 3, 4, 4),
        "vision_backbone.featurizer.blocks.1.attn.qkv.weight": (24, 8),
        "vision_backbone.featurizer.blocks.0.ls1.scale_factor": (8,),
        "vision_backbone.fused_featurizer.pos_embed": (1, 4, 12),
        "projector.fc1.weight": (80, 20),
        "language_model.model.embed_tokens.weight": (20, 16),
        "language_model.model.layers.1.self_attn.k_proj.weight": (8, 16),
        "language_model.model.layers.0.input_layernorm.weight": (16,),
    }
    assert {name: tensors[name].shape for name in shapes} == shapes
    kernel = params["vision_backbone"]["featurizer"]["patch_embed"]["proj"]["kernel"].reshape(4, 4, 3, 8)
    conv = tensors["vision_backbone.featurizer.patch_embed.proj.weight"]
    assert conv[5, 2, 1, 3] == kernel[1, 3, 2, 5]


def test_refuses_what_it_cannot_explain(tiny):
    tensors = dict(weights.export_weights(base_params(tiny), tiny))
    missing = "language_model.model.norm.weight"
    broken = {name: array for name, array in tensors.items() if name != missing} | {"language_model.extra": np.ones(1)}
    with pytest.raises(ValueError, match=rf"not in the checkpoint \(1\):\n  {missing}\n.*\(1\):\n  language_model.extra"):
        weights.import_weights(broken, tiny)
    with pytest.raises(ValueError, match=r"projector.fc3.bias: expected the shape \(16,\) .* got \(3,\)"):
        weights.import_weights(tensors | {"projector.fc3.bias": np.ones(3)}, tiny)


def test_leaves_aside_by_name_only_what_the_model_does_not_run(tiny):
    params = base_params(tiny)
    tensors = dict(weights.export_weights(params, tiny))
    unused = [
        "vision_backbone.featurizer.blocks.2.attn.qkv.weight",
        "vision_backbone.featurizer.norm.weight",
        "vision_backbone.fused_featurizer.attn_pool.mlp.fc1.bias",
        "language_model.lm_head.weight",
    ]
    extended = tensors | {name: np.ones(1) for name in unused}
    chex.assert_trees_all_equal(weights.import_weights(extended, tiny), params)
    speaking = dataclasses.replace(tiny, llama=dataclasses.replace(tiny.llama, lm_head=True))
    with pytest.raises(ValueError, match=r"language_model\.lm_head\.weight: expected the shape"):
        weights.import_weights(extended, speaking)
    with pytest.raises(ValueError, match=r"blocks\.3"):
        weights.import_weights(tensors | {"vision_backbone.featurizer.blocks.3.ls1.scale_factor": np.ones(1)}, tiny)


@pytest.mark.parametrize(("part", "head"), [("action_head", ActionHead(6, action_dim=4)), ("eos_head", EosHead(hidden_dim=6))])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_heads_round_trip(part, head, prefix):
    params = random_tree(jax.eval_shape(head.init, jax.random.key(0), jnp.ones((4, 5)))["params"], 0)
    tensors = weights.export_part(part, params)
    back = weights.import_part(part, {prefix + name: array for name, array in tensors.items()})
    chex.assert_trees_all_equal(back, params)
    tensors.popitem()
    with pytest.raises(ValueError, match=f"{part}: the tensors do not fit"):
        weights.import_part(part, tensors)


def test_proprio_projector_round_trips(tiny):
    params = random_tree(weights.abstract_variables(tiny)["params"]["proprio_projector"], 0)
    chex.assert_trees_all_equal(weights.import_part("proprio_projector", weights.export_part("proprio_projector", params)), params)
    with pytest.raises(ValueError, match="action_head, eos_head, proprio_projector"):
        table.part_table("film")


def test_each_array_goes_where_it_is_put_before_the_next_is_read(tiny):
    tensors = dict(weights.export_weights(base_params(tiny), tiny))
    events = []

    class Watched(dict):
        def __getitem__(self, name):
            events.append("read")
            return super().__getitem__(name)

    tree = weights.import_weights(Watched(tensors), tiny, put=lambda _, array: events.append("put") or array.size)
    assert sum(jax.tree.leaves(tree)) == sum(array.size for array in tensors.values())
    assert events.count("read") == len(tensors)
    longest = max(len(run) for run in "".join(event[0] for event in events).split("p"))
    assert longest == 2  # layers of one stacked array
