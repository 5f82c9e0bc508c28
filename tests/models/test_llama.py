import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.models.llama import Attention, Llama, LlamaConfig, apply_rope, rope_tables
from eosjax.models.lora import LinearConfig

CONFIG = LlamaConfig(vocab_size=11, width=16, depth=2, heads=4, kv_heads=2, mlp_dim=24)
X = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
POSITIONS = np.tile(np.arange(5, dtype=np.int32), (2, 1))


def drawn(llama) -> Any:
    """Random parameters of a language model, without compiling its initialisers."""
    rng = np.random.default_rng(0)
    arguments = (X, np.full(2, 5, np.int32), POSITIONS)
    shapes = jax.eval_shape(lambda: llama.init(jax.random.key(0), *arguments))["params"]
    return jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_rope_depends_on_distance_only(i, j, shift):
    q, k = np.random.default_rng(1).standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def score(i, j):
        rotated = [apply_rope(x, *rope_tables(jnp.array([[p]]), 8, 10000.0)) for x, p in ((q, i), (k, j))]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=2e-3)


def test_rope_pairs_channel_with_channel_half_a_head_on():
    x = jnp.zeros((1, 1, 1, 4)).at[..., 1].set(1.0)
    angle = 3 * 100.0 ** -(2 / 4)
    rotated = apply_rope(x, *rope_tables(jnp.array([[3]]), 4, 100.0))
    np.testing.assert_allclose(np.ravel(rotated), [0, np.cos(angle), 0, np.sin(angle)], atol=1e-6)


def test_grouped_query_attention_against_numpy():
    attention = Attention(CONFIG, LinearConfig())
    lengths = np.array([3, 5], np.int32)
    tables = rope_tables(jnp.asarray(POSITIONS), 4, 10000.0)
    variables = attention.init(jax.random.key(0), X, True, lengths, *tables)
    kernels = {name: np.asarray(layer["kernel"]) for name, layer in variables["params"].items()}
    q = np.asarray(apply_rope(jnp.asarray(X @ kernels["q_proj"]).reshape(2, 5, 4, 4), *tables))
    k = np.asarray(apply_rope(jnp.asarray(X @ kernels["k_proj"]).reshape(2, 5, 2, 4), *tables))
    v = (X @ kernels["v_proj"]).reshape(2, 5, 2, 4)
    heads = []
    for head in range(4):  # queries 0, 1 share key-value head 0; queries 2, 3 share 1
        scores = np.einsum("bqd,bkd->bqk", q[:, :, head], k[:, :, head // 2]) / 2.0
        heads.append(softmax(np.where(np.arange(5) < lengths[:, None, None], scores, -np.inf)) @ v[:, :, head // 2])
    expected = np.concatenate(heads, -1) @ kernels["o_proj"]
    out = jnp.asarray(attention.apply(variables, X, True, lengths, *tables))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_all_tokens_of_a_row_see_its_first_ones_and_their_order_means_nothing():
    llama = Llama(CONFIG, LinearConfig())
    run = jax.jit(llama.apply)
    params = {"params": drawn(llama)}
    changed = X.copy()
    changed[:, -1] += 1.0
    lengths = np.array([4, 5], np.int32)
    before, after = (np.asarray(run(params, x, lengths, POSITIONS))[:, :-1] for x in (X, changed))
    np.testing.assert_array_equal(before[0], after[0])
    assert (np.abs(before - after)[1].max(-1) > 1e-4).all()
    order = np.array([2, 0, 3, 1])
    moved = run(params, X[:, order], lengths[:1].repeat(2), POSITIONS[:, order])
    kept = run(params, X[:, :4], lengths[:1].repeat(2), POSITIONS[:, :4])
    np.testing.assert_allclose(moved, np.asarray(kept)[:, order], atol=1e-5)


def test_last_operation_is_the_root_mean_square_norm():
    llama = Llama(CONFIG, LinearConfig())
    params = drawn(llama)
    hidden = jax.jit(llama.apply)({"params": params}, X, np.full(2, 5, np.int32), POSITIONS)
    np.testing.assert_allclose(np.square(hidden / params["model"]["norm"]["scale"]).mean(-1), 1.0, atol=1e-3)


def test_output_projection_is_optional():
    without = Llama(CONFIG, LinearConfig())
    assert set(drawn(without)) == {"model"}
    with pytest.raises(ValueError, match="lm_head"):
        without.apply({"params": {}}, X, method="logits")
    llama = Llama(dataclasses.replace(CONFIG, lm_head=True), LinearConfig())
    params = drawn(llama)
    logits = llama.apply({"params": params}, X, method="logits")
    chex.assert_trees_all_close(logits, X @ params["lm_head"]["kernel"], atol=1e-5)


@pytest.mark.parametrize("bad", [{"heads": 3}, {"heads": 16}, {"kv_heads": 3}])
def test_refuses_impossible_sizes(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        dataclasses.replace(CONFIG, **bad)
