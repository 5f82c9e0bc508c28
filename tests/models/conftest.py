"""The smallest policy that has every part of the real one."""

import jax
import numpy as np
import pytest

from eosjax.models.llama import LlamaConfig
from eosjax.models.openvla import OpenVLA, VLAConfig
from eosjax.models.vit import ViTConfig


@pytest.fixture(scope="session")
def tiny() -> VLAConfig:
    """2 x 2 patches a view, language model of width 16 with grouped queries, chunks of 2 actions of 2 numbers."""
    return VLAConfig(
        dino=ViTConfig(8, 4, 8, 3, 2, 16, class_token=True, register_tokens=2, layer_scale=0.5),
        siglip=ViTConfig(8, 4, 12, 3, 2, 16),
        llama=LlamaConfig(vocab_size=20, width=16, depth=2, heads=4, kv_heads=2, mlp_dim=24),
        chunk=2,
        action_dim=2,
        proprio_dim=3,
    )


@pytest.fixture(scope="session")
def inputs():
    """Images, token ids, mask and proprio for `tiny`; prompts of 4 and 2 tokens after BOS in a text of 11."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8)
    ids = rng.integers(3, 20, (2, 11), dtype=np.int32)
    mask = np.ones((2, 11), bool)
    mask[1, 3:5] = False
    return images, ids, mask, rng.standard_normal((2, 3), np.float32)


@pytest.fixture(scope="session")
def draw():
    """Function of a model and its inputs: random variables (no array zero), drawn without compiling the initialisers."""

    def drawn(model: OpenVLA, inputs, seed=0):
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes)

    return drawn


@pytest.fixture(scope="session")
def variables(tiny, inputs, draw):
    """Weights of `tiny`."""
    return draw(OpenVLA(tiny), inputs)
