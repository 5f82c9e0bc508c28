"""Each kind of policy: its loss against the definition, its actions against a plain loop."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.models.diffusion import DDIM
from eosjax.models.openvla import NoisyActions
from eosjax.models.parts import init_params
from eosjax.models.policies import Observation, make_policy, vla_variables
from tests.models.reference_tokens import ActionTokenizer
from tests.training.conftest import KINDS, TINY, build, random_batch

DROPOUT = jax.random.key(8)


def seen_in(batch):
    return Observation(batch.images, batch.input_ids, batch.attn_mask, batch.proprio)


def keys_of(batch, seed=0):
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(batch.key)


def setting(kind):
    """(policy, params, batch)."""
    learner, state, frozen = build(kind=kind)
    return learner.policy, {**frozen, **state.trainable}, random_batch(np.random.default_rng(3), 3)


def loss_of(policy, params, batch, seed=0):
    return jax.jit(policy.loss)(params, seen_in(batch), batch.actions, batch.valid, keys_of(batch, seed), DROPOUT)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_make_up_the_variables(kind):
    """No weight of the model is lost in the parts, and none is in two of them."""
    learner, state, frozen = build(kind=kind)
    batch = random_batch(np.random.default_rng(0), 1)
    whole = jax.eval_shape(learner.policy.vla.init, jax.random.key(0), *seen_in(batch))
    params = {**frozen, **state.trainable}
    chex.assert_trees_all_equal_shapes(vla_variables(params), whole)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert size({part: tree for part, tree in params.items() if not part.endswith("_head")}) == size(whole)
    without = jax.eval_shape(lambda key: init_params(learner.policy, learner.eos_head, batch, key, with_base=False), jax.random.key(0))
    assert set(params) - set(without) == {"vla", "vision_backbone"} & set(params)


@pytest.mark.parametrize("kind", ["regression", "diffusion", "tokens"])
@given(lengths=st.lists(st.integers(0, TINY.chunk), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_the_count_is_that_of_the_loss(kind, lengths):
    """What the step divides by is what the loss sums over, whatever is valid."""
    policy, numbers = make_policy(KINDS[kind]), TINY.chunk * TINY.action_dim
    valid = np.arange(TINY.chunk) < np.array(lengths)[:, None]
    rows = [length for length in lengths if length]
    expected = {
        "regression": sum(rows) * TINY.action_dim,
        "diffusion": len(rows) * numbers,
        "tokens": sum(rows) * TINY.action_dim + len(rows),
    }
    assert policy.count(jnp.asarray(valid)) == expected[kind]


@pytest.mark.parametrize("kind", ["regression", "diffusion", "tokens"])
def test_the_loss_reports_its_count(kind):
    policy, params, batch = setting(kind)
    batch.valid[0] = False
    assert loss_of(policy, params, batch).sums["action_count"] == policy.count(batch.valid)


def test_the_loss_of_tokens_is_the_cross_entropy_of_the_bins():
    policy, params, batch = setting("tokens")
    hidden, sums = loss_of(policy, params, batch)
    logits = policy.vla.apply(vla_variables(params), *seen_in(batch), method="token_logits")[1]
    ids = ActionTokenizer(290).encode(batch.actions).reshape(3, -1)
    ids = np.concatenate([ids, batch.input_ids[:, -1:]], axis=1)  # and the stop token
    counts = np.concatenate([np.repeat(batch.valid, TINY.action_dim, axis=1), np.ones((3, 1), bool)], axis=1)
    each = optax.losses.softmax_cross_entropy_with_integer_labels(logits, ids)
    np.testing.assert_allclose(sums["action_sum"], np.sum(np.asarray(each)[counts]), rtol=1e-5)
    chex.assert_shape(hidden, (3, TINY.chunk, TINY.action_dim, TINY.llama.width))
    assert set(sums) == {"action_sum", "action_count", *policy.extra_sums}
    done = policy.act(params, seen_in(batch), keys_of(batch))
    expected = ActionTokenizer(290).decode(np.argmax(logits[:, :-1], axis=-1)).reshape(batch.actions.shape)
    np.testing.assert_allclose(done.actions, expected, atol=1e-6)
    np.testing.assert_allclose(done.hidden, hidden, atol=1e-5)


def test_the_loss_of_diffusion_is_the_error_of_the_noise():
    policy, params, batch = setting("diffusion")
    hidden, sums = loss_of(policy, params, batch)
    noisy, steps, noise = (jnp.concatenate(x) for x in zip(*map(DDIM(6).draw, keys_of(batch), batch.actions[:, None]), strict=True))
    expected = policy.vla.apply(vla_variables(params), *seen_in(batch), NoisyActions(noisy, steps))
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    predicted = policy.head.apply({"params": params["action_head"]}, expected)
    np.testing.assert_allclose(sums["action_sum"], np.sum(np.square(predicted - noise)), rtol=1e-5)
    other = loss_of(policy, params, batch, seed=1)
    assert not np.allclose(other.sums["action_sum"], sums["action_sum"])


def test_the_noise_of_a_sample_does_not_depend_on_its_company():
    policy, params, batch = setting("diffusion")
    whole = loss_of(policy, params, batch)
    rest = jax.tree.map(lambda x: x[1:], batch)
    np.testing.assert_allclose(loss_of(policy, params, rest).hidden, whole.hidden[1:], atol=1e-5)


def test_diffusion_acts_by_denoising():
    policy, params, batch = setting("diffusion")
    done = jax.jit(policy.act)(params, seen_in(batch), keys_of(batch))
    x = jnp.stack([jax.random.normal(key, batch.actions.shape[1:]) for key in keys_of(batch)])
    for step in (4, 2, 0):  # 3 of 6 noise levels
        hidden = policy.vla.apply(vla_variables(params), *seen_in(batch), NoisyActions(x, np.full(3, step)))
        x = DDIM(6).denoise(x, policy.head.apply({"params": params["action_head"]}, hidden), jnp.int32(step), 2)
    np.testing.assert_allclose(done.actions, x, atol=1e-4)
    np.testing.assert_allclose(done.hidden, hidden, atol=1e-4)
