"""Heads trained many at once from row numbers are those trained one by one from the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eosjax.bench.compared_objectives import CrossBatchMemory, DetachedLogits
from eosjax.buffer import BalancedBuffer
from eosjax.models.heads import EosHead
from eosjax.training.heads import BLOCK, HeadTrainer, Rows
from eosjax.training.keys import forward_keys, run_keys
from eosjax.training.objectives import BufferAndFreshObjective, BufferObjective, EosRows, FreshObjective

BUFFER = BalancedBuffer(6, 2, 3, 3, 4)
OBJECTIVES = {
    "buffer": BufferObjective(0.5, BUFFER),
    "fresh": FreshObjective(0.5, "pos_weight", 0.2),
    "both": CrossBatchMemory(0.5, BufferObjective(0.5, BUFFER, age_match=True), warmup=2),
    "buffer_fresh": BufferAndFreshObjective(0.5, BUFFER, fresh_weight=0.3, share_of_ends=0.2),
    "detached": DetachedLogits(0.5, BUFFER),
}
UPDATES = 12


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return Rows(
        jnp.asarray(rng.standard_normal((50, 2, 3)), jnp.float32),
        jnp.asarray(rng.random(50) < 0.2, jnp.float32),
        jnp.asarray(rng.random(50) < 0.9),
    )


def feed(runs, seed=0):
    return np.random.default_rng(seed).integers(0, 50, (UPDATES, runs, 8)).astype(np.int32)


def trained(objective, rows, seeds, rates, numbers):
    trainer = HeadTrainer(EosHead(4, 0.3), objective, UPDATES)
    runs, sums = trainer.advance(rows, trainer.init(rows, np.array(seeds), np.array(rates)), jnp.asarray(numbers))
    return trainer, runs, sums


@functools.cache
def gradient_of(objective):
    """A function (params, state, rows, key) -> (gradient, term) of an ordinary head on hidden states."""

    def loss(params, state, fresh, key):
        keys = forward_keys(key)

        def run(hidden):
            return EosHead(4, 0.3).apply({"params": params}, hidden, deterministic=False, rngs={"dropout": keys.head_dropout})

        term = objective.loss(run, state, fresh, keys)
        return term.loss, term

    return jax.jit(jax.grad(loss, has_aux=True))


def one_by_one(objective, rows, seed, rate, numbers):
    """An ordinary loop: hidden states in the buffer, torch's AdamW, and no update where there is nothing to learn from."""
    init_key, key = run_keys(seed)
    params = EosHead(4, 0.3).init(init_key, rows.hidden[0])["params"]
    state, updated = objective.init(jax.ShapeDtypeStruct(rows.hidden.shape[1:], jnp.float32)), 0
    adam = optax.scale_by_adam()
    direct, moments = jax.jit(adam.update), adam.init(params)
    for step, chosen in enumerate(numbers):
        valid = rows.valid[chosen]
        fresh = EosRows(rows.hidden[chosen], rows.labels[chosen], valid, 1 / valid.sum())
        gradient, term = gradient_of(objective)(params, state, fresh, jax.random.fold_in(key, step))
        state = term.state
        if term.sums["eos_updates"]:
            updated += 1
            direction, moments = direct(gradient, moments)
            now = rate if step < 2 * UPDATES // 3 else 0.1 * rate
            params = jax.tree.map(lambda p, d, now=now: p - now * (d + 0.01 * p), params, direction)
    return params, updated


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_many_at_once_are_one_by_one(rows, kind):
    seeds, rates, numbers = [3, 3, 4], [1e-2, 1e-3, 1e-2], feed(3)
    _, runs, sums = trained(OBJECTIVES[kind], rows, seeds, rates, numbers)
    for number, (seed, rate) in enumerate(zip(seeds, rates, strict=True)):
        params, updated = one_by_one(OBJECTIVES[kind], rows, seed, rate, numbers[:, number])
        assert int(sums["eos_updates"][:, number].sum()) == updated
        assert updated == 0 if kind == "detached" else updated > 5
        jax.tree.map(lambda a, b, n=number: np.testing.assert_allclose(a[n], b, rtol=2e-4, atol=1e-6), runs.params["eos_head"], params)


def test_heads_of_a_seed_begin_alike_and_detached_ones_stay_so(rows):
    begun = [
        HeadTrainer(EosHead(4, 0.3), objective, UPDATES).init(rows, np.array([3, 3, 4]), np.array([1.0, 2.0, 1.0])).params
        for objective in OBJECTIVES.values()
    ]
    for other in begun[1:]:
        jax.tree.map(np.testing.assert_array_equal, begun[0], other)
    kernel = begun[0]["eos_head"]["fc1"]["kernel"]
    assert np.array_equal(kernel[0], kernel[1])
    assert not np.array_equal(kernel[0], kernel[2])
    _, runs, _ = trained(OBJECTIVES["detached"], rows, [3, 3, 4], [1e-2, 1e-2, 1e-2], feed(3))
    jax.tree.map(np.testing.assert_array_equal, begun[0], runs.params)


def test_the_same_twice_and_in_pieces(rows):
    numbers = feed(2)
    trainer, runs, sums = trained(OBJECTIVES["buffer"], rows, [1, 2], [1e-2, 1e-2], numbers)
    again = trainer.init(rows, np.array([1, 2]), np.array([1e-2, 1e-2]))
    losses = []
    for part in np.split(numbers, 2):
        again, new = trainer.advance(rows, again, jnp.asarray(part))
        losses.append(new["eos_loss"])
    jax.tree.map(np.testing.assert_array_equal, runs.params, again.params)
    assert np.array_equal(np.concatenate(losses), sums["eos_loss"])


@pytest.mark.parametrize("count", [1, 7, BLOCK + 3])
def test_logits_are_those_of_the_head_without_dropout(rows, count):
    trainer, runs, _ = trained(OBJECTIVES["fresh"], rows, [1, 2], [1e-2, 1e-2], feed(2))
    numbers = np.random.default_rng(0).integers(0, 50, count)
    found = trainer.logits(rows, runs.params, numbers)
    assert found.shape == (2, count)
    for number in range(2):
        params = jax.tree.map(lambda leaf, n=number: leaf[n], runs.params["eos_head"])
        np.testing.assert_allclose(found[number], EosHead(4).apply({"params": params}, rows.hidden[numbers]), rtol=1e-5, atol=1e-6)
