"""A learner small enough to compile in seconds, and random batches for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax import losses
from eosjax.config import TrainConfig
from eosjax.models.llama import LlamaConfig
from eosjax.models.openvla import OpenVLA, VLAConfig, with_action_tokens
from eosjax.models.parts import init_params, split_params
from eosjax.models.policies import ActionLoss, Actions, Policy
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


@dataclasses.dataclass(frozen=True)
class StubPolicy(Policy):
    """One layer in place of the network, for tests of what stands around a policy: it has the shapes of `vla`, and compiles in a second."""

    def init_head(self, key):
        return {"kernel": jax.random.normal(key, (TINY.llama.width,)), "bias": jnp.zeros(TINY.action_dim)}

    def init_parts(self, key):
        """The parts `vla` and `action_head`."""
        vla_key, head_key = jax.random.split(key)
        kernel = jax.random.normal(vla_key, (2 * 3 + TINY.proprio_dim, TINY.chunk, TINY.action_dim, TINY.llama.width))
        return {"vla": {"kernel": kernel}, "action_head": self.init_head(head_key)}

    def act(self, params, seen, noise_keys):
        colours = jnp.mean(seen.images / 255.0, axis=(2, 3)).reshape(len(seen.proprio), -1)
        features = jnp.concatenate([colours, seen.proprio], axis=1)
        hidden = jnp.tanh(jnp.einsum("bf,fkad->bkad", features, params["vla"]["kernel"]))
        return Actions(hidden, hidden @ params["action_head"]["kernel"] + params["action_head"]["bias"])

    def loss(self, params, seen, actions, valid, noise_keys, dropout_key):
        hidden, predicted = self.act(params, seen, noise_keys)
        total, count = losses.masked_l1(predicted, actions, valid)
        return ActionLoss(hidden, {"action_sum": total, "action_count": count})


@functools.cache
def initial_params(policy, eos_head):
    """Random parameters by part."""
    example = random_batch(np.random.default_rng(0), 1)
    return init_params(policy, eos_head, example, jax.random.key(3))


@functools.cache  # a learner is compiled once for all tests that share it
def build(lora_rank=0, kind="regression", **flags):
    """(learner, state, frozen) for the tiny policy."""
    learner = make_learner(dataclasses.replace(CONFIG, **flags), dataclasses.replace(KINDS[kind], lora_rank=lora_rank), share_of_ends=0.3)
    trainable, frozen = split_params(initial_params(learner.policy, learner.eos_head))
    return learner, init_state(learner, trainable, jax.random.key(4)), frozen


@functools.cache
def build_stub(**flags):
    """As `build`, with the stub for a policy."""
    policy = StubPolicy(OpenVLA(TINY))
    learner = dataclasses.replace(make_learner(dataclasses.replace(CONFIG, **flags), TINY, share_of_ends=0.3), policy=policy)
    trainable = policy.init_parts(jax.random.key(3))
    if learner.eos_head is not None:
        hidden = jnp.zeros((TINY.action_dim, TINY.llama.width))
        trainable["eos_head"] = jax.jit(learner.eos_head.init)(jax.random.key(5), hidden)["params"]
    return learner, init_state(learner, trainable, jax.random.key(4)), {}


@functools.cache
def jitted_step(learner):
    """The step of a learner on one device."""
    return jax.jit(functools.partial(train_step, learner))


@pytest.fixture
def batches():
    """Ten random batches of eight."""
    rng = np.random.default_rng(1)
    return [random_batch(rng) for _ in range(10)]
