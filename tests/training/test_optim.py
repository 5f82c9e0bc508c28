"""The optimizer against optax's own AdamW, and the schedule against a list."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eosjax.config import TrainConfig
from eosjax.training.optim import learning_rate_schedule, make_optimizer


def schedule_of(**flags):
    return learning_rate_schedule(dataclasses.replace(TrainConfig(), **flags))


@functools.cache
def jitted_update(optimizer):
    return jax.jit(optimizer.update)


def test_schedule_warms_up_then_drops_to_a_tenth():
    schedule = schedule_of(learning_rate=1.0, lr_warmup_steps=4, num_steps_before_decay=8)
    values = [float(schedule(step)) for step in range(10)]
    np.testing.assert_allclose(values, [0.1, 0.325, 0.55, 0.775, 1, 1, 1, 1, 0.1, 0.1], rtol=1e-6)


def test_schedule_without_warm_up_starts_at_the_top():
    assert float(schedule_of()(0)) == np.float32(5e-4)


@pytest.fixture
def parts():
    keys = jax.random.split(jax.random.key(0), 2)
    return {"vla": {"w": jax.random.normal(keys[0], (4, 3))}, "eos_head": {"w": jax.random.normal(keys[1], (5,))}}


def updates_of(optimizer, parts, grads, ready):
    state = optimizer.init(parts)
    for grad, eos_ready in zip(grads, ready, strict=True):
        updates, state = jitted_update(optimizer)(grad, state, parts, eos_ready=jnp.asarray(eos_ready))
        parts = optax.apply_updates(parts, updates)
    return parts


def random_grads(parts, n):
    keys = jax.random.split(jax.random.key(1), n)
    return [jax.tree.map(lambda x, key=key: jax.random.normal(key, x.shape), parts) for key in keys]


def test_all_parts_are_trained_by_adamw_with_the_defaults_of_torch(parts):
    grads = random_grads(parts, 6)
    ours = updates_of(make_optimizer(schedule_of(num_steps_before_decay=3)), parts, grads, [True] * 6)
    schedule = lambda step: jnp.where(step < 3, 5e-4, 5e-5)
    reference = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)
    expected, state, update = parts, reference.init(parts), jax.jit(reference.update)
    for grad in grads:
        updates, state = update(grad, state, expected)
        expected = optax.apply_updates(expected, updates)
    chex.assert_trees_all_close(ours, expected, rtol=1e-6)


def test_the_head_neither_moves_nor_ages_until_it_is_ready(parts):
    grads = random_grads(parts, 6)
    waited = updates_of(make_optimizer(schedule_of()), parts, grads, [False] * 3 + [True] * 3)
    fresh = updates_of(make_optimizer(schedule_of()), parts, grads[3:], [True] * 3)
    chex.assert_trees_all_equal(waited["eos_head"], fresh["eos_head"])
    still = updates_of(make_optimizer(schedule_of()), parts, grads, [False] * 6)
    chex.assert_trees_all_equal(still["eos_head"], parts["eos_head"])
    assert not np.array_equal(still["vla"]["w"], parts["vla"]["w"])
