import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.data.action_tokens import ActionTokenizer


@pytest.mark.parametrize("vocab_size", [512, 32_000])
def test_ids_and_values_match_the_original(golden, vocab_size):
    arrays = np.load(golden / "data" / f"action_tokenizer_V{vocab_size}.npz")
    tokenizer = ActionTokenizer(vocab_size)
    ids = tokenizer.encode(arrays["actions"])
    np.testing.assert_array_equal(ids, arrays["token_ids"])
    np.testing.assert_array_equal(tokenizer.decode(ids), arrays["decoded"])
    np.testing.assert_array_equal(tokenizer.decode(arrays["probe_ids"]), arrays["probe_decoded"])
    assert (ids > arrays["action_token_begin_idx"]).all()


def test_float32_actions_match_the_original(golden):
    arrays = np.load(golden / "data" / "digitize_f32.npz")
    np.testing.assert_array_equal(ActionTokenizer(0).encode(arrays["actions"]), -arrays["discretized"])


@given(st.floats(-2.0, 2.0), st.integers(256, 50_000))
def test_the_value_of_an_id_is_the_action_to_half_a_bin(action, vocab_size):
    tokenizer = ActionTokenizer(vocab_size)
    token = tokenizer.encode(np.array(action))
    assert vocab_size - 256 <= token < vocab_size
    assert abs(tokenizer.decode(token) - np.clip(action, -1, 1)) <= 1 / 255 + 1e-12


@given(st.integers(0, 254))
def test_ids_of_bin_centres_come_back(number):
    tokenizer = ActionTokenizer()
    token = tokenizer.vocab_size - 1 - number
    assert tokenizer.encode(tokenizer.decode(np.array(token))) == token


def test_nan_is_in_no_bin():
    with pytest.raises(ValueError, match=r"expected numbers, got NaN at \[1, 0\]"):
        ActionTokenizer().encode(np.array([[0.0, 1.0], [np.nan, 0.0]]))
