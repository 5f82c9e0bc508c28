"""Attention over the first keys of a row: its programs against NumPy and each other, and which one is taken where."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.models import attention
from eosjax.models.attention import attend, check_attention, choose_attention
from eosjax.types import UserError


def draw(seed, queries, keys, heads=4, kv_heads=2, size=8, rows=2, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = ((rows, queries, heads, size), (rows, keys, kv_heads, size), (rows, keys, kv_heads, size))
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def by_numpy(q, k, v, lengths):
    out = np.zeros(q.shape)
    share = q.shape[2] // k.shape[2]
    for row, length in enumerate(lengths):
        for head in range(q.shape[2]):
            keys, values = (np.float64(x)[row, :length, head // share] for x in (k, v))
            scores = np.exp(np.float64(q)[row, :, head] @ keys.T / np.sqrt(q.shape[3]))
            out[row, :, head] = scores / scores.sum(1, keepdims=True) @ values
    return out


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_every_query_sees_the_first_keys(queries, keys, data):
    lengths = data.draw(st.lists(st.integers(1, keys), min_size=2, max_size=2))
    q, k, v = draw(keys, queries, keys)
    np.testing.assert_allclose(attend(q, k, v, jnp.array(lengths, jnp.int32), "xla"), by_numpy(q, k, v, lengths), atol=1e-5)


@pytest.mark.parametrize("queries", [attention._BLOCK, attention._BLOCK + 3])
def test_blocks_of_queries_change_nothing(queries):
    q, k, v = draw(0, queries, 12)
    for lengths in (None, jnp.array([5, 12], jnp.int32)):

        def loss(q, k, v, implementation, lengths=lengths):
            out = attend(q, k, v, lengths, implementation)
            return jnp.sum(jnp.sin(out)), out

        both = [
            jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)(q, k, v, name) for name in ("xla", "blockwise")
        ]
        chex.assert_trees_all_close(*both, rtol=1e-4, atol=1e-5)


def test_the_fused_program_is_taken_where_it_can_run(monkeypatch):
    assert choose_attention("bfloat16", 64) == "xla"
    assert check_attention("auto", "bfloat16") is None  # nobody expects it on a CPU
    with pytest.raises(UserError, match="--attention cudnn: the fused kernel cannot run here: the devices are of the kind cpu"):
        check_attention("cudnn", "bfloat16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "cudnn_problem", lambda: None)
    assert choose_attention("bfloat16", 64) == "cudnn"
    assert choose_attention("float32", 64) == choose_attention("bfloat16", 12) == "xla"
    assert check_attention("auto", "float32") is check_attention("cudnn", "bfloat16") is None
    with pytest.raises(UserError, match="cannot run here: it computes in bfloat16 or float16, not in float32"):
        check_attention("cudnn", "float32")
    monkeypatch.setattr(attention, "cudnn_problem", lambda: "no cuDNN")
    assert choose_attention("bfloat16", 64) == "xla"
    assert check_attention("auto", "bfloat16") == "attention by XLA: cuDNN's fused kernel cannot run here: no cuDNN"


def test_why_the_fused_kernel_cannot_run():
    attention.cudnn_problem.cache_clear()
    assert attention.cudnn_problem() == "the devices are of the kind cpu"
