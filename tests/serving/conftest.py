"""A policy with random weights for 8-pixel images, and the frame stores of the data tests."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.data.samples.tokens import demo_tokenizer
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import DatasetStats, FieldStats
from eosjax.ends.calibration import Calibration, prior_shift
from eosjax.ends.operating_points import OperatingPoint
from eosjax.models.llama import LlamaConfig
from eosjax.models.openvla import VLAConfig
from eosjax.models.parts import init_params
from eosjax.models.vit import ViTConfig
from eosjax.serving.policy import Policy, Settings
from eosjax.training.state import make_learner
from eosjax.types import Batch
from tests.data.conftest import make_dataset, make_source, make_store  # noqa: F401  # fixtures

_VIT = ViTConfig(image_size=8, patch_size=4, width=8, depth=2, heads=2, mlp_dim=16)
SPEC = DatasetSpec()
TINY = VLAConfig(
    dino=_VIT,
    siglip=_VIT,
    llama=LlamaConfig(vocab_size=demo_tokenizer().vocab_size, width=16, depth=1, heads=2, kv_heads=2, mlp_dim=24),
    chunk=SPEC.chunk,
    action_dim=SPEC.action_size,
    proprio_dim=SPEC.proprio_size,
)
POINT = OperatingPoint.unseen(Calibration(shift=prior_shift(15 / 35, 0.05)), 0.5)
SETTINGS = Settings(
    cameras=("image", "wrist_image"), image_aug=False, normalisation="q99", gripper=SPEC.gripper, control_hz=SPEC.control_hz, eos=POINT
)


@functools.cache
def params(config=TINY, with_eos=True):
    """Random parameters by part; no array is zero."""
    text = config.action_tokens + 3
    size = config.dino.image_size
    shapes = Batch(
        images=jax.ShapeDtypeStruct((1, 1, size, size, 3), np.uint8),
        input_ids=jax.ShapeDtypeStruct((1, text), np.int32),
        attn_mask=jax.ShapeDtypeStruct((1, text), bool),
        proprio=jax.ShapeDtypeStruct((1, config.proprio_dim), np.float32),
        actions=None,
        eos=None,
        valid=None,
        key=None,
    )
    flags = {"vla_path": "demo", "use_lora": False, "eos_hidden_dim": 16, "use_eos_classification": with_eos}
    learner = make_learner(TrainConfig(**flags), config)
    tree = jax.eval_shape(functools.partial(init_params, learner.policy, learner.eos_head), shapes, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), tree)


@pytest.fixture(scope="session")
def stats():
    """Statistics of made-up actions and states."""
    rng = np.random.default_rng(1)
    mask = np.arange(SPEC.action_size) < SPEC.action_size - 1
    action = FieldStats.of(rng.normal(2.0, 3.0, (100, SPEC.action_size)), mask)
    return DatasetStats(action, FieldStats.of(rng.normal(size=(100, SPEC.proprio_size))), 100, 5)


@pytest.fixture(scope="session")
def make_policy(stats):
    """A function (stats=…, config=…, with_eos=True, **settings) -> `Policy`."""

    def make(stats=stats, config=TINY, with_eos=True, **settings) -> Policy:
        changed = dataclasses.replace(SETTINGS, **settings)
        return Policy(config, params(config, with_eos), stats, demo_tokenizer(), changed)

    return make


@pytest.fixture(scope="session")
def policy(make_policy):
    """One for all tests that change nothing of it."""
    return make_policy()


@pytest.fixture
def observe():
    """A function (rows, size=12) -> batched observation with random content."""

    def make(rows, size=12):
        rng = np.random.default_rng(rows)
        views = [rng.integers(0, 256, (rows, size, size + view, 3), dtype=np.uint8) for view in range(2)]
        return {"images": views, "state": rng.normal(size=(rows, SPEC.proprio_size))}

    return make
