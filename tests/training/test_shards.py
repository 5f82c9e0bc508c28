"""Frozen kernels that devices share out: which they are, how they are cut, what that costs. That the numbers stay the same, a whole run
shows (`test_pretrained_run`)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.flag_values import ConfigError
from eosjax.models.parts import abstract_params, split_params
from eosjax.models.shards import SHARDED, shared_kernels
from eosjax.training.initial import BaseWeights
from eosjax.training.parallel import DataParallel
from eosjax.training.plan import Memory, choose_remat, share_out, size_in_bytes
from eosjax.training.state import make_learner
from eosjax.training.traffic import count_traffic
from eosjax.types import UserError
from tests.training.conftest import CONFIG, TINY

LORA = dataclasses.replace(TINY, lora_rank=2)
SHARED = dataclasses.replace(CONFIG, vla_path="base", use_lora=True, lora_rank=2, shard_frozen=True)
REPLICATED = dataclasses.replace(SHARED, shard_frozen=False)
LAYERS = 2 * (4 * 16 * 16 + 3 * 16 * 32)  # numbers in the kernels of the tiny language model
BLOCKS = 2 * (8 * 24 + 8 * 8 + 2 * 8 * 16)  # in those of both encoders, each of which runs one block


@pytest.fixture(scope="module")
def frozen():
    return split_params(abstract_params(SHARED, LORA))[1]


def test_kernels_of_layers_are_shared_out_where_their_rows_can_be(frozen):
    assert sum(leaf.size for leaf in shared_kernels(frozen, 4).values()) == LAYERS + BLOCKS
    assert sum(leaf.shape[1] for leaf in shared_kernels(frozen, 32).values()) == 32  # down_proj alone
    assert not shared_kernels(frozen, 5)
    assert not shared_kernels({}, 2)


def test_each_device_gets_its_rows_and_nothing_is_lost(frozen):
    parallel = DataParallel(make_learner(SHARED, LORA), jax.devices()[:4])
    base = BaseWeights(SHARED, LORA, parallel)
    rng = np.random.default_rng(0)
    whole = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), frozen)

    def put(path, leaf):
        return base.put(tuple(each.key for each in path[1:]), leaf)

    placed = base.place(jax.tree_util.tree_map_with_path(put, whole))
    kernel = whole["vla"]["language_model"]["model"]["layers"]["mlp"]["down_proj"]["kernel"]
    shares = placed[SHARDED]["language_model"]["model"]["layers"]["mlp"]["down_proj"]["kernel"]
    np.testing.assert_array_equal(np.concatenate(list(shares), axis=1), kernel)
    assert "kernel" not in placed["vla"]["language_model"]["model"]["layers"].get("mlp", {}).get("down_proj", {})
    fingerprints = BaseWeights(REPLICATED, LORA, parallel).fingerprints(whole)
    assert base.fingerprints(placed) == fingerprints
    in_layers = BaseWeights(REPLICATED, dataclasses.replace(LORA, unroll=True), parallel)
    placed_in_layers = in_layers.place(whole)
    assert len(placed_in_layers["vla"]["language_model"]["model"]["layers"]["mlp"]["down_proj"]["kernel"]) == len(kernel)
    assert in_layers.fingerprints(placed_in_layers) == fingerprints

    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    planned = share_out(Memory(size_in_bytes(frozen), 0, 0, 0, 0, 0), frozen, 4)
    assert planned.frozen == held
    assert planned.temporaries == LAYERS * 4 // 2  # one layer


def test_traffic_of_an_update():
    """Gradients go round a ring twice; each layer is gathered for the forward pass, and again for the backward pass."""
    ring, trained = 3 / 4, split_params(abstract_params(SHARED, LORA))[0]
    for micro_batches in (1, 2):
        config = dataclasses.replace(SHARED, batch_size=2, grad_accumulation_steps=micro_batches)
        traffic = count_traffic(config, dataclasses.replace(LORA, remat="dots"), 18, 4)
        assert traffic.layers == 2 * micro_batches * 4 * (LAYERS + BLOCKS) * ring
        assert traffic.gradients == pytest.approx(2 * ring * size_in_bytes(trained), rel=1e-3)
        rows = 4 * 2 * TINY.chunk * micro_batches
        assert traffic.rows == ring * rows * (TINY.action_dim * TINY.llama.width * 4 + 4 + 1)
    whole = count_traffic(dataclasses.replace(config, shard_frozen=False), dataclasses.replace(LORA, remat="dots"), 18, 4)
    assert whole == traffic._replace(layers=0)


def test_remat_auto_counts_what_a_device_has_of_the_base(frozen, monkeypatch):
    step = type("Step", (), {"frozen": frozen})
    monkeypatch.setattr("eosjax.training.plan.trace_step", lambda *_: step)
    monkeypatch.setattr("eosjax.training.plan.measure", lambda step: Memory(size_in_bytes(frozen), 0, 0, 0, 0, 0))
    limit = int(0.9 * size_in_bytes(frozen))
    assert choose_remat(dataclasses.replace(SHARED, shard_frozen=False), LORA, 18, limit)[0] == "full"
    assert choose_remat(SHARED, LORA, 18, limit, 8)[0] == "dots"
    assert choose_remat(SHARED, LORA, 18, None, 8)[0] == "dots"  # none would keep all layers


def test_runs_that_have_nothing_to_share_out():
    with pytest.raises(UserError, match="1 device\\(s\\) have nothing to share out"):
        BaseWeights(SHARED, LORA, DataParallel(make_learner(SHARED, LORA), jax.devices()[:1]))
    with pytest.raises(ConfigError, match="nothing is frozen with --use_lora False"):
        TrainConfig(vla_path="demo", use_lora=False, shard_frozen=True)
    with pytest.raises(ConfigError, match="with --remat none: the backward pass would keep all gathered layers"):
        TrainConfig(shard_frozen=True, remat="none")
    with pytest.raises(ConfigError, match="with --layers unroll: XLA may gather all layers at once"):
        TrainConfig(shard_frozen=True, layers="unroll")
    assert jnp.dtype(LORA.param_dtype).itemsize == 4  # what the figures above count with
