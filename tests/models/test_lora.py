from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.models.lora import LinearConfig, LoRADense, openvla_scaling

X = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


def randomised(variables, seed=1):
    """The same tree with every array drawn anew, so that B is not zero."""
    leaves, treedef = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    return treedef.unflatten([(0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype) for leaf in leaves])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_branch_changes_no_bit(dtype):
    plain = LoRADense(5, LinearConfig(dtype=dtype, param_dtype=dtype))
    adapted = LoRADense(5, LinearConfig(dtype=dtype, param_dtype=dtype, lora_rank=4, lora_dropout=0.5))
    base, both = plain.init(jax.random.key(0), X), adapted.init(jax.random.key(0), X)
    assert set(base) == {"params"}
    assert set(both) == {"params", "lora"}
    chex.assert_trees_all_equal(base["params"], both["params"])
    expected = jnp.asarray(plain.apply(base, X))
    assert expected.dtype == dtype
    chex.assert_trees_all_equal(adapted.apply(both, X), expected)
    chex.assert_trees_all_equal(adapted.apply(both, X, False, rngs={"dropout": jax.random.key(1)}), expected)


@pytest.mark.parametrize(("rank", "scaling"), [(1, 1.0), (4, 2.5), (32, 0.5)])
def test_branch_against_numpy(rank, scaling):
    layer = LoRADense(5, LinearConfig(lora_rank=rank, lora_scaling=scaling))
    variables = randomised(layer.init(jax.random.key(0), X))
    base, branch = variables["params"], variables["lora"]
    chex.assert_shape([branch["a"], branch["b"]], [(6, rank), (rank, 5)])
    expected = X @ base["kernel"] + base["bias"] + scaling * (X @ branch["a"] @ branch["b"])
    np.testing.assert_allclose(jnp.asarray(layer.apply(variables, X)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_gradients_of_the_branch_are_those_of_plain_products(leading):
    """The branch has a rule of its own for them."""
    x = np.random.default_rng(1).standard_normal((*leading, 6)).astype(np.float32)
    layer = LoRADense(5, LinearConfig(lora_rank=2, lora_scaling=0.7))
    variables = randomised(layer.init(jax.random.key(0), x))

    def plain(variables, x):
        base, branch = variables["params"], variables["lora"]
        return x @ base["kernel"] + base["bias"] + 0.7 * (x @ branch["a"] @ branch["b"])

    def gradients(function):
        return jax.grad(lambda variables, x: jnp.sum(jnp.sin(function(variables, x))), (0, 1))(variables, x)

    chex.assert_trees_all_close(gradients(layer.apply), gradients(plain), rtol=1e-4, atol=1e-5)


def test_initial_a_is_gaussian_of_standard_deviation_one_over_rank():
    a: Any = LoRADense(3, LinearConfig(lora_rank=8)).init(jax.random.key(0), np.zeros((1, 4096)))["lora"]["a"]
    assert abs(float(a.std()) * 8 - 1) < 0.02
    assert abs(float(a.mean())) < 0.01
    kurtosis = float((a**4).mean() / (a**2).mean() ** 2)
    assert abs(kurtosis - 3) < 0.2


def test_dropout_acts_on_the_branch_alone():
    layer = LoRADense(5, LinearConfig(lora_rank=2, lora_dropout=0.5))
    variables = randomised(layer.init(jax.random.key(0), X))

    def dropped(key):
        return jnp.asarray(layer.apply(variables, X, False, rngs={"dropout": key}))

    still = jnp.asarray(layer.apply(variables, X))
    assert not np.allclose(dropped(jax.random.key(1)), still)
    many = jax.jit(jax.vmap(dropped))(jax.random.split(jax.random.key(2), 4000))
    np.testing.assert_allclose(many.mean(0), still, atol=0.05)
    silent = variables | {"lora": jax.tree.map(np.zeros_like, variables["lora"])}
    chex.assert_trees_all_equal(layer.apply(silent, X, False, rngs={"dropout": jax.random.key(1)}), layer.apply(silent, X))


def test_adapters_stay_float32_over_a_bfloat16_base():
    variables = LoRADense(5, LinearConfig("bfloat16", "bfloat16", lora_rank=2)).init(jax.random.key(0), X)
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(variables["lora"])} == {jnp.dtype("float32")}


def test_the_scale_of_a_new_branch_is_that_of_openvla():
    assert [openvla_scaling(rank) for rank in (1, 16, 20, 32)] == [1, 1, 0.8, 0.5]


@pytest.mark.parametrize("bad", [{"lora_rank": -1}, {"lora_scaling": float("nan")}, {"lora_dropout": 1.0}, {"lora_dropout": -0.1}])
def test_refuses_impossible_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LinearConfig(**bad)
