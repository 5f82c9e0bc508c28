"""The losses against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eosjax import losses

FLOATS = st.floats(-30, 30, width=32)


@pytest.mark.parametrize(("loss", "error"), [(losses.masked_l1, np.abs), (losses.masked_mse, np.square)])
@given(data=st.data(), b=st.sampled_from((1, 4)), k=st.sampled_from((1, 5)))
def test_masked_losses_are_sums_over_the_valid_actions(loss, error, data, b, k):
    predicted, target = (data.draw(hnp.arrays(np.float32, (b, k, 3), elements=FLOATS)) for _ in range(2))
    valid = data.draw(hnp.arrays(bool, (b, k)))
    total, count = loss(predicted, target, valid)
    np.testing.assert_allclose(total, error(predicted - target)[valid].sum(), rtol=1e-5, atol=1e-5)
    assert count == valid.sum() * 3


def test_masked_l1_has_no_gradient_and_no_nan_from_masked_slots():
    target = jnp.array([[[1.0], [jnp.nan]]])
    valid = jnp.array([[True, False]])
    gradient = jax.grad(lambda predicted: losses.masked_l1(predicted, target, valid)[0])(jnp.zeros((1, 2, 1)))
    np.testing.assert_array_equal(gradient, [[[-1.0], [0.0]]])


@given(st.data(), st.sampled_from((1, 2, 20)))
def test_balanced_bce_is_the_mean_over_real_rows(data, n):
    logits = data.draw(hnp.arrays(np.float32, n, elements=FLOATS))
    labels, weights = (data.draw(hnp.arrays(bool, n)).astype(np.float32) for _ in range(2))
    x, y, w = (a.astype(np.float64) for a in (logits, labels, weights))
    rows = np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))
    expected = rows[w > 0].mean() if w.any() else 0.0
    np.testing.assert_allclose(losses.balanced_bce(logits, labels, weights), expected, rtol=1e-5, atol=1e-6)


def test_balanced_bce_without_a_real_row_is_exactly_zero():
    value, gradient = jax.value_and_grad(losses.balanced_bce)(jnp.array([3.0, -40.0]), jnp.ones(2), jnp.zeros(2))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, [0.0, 0.0])


def test_balanced_bce_is_computed_in_float32():
    logits = jnp.array([8.0, -8.0], jnp.bfloat16)
    value = losses.balanced_bce(logits, jnp.array([1.0, 0.0]), jnp.ones(2))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.log1p(np.exp(-8.0)), rtol=1e-4)


@given(st.data(), *2 * (st.sampled_from((1, 3)),))
def test_token_cross_entropy_is_the_sum_over_counted_tokens(data, b, t):
    logits = data.draw(hnp.arrays(np.float32, (b, t, 5), elements=FLOATS))
    ids = data.draw(hnp.arrays(np.int32, (b, t), elements=st.integers(0, 4)))
    weights = data.draw(hnp.arrays(bool, (b, t)))
    x = logits.astype(np.float64)
    rows = np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, ids[..., None], -1)[..., 0]
    total, count = losses.token_cross_entropy(logits, ids, weights.astype(np.float32))
    np.testing.assert_allclose(total, rows[weights].sum(), rtol=1e-5, atol=1e-4)
    assert count == weights.sum()


def test_token_cross_entropy_has_no_nan_from_tokens_that_do_not_count():
    logits = jnp.array([[[1.0, 2.0], [jnp.nan, jnp.nan]]])
    value, gradient = jax.value_and_grad(lambda x: losses.token_cross_entropy(x, jnp.zeros((1, 2), int), jnp.array([[1.0, 0.0]]))[0])(
        logits
    )
    np.testing.assert_allclose(value, np.log1p(np.e), rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], [-1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-1))], rtol=1e-5)


def test_token_cross_entropy_is_computed_in_float32():
    total, _ = losses.token_cross_entropy(jnp.array([[[8.0, 0.0]]], jnp.bfloat16), jnp.zeros((1, 1), int), jnp.ones((1, 1)))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, np.log1p(np.exp(-8.0)), rtol=1e-3)
