"""Everything that was recorded from the PyTorch original: forward passes, gradients, LoRA training steps, bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import parity

MODEL = "tiny32k"
CASES = ("img1_proprio0", "img2_proprio1")
CASES_OF_THE_RECORDING = ("boundary_at_t0_noeostoken", "img1_proprio1", "img2_proprio0")  # and only there


@pytest.fixture(scope="module")
def folder(golden):
    return golden / MODEL


def recorded(folder, name):
    return dict(np.load(folder / f"{name}.npz"))


def check(rows, at_least, within=1.0):
    """Fails beyond this part of the tolerance, and where there is less to compare than was recorded."""
    rows = list(rows)
    assert len(rows) >= at_least
    assert [row for row in rows if not row.error <= within * row.tolerance] == []


@pytest.mark.parametrize("case", CASES)
def test_forward(folder, case):
    check(parity.compare_forward(case, parity.load(folder), recorded(folder, f"fwd_{case}")), 19)


def test_gradients(folder):
    check(parity.compare_gradients("img2_proprio1", parity.load(folder), recorded(folder, "fwd_img2_proprio1")), 25)


@pytest.mark.parametrize("case", CASES_OF_THE_RECORDING)
def test_forward_of_the_complete_recording(recording, case):
    model = parity.load(recording / MODEL)
    check(parity.compare_forward(case, model, recorded(model.folder, f"fwd_{case}")), 19)


@pytest.mark.parametrize("case", [*CASES, *CASES_OF_THE_RECORDING])
def test_gradients_of_the_complete_recording(recording, case):
    model = parity.load(recording / MODEL)
    check(parity.compare_gradients(case, model, recorded(model.folder, f"fwd_{case}")), 25)


def test_three_steps_with_an_adapter(folder):
    check(parity.compare_lora(parity.load(folder), recorded(folder, "lora")), 25)


def test_five_steps_of_the_eos_head(folder):
    check(parity.compare_optimizer(parity.load(folder), recorded(folder, "adamw_eos_head")), 31, within=0.1)


def test_bfloat16_errs_no_more_than_the_original(folder):
    golden = recorded(folder, "fwd_img2_proprio1")
    check(parity.compare_bfloat16("img2_proprio1", parity.load(folder), recorded(folder, "bf16_img2_proprio1"), golden), 2)


def test_causal_attention_would_be_noticed(folder, monkeypatch):
    attention = jax.nn.dot_product_attention

    def causal(q, k, v, key_value_seq_lengths=None, **options):
        lengths = key_value_seq_lengths
        return attention(q, k, v, key_value_seq_lengths=lengths, is_causal=lengths is not None, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", causal)
    model = parity.load(folder)
    other = model._replace(config=dataclasses.replace(model.config, remat="full"))  # traced anew
    rows = {row.quantity: row for row in parity.compare_forward("img1_proprio0", other, recorded(folder, "fwd_img1_proprio0"))}
    assert rows["vision_patches"].passed
    assert not rows["actions_hidden_states"].passed


def test_a_row_recorded_with_its_label_is_refused():
    ids, mask = np.array([[1, 5, 6, 7, 7, 2], [1, 5, 7, 7, 2, 2]]), np.ones((2, 6), bool)
    with pytest.raises(ValueError, match="expected the same empty token and stop token"):
        parity.static_layout(ids, mask, 2, 9)


def test_nan_is_no_pass():
    assert not parity.Row("case", "quantity", float(jnp.nan), 1.0, "absolute").passed
