"""What the EOS head learns from: each loss against NumPy, the intake of the buffer against its counts, devices against one device."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax import losses
from eosjax.buffer import BalancedBuffer
from eosjax.config import TrainConfig
from eosjax.flag_values import ConfigError
from eosjax.training.keys import forward_keys
from eosjax.training.objectives import (
    BufferAndFreshObjective,
    BufferObjective,
    EosRows,
    FreshObjective,
    gather_intake,
    match_intake,
)

SHARE = 0.1
ITEM = jax.ShapeDtypeStruct((2, 3), jnp.float32)
BUFFER = BalancedBuffer(capacity=6, sample_positive=2, sample_negative=3, min_positive=2, min_negative=3)


def random_rows(n, seed=0, share=0.3):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 2, 3)).astype(np.float32)
    labels, valid = (rng.random(n) < share).astype(np.float32), rng.random(n) < 0.8
    return EosRows(jnp.asarray(hidden), jnp.asarray(labels), jnp.asarray(valid), jnp.float32(1 / max(valid.sum(), 1)))


def head_of(weight):
    return lambda hidden: hidden.reshape(len(hidden), -1) @ weight


WEIGHT = jnp.arange(1.0, 7.0) / 5
KEYS = forward_keys(jax.random.key(1))


def by_the_book(kind, logits, labels):
    """Each loss from its definition, in float64."""
    logits = np.asarray(logits, np.float64)
    if kind == "logit_adjust":
        logits = logits + math.log(SHARE / (1 - SHARE))
    p = 1 / (1 + np.exp(-logits))
    right = np.where(labels > 0.5, p, 1 - p)
    factor = {"pos_weight": np.where(labels > 0.5, (1 - SHARE) / SHARE, 1.0), "focal": (1 - right) ** 2}.get(kind, 1.0)
    return -factor * np.log(right)


@pytest.mark.parametrize("kind", losses.FRESH_LOSSES)
@given(st.lists(st.tuples(st.floats(-8, 8, width=32), st.booleans()), min_size=1, max_size=20))
def test_fresh_losses_are_what_their_papers_say(kind, rows):
    logits, labels = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    each = losses.FRESH_LOSSES[kind](jnp.asarray(logits), jnp.asarray(labels), math.log(SHARE / (1 - SHARE)))
    np.testing.assert_allclose(each, by_the_book(kind, logits, labels), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("kind", losses.FRESH_LOSSES)
def test_gradients_stay_finite_where_the_head_is_certain(kind):
    gradient = jax.vmap(jax.grad(losses.FRESH_LOSSES[kind]), (0, 0, None))(
        jnp.array([-90.0, 90.0, 0.0, 90.0]), jnp.array([0.0, 0, 1, 1]), -2.0
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", losses.FRESH_LOSSES)
def test_a_fresh_loss_is_the_mean_over_valid_rows(kind):
    rows = random_rows(12)
    term = FreshObjective(0.5, kind, SHARE).loss(head_of(WEIGHT), None, rows, KEYS)
    logits = np.asarray(head_of(WEIGHT)(rows.hidden))
    valid = np.asarray(rows.valid)
    assert term.loss == pytest.approx(by_the_book(kind, logits, np.asarray(rows.labels))[valid].mean(), rel=1e-4)
    assert term.state is None
    assert term.sums["true_positive"] + term.sums["false_negative"] == np.sum(np.asarray(rows.labels)[valid])
    assert term.sums["eos_updates"] == 1


def test_every_fresh_loss_is_a_flag():
    for kind in losses.FRESH_LOSSES:
        assert TrainConfig(eos_loss=kind).eos_loss == kind
    with pytest.raises(
        ConfigError, match=f"--eos_loss must be one of balanced_buffer, buffer_fresh, {', '.join(losses.FRESH_LOSSES)}, got other"
    ):
        TrainConfig(eos_loss="other")


def test_a_fresh_loss_needs_to_know_the_share_of_ends():
    with pytest.raises(ValueError, match="share_of_ends: expected a number for the loss 'bce', got None"):
        FreshObjective(0.5, "bce", None).loss(head_of(WEIGHT), None, random_rows(4), KEYS)
    both = BufferAndFreshObjective(0.5, BUFFER)
    with pytest.raises(ValueError, match="share_of_ends: expected a number, got None"):
        both.loss(head_of(WEIGHT), both.init(ITEM), random_rows(4), KEYS)


@functools.partial(jax.jit, static_argnums=0)
def gradients(objective, state, rows):
    """(of the head's weight, of the hidden states, the term) of one forward pass."""

    def loss(weight, hidden):
        term = objective.loss(head_of(weight), state, rows._replace(hidden=hidden), KEYS)
        return term.loss, term

    (of_weight, of_hidden), term = jax.grad(loss, argnums=(0, 1), has_aux=True)(WEIGHT, rows.hidden)
    return of_weight, of_hidden, term


@functools.partial(jax.jit, static_argnums=0)
def of_fresh_rows(share, rows):
    """Cross-entropy of what the head says, corrected from 2 of 5 ends in a draw to their share in the data; with gradients as above."""

    def loss(weight, hidden):
        logits = head_of(weight)(hidden) + math.log(share / (1 - share)) - math.log(2 / 3)
        each = jnp.logaddexp(0, jnp.where(rows.labels > 0.5, -logits, logits))
        return jnp.sum(jnp.where(rows.valid, each, 0)) / rows.valid.sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(WEIGHT, rows.hidden)


FILL = jax.jit(lambda rows: BUFFER.add(BUFFER.init(ITEM), *rows[:3]))


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_draws_teach_the_head_alone_and_fresh_rows_head_and_policy(seed):
    weight, drawn = 0.7, BufferObjective(0.5, BUFFER)
    both = BufferAndFreshObjective(0.5, BUFFER, fresh_weight=weight, share_of_ends=SHARE)
    rows, state = random_rows(20, seed, share=0.5), FILL(random_rows(40, seed + 1, share=0.5))
    fresh, (fresh_of_weight, fresh_of_hidden) = of_fresh_rows(SHARE, rows)
    of_draw, nothing, draw = gradients(drawn, state, rows)
    of_weight, of_hidden, term = gradients(both, state, rows)
    assert not np.any(nothing)
    np.testing.assert_allclose(of_hidden, weight * fresh_of_hidden, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(of_weight, of_draw + weight * fresh_of_weight, rtol=1e-3, atol=1e-5)
    assert term.sums["eos_fresh_loss"] == pytest.approx(float(fresh), rel=1e-4)
    assert term.loss == pytest.approx(float(draw.loss + weight * fresh), rel=1e-4)
    chex.assert_trees_all_equal(term.state, draw.state)
    chex.assert_trees_all_close({name: term.sums[name] for name in draw.sums}, draw.sums, rtol=1e-5)


def test_fresh_rows_wait_for_the_buffer():
    both = BufferAndFreshObjective(0.5, BUFFER, share_of_ends=SHARE)
    of_weight, of_hidden, term = gradients(both, both.init(ITEM), random_rows(12, share=0.0))
    assert not np.any(of_weight)
    assert not np.any(of_hidden)
    assert term.loss == term.sums["eos_fresh_loss"] == term.sums["eos_updates"] == 0


def test_both_terms_have_their_minimum_at_the_same_answer():
    """Rows that cannot be told apart: the best logit is that of the draws' share, and the gradient of the fresh rows is zero there."""
    labels = jnp.arange(100) < 10
    rows = EosRows(jnp.ones((100, 2, 3)), labels.astype(jnp.float32), jnp.ones(100, bool), jnp.float32(1 / 100))
    both = BufferAndFreshObjective(0.5, BUFFER, fresh_weight=1.0, share_of_ends=0.1)

    def loss(logit):
        return both.loss(lambda hidden: jnp.broadcast_to(logit, len(hidden)), both.init(ITEM), rows, KEYS).loss

    assert float(jax.jit(jax.grad(loss))(math.log(2 / 3))) == pytest.approx(0, abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), st.integers(0, 5))
def test_matched_intake_has_as_many_negatives_as_positives(rows, seed):
    labels, valid = (np.array(column) for column in zip(*rows, strict=True))
    taken = np.asarray(match_intake(jnp.asarray(labels, jnp.float32), jnp.asarray(valid), jax.random.key(seed)))
    positive, negative = valid & labels, valid & ~labels
    assert not np.any(taken & ~valid)
    assert np.array_equal(taken & labels, positive)
    assert np.sum(taken & negative) == min(positive.sum(), negative.sum())


def test_matched_intake_chooses_at_random():
    labels, valid = jnp.zeros(10).at[3].set(1.0), jnp.ones(10, bool)
    chosen = {int(np.flatnonzero(match_intake(labels, valid, jax.random.key(seed)) & (labels == 0))[0]) for seed in range(60)}
    assert chosen == set(range(10)) - {3}


@pytest.mark.parametrize("age_match", [False, True])
def test_matched_rings_have_the_same_age(age_match):
    objective = BufferObjective(0.5, BUFFER, age_match)
    state = objective.init(ITEM)
    step = jax.jit(lambda state, rows, key: objective.loss(head_of(WEIGHT), state, rows, forward_keys(key)))
    for number in range(40):
        state = step(state, random_rows(16, seed=number, share=0.1), jax.random.key(number)).state
    ages = [float(state.adds - jnp.mean(ring.born)) for ring in (state.positive, state.negative)]
    assert (abs(ages[0] - ages[1]) < 1.0) == age_match


OBJECTIVES = {
    "buffer": BufferObjective(0.5, BUFFER),
    "age_match": BufferObjective(0.5, BUFFER, age_match=True),
    "buffer_fresh": BufferAndFreshObjective(0.5, BUFFER, fresh_weight=0.7, share_of_ends=SHARE),
    **{kind: FreshObjective(0.5, kind, SHARE) for kind in losses.FRESH_LOSSES},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_devices_are_one(name):
    objective, rows = OBJECTIVES[name], random_rows(12)

    def update(weight, state, rows, axis_name=None):
        def loss(weight):
            term = objective.loss(head_of(weight), state, rows, KEYS, axis_name)
            return term.loss, term

        gradient, term = jax.grad(loss, has_aux=True)(weight)
        return gradient, term.state, term.sums

    one = update(WEIGHT, objective.init(ITEM), rows)
    halves = EosRows(*(x.reshape(2, -1, *x.shape[1:]) for x in rows[:3]), scale=jnp.full(2, 2 * rows.scale))
    gradients, *rest = jax.vmap(lambda rows: update(WEIGHT, objective.init(ITEM), rows, "devices"), axis_name="devices")(halves)
    np.testing.assert_allclose(gradients.mean(0), one[0], rtol=1e-5, atol=1e-6)
    for got, expected in zip(jax.tree.leaves(rest), jax.tree.leaves(one[1:]), strict=True):
        np.testing.assert_array_equal(got[0], got[1])
        np.testing.assert_allclose(got[0], expected, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_device_sends_no_more_than_can_enter_and_the_buffer_is_the_same(share):
    """30 rows a device and rings of 6: a device sends 12."""
    rows = [random_rows(30, seed, share) for seed in range(4)]
    together = jax.tree.map(lambda *each: jnp.concatenate(each), *[each[:3] for each in rows])
    gather = jax.pmap(
        lambda hidden: gather_intake(hidden, *together[1:], BUFFER.capacity, "devices"), axis_name="devices", devices=jax.devices()[:4]
    )
    split = jnp.stack([each.hidden for each in rows])
    assert "f32[12,2,3]" in str(jax.make_jaxpr(gather)(split))
    start = BUFFER.add(BUFFER.init(ITEM), *random_rows(9, 9)[:3])
    expected = BUFFER.add(start, *together)
    chex.assert_trees_all_equal(BUFFER.add(start, gather(split)[2], *together[1:]), expected)
