"""A learner small enough to compile in seconds, and random batches for it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.models.llama import LlamaConfig
from eosjax.models.openvla import VLAConfig, with_action_tokens
from eosjax.models.parts import init_params, split_params
from eosjax.models.vit import ViTConfig
from eosjax.training.state import init_state, make_learner
from eosjax.training.step import train_step
from eosjax.types import Batch

_VIT = ViTConfig(image_size=16, patch_size=8, width=8, depth=2, heads=2, mlp_dim=16)
TINY = VLAConfig(
    dino=_VIT,
    siglip=_VIT,
    llama=LlamaConfig(vocab_size=32, width=16, depth=2, heads=2, kv_heads=2, mlp_dim=32),
    chunk=4,
    action_dim=3,
    proprio_dim=5,
)
CONFIG = TrainConfig(
    vla_path="demo",
    use_lora=False,
    model_dtype="float32",
    use_proprio=True,
    eos_hidden_dim=16,
    eos_dropout=0.0,
    eos_buffer_capacity=12,
    eos_sample_positive=3,
    eos_min_positive=3,
    eos_sample_negative=5,
    eos_min_negative=5,
    learning_rate=1e-3,
    log_freq=3,
)


def random_batch(rng, size=8, share=0.3):
    """A batch of the tiny learner's shapes with random content; some slots lie past the end of their episode."""
    text = 3 + 2 + TINY.action_tokens + 1
    attn_mask = np.ones((size, text), bool)
    attn_mask[:, 3] = False
    valid = np.arange(TINY.chunk) < rng.integers(1, TINY.chunk + 1, (size, 1))
    return Batch(
        images=rng.integers(0, 256, (size, 2, 16, 16, 3), dtype=np.uint8),
        input_ids=rng.integers(0, 32, (size, text)).astype(np.int32),
        attn_mask=attn_mask,
        proprio=rng.normal(size=(size, TINY.proprio_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, (size, TINY.chunk, TINY.action_dim)).astype(np.float32),
        eos=((rng.random((size, TINY.chunk)) < share) & valid).astype(np.float32),
        valid=valid,
        key=np.arange(size, dtype=np.int32),
    )


# The tiny policy in all its kinds
KINDS = {
    "regression": TINY,
    "diffusion": dataclasses.replace(TINY, diffusion=True, diffusion_train_steps=6, diffusion_steps=3),
    "tokens": with_action_tokens(dataclasses.replace(TINY, llama=dataclasses.replace(TINY.llama, vocab_size=300)), 290),
    "film": dataclasses.replace(TINY, film=True),
    "frozen vision": dataclasses.replace(TINY, freeze_vision=True),
}


@functools.cache  # a learner is compiled once for all tests that share it
def build(lora_rank=0, kind="regression", **flags):
    """(learner, state, frozen) for the tiny policy."""
    config = dataclasses.replace(CONFIG, **flags)
    learner = make_learner(config, dataclasses.replace(KINDS[kind], lora_rank=lora_rank), share_of_ends=0.3)
    example = random_batch(np.random.default_rng(0), 1)
    params = jax.jit(lambda key: init_params(learner.policy, learner.eos_head, example, key))(jax.random.key(3))
    trainable, frozen = split_params(params)
    return learner, init_state(learner, trainable, jax.random.key(4)), frozen


@functools.cache
def jitted_step(learner):
    """The step of a learner on one device."""
    return jax.jit(functools.partial(train_step, learner))


@pytest.fixture
def batches():
    """Ten random batches of eight."""
    rng = np.random.default_rng(1)
    return [random_batch(rng) for _ in range(10)]
