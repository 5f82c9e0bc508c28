"""The policies that are measured, synthetic batches for them, and their training state, made on the device."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eosjax.config import TrainConfig
from eosjax.models.hf.config import PUBLISHED, vla_config_from_hf
from eosjax.models.llama import LlamaConfig
from eosjax.models.lora import openvla_scaling
from eosjax.models.openvla import VLAConfig, demo_config
from eosjax.models.parts import init_params, split_params
from eosjax.models.policies import Params
from eosjax.models.stacks import take_apart, unrolls
from eosjax.models.vit import ViTConfig
from eosjax.training.parallel import DataParallel
from eosjax.training.state import Learner, TrainState, init_state, make_learner
from eosjax.types import Batch

LORA_RANK = 32
PROMPT = 42  # tokens after BOS, as `eosjax plan` assumes
SHARE_OF_ENDS = 0.3  # in synthetic batches: more than in data, so that the buffer is ready at the first update


class Begun(NamedTuple):
    """A run before its first update, on one device."""

    learner: Learner
    parallel: DataParallel
    state: TrainState
    frozen: Params


def fused() -> str:
    """The attention that holds no scores, on the default device."""
    return "cudnn" if jax.default_backend() == "gpu" else "blockwise"


def large_policy(attention: str, remat: str, *, tiny: bool) -> VLAConfig:
    """openvla-7b with proprio and LoRA in bfloat16; with `tiny` the same of the size of the demo.

    Args:
      attention: an implementation of `eosjax.models.attention`.
      remat: see `eosjax.models.lora`.
      tiny: small enough for a CPU.
    """
    changes: dict[str, Any] = {
        "chunk": 8, "action_dim": 7, "proprio_dim": 8, "dtype": "bfloat16", "param_dtype": "bfloat16", "attention": attention,
        "remat": remat, "unroll": unrolls(), "lora_rank": LORA_RANK, "lora_scaling": openvla_scaling(LORA_RANK),
    }  # fmt: skip
    if not tiny:
        return vla_config_from_hf(PUBLISHED["openvla/openvla-7b"], **changes)
    demo = demo_config(vocab_size=512)
    # Heads of 64 channels: the fused kernel takes multiples of 8 alone.
    dino, siglip = (dataclasses.replace(vit, width=64, heads=1) for vit in (demo.dino, demo.siglip))
    llama = dataclasses.replace(demo.llama, width=128, heads=2, kv_heads=2)
    return dataclasses.replace(demo, dino=dino, siglip=siglip, llama=llama, **changes)


def small_policy() -> VLAConfig:
    """A policy in float32 that compiles in seconds."""
    vit = ViTConfig(image_size=16, patch_size=8, width=16, depth=2, heads=2, mlp_dim=32)
    llama = LlamaConfig(vocab_size=64, width=32, depth=2, heads=2, kv_heads=2, mlp_dim=64)
    return VLAConfig(vit, vit, llama, chunk=4, action_dim=3, proprio_dim=5)


def config_of(images: int, batch: int, **changes: Any) -> TrainConfig:
    """The flags of a run: the defaults, with proprio."""
    return TrainConfig(num_images_in_input=images, use_proprio=True, batch_size=batch, **changes)


def small_config(**changes: Any) -> TrainConfig:
    """The flags of a run in float32 that trains all weights, and logs every update."""
    return config_of(2, 8, vla_path="demo", use_lora=False, model_dtype="float32", log_freq=1, **changes)


def text_length(policy: VLAConfig) -> int:
    """Token ids in a row: BOS, the prompt, and the tail."""
    return 1 + PROMPT + policy.text_tail


def synthetic_batch(policy: VLAConfig, images: int, size: int, seed: int = 0) -> Batch:
    """Random content on the host; prompts of several lengths, and slots past the end of an episode."""
    rng = np.random.default_rng(seed)
    side, text = policy.dino.image_size, text_length(policy)
    attn_mask = np.ones((size, text), bool)
    attn_mask[:, 1 : 1 + PROMPT] = np.arange(PROMPT) < rng.integers(PROMPT // 2, PROMPT + 1, (size, 1))
    valid = np.arange(policy.chunk) < rng.integers(policy.chunk // 2, policy.chunk + 1, (size, 1))
    return Batch(
        images=rng.integers(0, 256, (size, images, side, side, 3), dtype=np.uint8),
        input_ids=rng.integers(0, policy.llama.vocab_size, (size, text)).astype(np.int32),
        attn_mask=attn_mask,
        proprio=rng.normal(size=(size, policy.proprio_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, (size, policy.chunk, policy.action_dim)).astype(np.float32),
        eos=((rng.random((size, policy.chunk)) < SHARE_OF_ENDS) & valid).astype(np.float32),
        valid=valid,
        key=np.arange(size, dtype=np.int32),
    )


def begin(config: TrainConfig, policy: VLAConfig, device: Any) -> Begun:
    """Random weights and the first state, made on the device by one program: nothing of their size is ever on the host."""
    learner = make_learner(config, policy)
    parallel = DataParallel(learner, [device])
    shapes = _param_shapes(learner, config, policy)

    def make(key: jax.Array) -> tuple[TrainState, Params]:
        trainable, frozen = split_params(_random_like(shapes, key))
        return init_state(learner, trainable, key), take_apart(frozen) if policy.unroll else frozen

    state, frozen = jax.jit(make, out_shardings=parallel.replicated)(jax.random.key(0))
    return Begun(learner, parallel, state, frozen)


def _param_shapes(learner: Learner, config: TrainConfig, policy: VLAConfig) -> Params:
    example = synthetic_batch(policy, config.num_images_in_input, 1)
    return jax.eval_shape(functools.partial(init_params, learner.policy, learner.eos_head), example, jax.random.key(0))


def _random_like(shapes: Params, key: jax.Array) -> Params:
    """Uniform numbers of the variance 1 / rows for matrices, ones for the scales of norms.

    By a hash of the place in the array, so that XLA makes one loop of it, which needs no memory but for the result.
    """
    leaves, treedef = jax.tree.flatten_with_path(shapes)
    seeds = jax.random.bits(key, (len(leaves),))

    def fill(path: Any, shape: jax.ShapeDtypeStruct, seed: jax.Array) -> jax.Array:
        if "scale" in jax.tree_util.keystr(path[-1:]):
            return jnp.ones(shape.shape, shape.dtype)
        bits = jax.lax.iota(jnp.uint32, shape.size) ^ seed
        for factor in (0x85EBCA6B, 0xC2B2AE35):  # of MurmurHash3's last step
            bits = (bits ^ (bits >> 15)) * jnp.uint32(factor)
        uniform = (bits >> 8).astype(jnp.float32) * 2.0**-23 - 1.0  # from -1 to 1
        spread = math.sqrt(3 / shape.shape[-2]) if len(shape.shape) > 1 else 0.01
        return (spread * uniform).astype(shape.dtype).reshape(shape.shape)

    return treedef.unflatten([fill(path, shape, seed) for (path, shape), seed in zip(leaves, seeds, strict=True)])


def begin_from(params: Params, config: TrainConfig, policy: VLAConfig, device: Any) -> Begun:
    """The first state from parameters on the host, so that it is the same on all devices."""
    learner = make_learner(config, policy)
    parallel = DataParallel(learner, [device])
    # A copy: an update writes over the memory of the state that it replaces.
    trainable, frozen = split_params(jax.device_put(params, parallel.replicated, may_alias=False))
    state = jax.jit(lambda trainable: init_state(learner, trainable, jax.random.key(1)), out_shardings=parallel.replicated)(trainable)
    return Begun(learner, parallel, state, frozen)


def params_on_host(config: TrainConfig, policy: VLAConfig) -> Params:
    """Random parameters as NumPy arrays."""
    shapes = _param_shapes(make_learner(config, policy), config, policy)
    return jax.device_get(jax.jit(functools.partial(_random_like, shapes))(jax.random.key(0)))
