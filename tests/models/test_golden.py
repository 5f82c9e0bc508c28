"""Everything that was recorded from the PyTorch original: forward passes, gradients, LoRA training steps, bfloat16."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import parity

GOLDEN = pathlib.Path(__file__).resolve().parents[3] / "shared" / "reference" / "golden"
FOLDERS = parity.variants(GOLDEN) if GOLDEN.is_dir() else []
CASES = [(folder, path.stem.removeprefix("fwd_")) for folder in FOLDERS for path in sorted(folder.glob("fwd_*.npz"))]

pytestmark = pytest.mark.skipif(not FOLDERS, reason="no golden arrays (folder `shared` beside the checkout)")


def recorded(folder, name):
    return dict(np.load(folder / f"{name}.npz"))


def check(rows, at_least):
    rows = list(rows)
    assert len(rows) >= at_least
    assert [row for row in rows if not row.passed] == []


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_forward(folder, case):
    check(parity.compare_forward(case, parity.load(folder), recorded(folder, f"fwd_{case}")), 15)


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_gradients(folder, case):
    check(parity.compare_gradients(case, parity.load(folder), recorded(folder, f"fwd_{case}")), 15)


@pytest.mark.parametrize("folder", FOLDERS)
def test_three_steps_with_an_adapter(folder):
    check(parity.compare_lora(parity.load(folder), recorded(folder, "lora")), 15)


@pytest.mark.parametrize("folder", FOLDERS)
def test_optimizer(folder):
    check(parity.compare_optimizer(parity.load(folder), recorded(folder, "adamw_eos_head")), 30)


@pytest.mark.parametrize("folder", FOLDERS)
def test_bfloat16_errs_no_more_than_the_original(folder):
    golden = recorded(folder, "fwd_img2_proprio1")
    check(parity.compare_bfloat16("img2_proprio1", parity.load(folder), recorded(folder, "bf16_img2_proprio1"), golden), 2)


@pytest.mark.parametrize("folder", FOLDERS)
def test_causal_attention_would_be_noticed(folder, monkeypatch):
    attention = jax.nn.dot_product_attention

    def causal(q, k, v, mask=None):
        return attention(q, k, v, mask=mask, is_causal=mask is not None)

    monkeypatch.setattr(jax.nn, "dot_product_attention", causal)
    model = parity.load(folder)
    other = model._replace(config=dataclasses.replace(model.config, remat=True))  # traced anew
    rows = {row.quantity: row for row in parity.compare_forward("img1_proprio0", other, recorded(folder, "fwd_img1_proprio0"))}
    assert rows["vision_patches"].passed
    assert not rows["actions_hidden_states"].passed


def test_a_row_recorded_with_its_label_is_refused():
    ids, mask = np.array([[1, 5, 6, 7, 7, 2], [1, 5, 7, 7, 2, 2]]), np.ones((2, 6), bool)
    with pytest.raises(ValueError, match="expected the same empty token and stop token"):
        parity.static_layout(ids, mask, 2, 9)


def test_nan_is_no_pass():
    assert not parity.Row("case", "quantity", float(jnp.nan), 1.0, "absolute").passed
