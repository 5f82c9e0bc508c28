import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.models.lora import LinearConfig
from eosjax.models.vit import Block, PatchEmbed, ViT, ViTConfig

CONFIG = ViTConfig(12, 4, 8, 4, 2, 16, class_token=True, register_tokens=2, layer_scale=0.5)
LINEAR = LinearConfig()
IMAGES = np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype(np.float32)


def drawn(module, *arguments) -> Any:
    """Random parameters of a module, without compiling its initialisers."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES, *arguments))["params"]
    return jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes)


def test_patch_embedding_is_the_convolution():
    embed = PatchEmbed(CONFIG, LINEAR)
    params = drawn(embed, True)
    kernel = params["proj"]["kernel"].reshape(4, 4, 3, 8)
    convolved = jax.lax.conv_general_dilated(jnp.asarray(IMAGES), kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    expected = convolved.reshape(2, 9, 8) + params["proj"]["bias"]
    chex.assert_trees_all_close(embed.apply({"params": params}, IMAGES, True), expected, atol=1e-4)


@pytest.mark.parametrize("prefix", [True, False])
def test_features_are_those_of_the_second_to_last_block(prefix):
    config = CONFIG if prefix else ViTConfig(12, 4, 8, 4, 2, 16)
    vit = ViT(config, LINEAR)
    params = drawn(vit)
    assert {len(leaf) for leaf in jax.tree.leaves(params["blocks"])} == {config.depth - 1}
    assert set(params) == {"patch_embed", "pos_embed", "blocks"} | ({"cls_token", "reg_token"} if prefix else set())

    @jax.jit
    def looped(params):
        x = PatchEmbed(config, LINEAR).apply({"params": params["patch_embed"]}, IMAGES, True) + params["pos_embed"]
        if prefix:
            tokens = jnp.concatenate([params["cls_token"], params["reg_token"]], 1)
            x = jnp.concatenate([jnp.repeat(tokens, 2, 0), x], 1)
        for i in range(config.depth - 1):
            block = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
            x, _ = Block(config, LINEAR).apply({"params": block}, x, True)
        return x[:, 3:] if prefix else x

    chex.assert_trees_all_close(jax.jit(vit.apply)({"params": params}, IMAGES), looped(params), atol=1e-5)


def test_layer_scale_starts_at_its_configured_value():
    vit = ViT(dataclasses.replace(CONFIG, layer_scale=1e-5), LINEAR)
    factor = jax.jit(lambda: vit.init(jax.random.key(0), IMAGES)["params"]["blocks"]["ls1"]["scale_factor"])()
    np.testing.assert_array_equal(factor, np.full((3, 8), 1e-5, np.float32))


@pytest.mark.parametrize("bad", [{"image_size": 13}, {"heads": 3}, {"depth": 1}])
def test_refuses_impossible_sizes(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        dataclasses.replace(CONFIG, **bad)
