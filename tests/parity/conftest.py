"""Comparing arrays of both sides, and a policy small enough for it."""

import jax
import numpy as np
import pytest

from eosjax.models.hf import weights
from eosjax.models.llama import LlamaConfig
from eosjax.models.openvla import IMAGENET_MEAN, IMAGENET_STD, VLAConfig
from eosjax.models.vit import ViTConfig

FORWARD, GRADIENT = 2e-5, 1e-4
QUICK = {"xla_backend_optimization_level": 0}  # these programs take far longer to compile than to run
POLICY = VLAConfig(
    dino=ViTConfig(
        28, 14, 16, 3, 2, 64, class_token=True, register_tokens=4, layer_scale=0.5, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    ),
    siglip=ViTConfig(28, 14, 24, 3, 3, 37),
    llama=LlamaConfig(vocab_size=40, width=32, depth=3, heads=4, kv_heads=4, mlp_dim=48),
    chunk=2,
    action_dim=3,
)


def random_params(config, seed=0):
    """The base weights of a policy, no array of which is zero."""
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return (mean + 0.2 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree.map_with_path(drawn, weights.abstract_variables(config)["params"])


def check_forward(ours, theirs):
    """Raises beyond the largest absolute error allowed."""
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=FORWARD)


def check_gradients(ours, theirs):
    """Raises beyond the largest error allowed, relative to the largest entry of each array; `ours`, `theirs`: by name."""
    assert ours.keys() == theirs.keys()
    assert ours
    for name, gradient in theirs.items():
        scale = np.abs(gradient).max()
        assert scale > 0, name
        np.testing.assert_allclose(ours[name] / scale, gradient / scale, rtol=0, atol=GRADIENT, err_msg=name)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
