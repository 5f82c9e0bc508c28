import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.models.heads import ActionHead, EosHead

HIDDEN = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)  # [b k a d]


def randomised(variables):
    leaves, treedef = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    return treedef.unflatten([(0.4 * rng.standard_normal(leaf.shape)).astype(np.float32) for leaf in leaves])


def linear(x, params):
    return x @ params["kernel"] + params["bias"]


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * params["scale"] + params["bias"]


def relu(x):
    return np.maximum(x, 0)


def test_action_head_against_numpy():
    head = ActionHead(hidden_dim=6, action_dim=4)
    variables = randomised(head.init(jax.random.key(0), HIDDEN))
    p = variables["params"]
    x = relu(linear(layer_norm(HIDDEN.reshape(2, 3, 20), p["layer_norm1"]), p["fc1"]))
    for block in (p["mlp_resnet_blocks_0"], p["mlp_resnet_blocks_1"]):
        x = x + relu(linear(layer_norm(x, block["ffn_0"]), block["ffn_1"]))
    expected = linear(layer_norm(x, p["layer_norm2"]), p["fc2"])
    chex.assert_trees_all_close(head.apply(variables, HIDDEN), expected, atol=1e-5)


def test_eos_head_against_numpy():
    head = EosHead(hidden_dim=6)
    variables = randomised(head.init(jax.random.key(0), HIDDEN))
    p = variables["params"]
    chex.assert_shape(p["fc2"]["kernel"], (6, 3))
    x = relu(linear(relu(linear(HIDDEN.reshape(2, 3, 20), p["fc1"])), p["fc2"]))
    chex.assert_trees_all_close(head.apply(variables, HIDDEN), linear(x, p["fc3"])[..., 0], atol=1e-5)


@pytest.mark.parametrize("lead", [(), (7,), (2, 3)])
def test_heads_take_any_leading_axes(lead):
    hidden = jnp.ones((*lead, 4, 5))
    chex.assert_shape(ActionHead(6, action_dim=4).init_with_output(jax.random.key(0), hidden)[0], (*lead, 4))
    chex.assert_shape(EosHead(6).init_with_output(jax.random.key(0), hidden)[0], lead)


def test_eos_head_computes_in_float32_whatever_comes():
    head, half = EosHead(hidden_dim=6), jnp.asarray(HIDDEN, jnp.bfloat16)
    variables = head.init(jax.random.key(0), half)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jnp.asarray(head.apply(variables, half))
    assert logits.dtype == jnp.float32
    chex.assert_trees_all_equal(logits, head.apply(variables, half.astype(jnp.float32)))


def test_action_head_in_bfloat16_keeps_float32_weights():
    head = ActionHead(6, action_dim=4, dtype="bfloat16")
    actions, variables = head.init_with_output(jax.random.key(0), HIDDEN)
    assert actions.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_eos_dropout_is_off_unless_asked_for():
    head = EosHead(hidden_dim=64, dropout=0.5)
    variables = head.init(jax.random.key(0), HIDDEN)
    rngs = {"dropout": jax.random.key(1)}
    still = jnp.asarray(head.apply(variables, HIDDEN))
    chex.assert_trees_all_equal(head.apply(variables, HIDDEN, rngs=rngs), still)
    dropped = jnp.asarray(head.apply(variables, HIDDEN, deterministic=False, rngs=rngs))
    assert not np.allclose(dropped, still)


def test_refuses_hidden_states_without_an_action_axis():
    with pytest.raises(ValueError, match=r"\[\.\.\. a d\]"):
        EosHead(6).init(jax.random.key(0), jnp.ones(5))
