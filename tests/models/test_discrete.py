"""The discrete policy: tokens on the device against those of the host, and its loss and metrics against OpenVLA-OFT's in torch."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eosjax import losses
from eosjax.models import action_tokens
from eosjax.models.openvla import OpenVLA
from tests.models.reference_tokens import ActionTokenizer

VOCAB, ROWS = 290, 300  # of the text, and of the embedding
CHUNK, ACTION_DIM = 2, 3
LENGTH = CHUNK * ACTION_DIM + 1


@pytest.fixture(scope="module")
def batch():
    """Logits, actions and validity of 3 rows; half of the tokens are predicted right."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.2, 1.2, (3, CHUNK, ACTION_DIM)).astype(np.float32)
    logits = rng.standard_normal((3, LENGTH, ROWS)).astype(np.float32)
    right = rng.random((3, LENGTH - 1)) < 0.5
    ids = ActionTokenizer(VOCAB).encode(actions).reshape(3, -1)
    np.put_along_axis(logits[:, :-1], ids[..., None], np.where(right, 9, -1)[..., None], axis=2)
    return logits, actions, np.array([[True, True], [True, False], [False, False]])


@pytest.mark.parametrize("vocab_size", [512, 32_000])
def test_tokens_match_the_original(golden, vocab_size):
    arrays = np.load(golden / "data" / f"action_tokenizer_V{vocab_size}.npz")
    ids = ActionTokenizer(vocab_size).encode(arrays["actions"])  # float64, as recorded
    np.testing.assert_array_equal(ids, arrays["token_ids"])
    assert (ids > arrays["action_token_begin_idx"]).all()
    for recorded_ids, values in (("token_ids", "decoded"), ("probe_ids", "probe_decoded")):
        np.testing.assert_array_equal(ActionTokenizer(vocab_size).decode(arrays[recorded_ids]), arrays[values])
        decoded = action_tokens.decode(arrays[recorded_ids], vocab_size)
        np.testing.assert_array_equal(decoded, arrays[values].astype(np.float32))


def test_tokens_of_float32_actions_match_the_original(golden):
    arrays = np.load(golden / "data" / "digitize_f32.npz")
    np.testing.assert_array_equal(action_tokens.encode(arrays["actions"], 32_000), 32_000 - arrays["discretized"])


@given(hnp.arrays(np.float32, 20, elements=st.floats(-1.5, 1.5, width=32)))
def test_ids_are_those_of_the_host(actions):
    np.testing.assert_array_equal(action_tokens.encode(actions, VOCAB), ActionTokenizer(VOCAB).encode(actions))


def test_actions_at_an_edge_of_a_bin_get_the_id_of_the_host():
    edges = np.linspace(-1, 1, 256).astype(np.float32)
    actions = np.concatenate([edges, np.nextafter(edges, np.float32(-9)), np.nextafter(edges, np.float32(9))])
    np.testing.assert_array_equal(action_tokens.encode(actions, 32_000), ActionTokenizer().encode(actions))


def test_every_id_decodes_as_on_the_host():
    ids = np.arange(ROWS)
    decoded = action_tokens.decode(ids, VOCAB)
    assert decoded.dtype == jnp.float32
    np.testing.assert_allclose(decoded, ActionTokenizer(VOCAB).decode(ids), atol=1e-7)


def test_targets_are_the_action_tokens_and_the_stop_token(batch):
    _, actions, valid = batch
    targets = action_tokens.make_targets(actions, valid, np.array([2, 2, 7]), VOCAB)
    np.testing.assert_array_equal(targets.ids[:, :-1].reshape(actions.shape), ActionTokenizer(VOCAB).encode(actions))
    np.testing.assert_array_equal(targets.ids[:, -1], [2, 2, 7])
    np.testing.assert_array_equal(targets.weights, [[1] * 7, [1, 1, 1, 0, 0, 0, 1], [0] * 7])


def test_errors_are_sums_over_the_valid_actions(batch):
    logits, actions, valid = batch
    tokenizer = ActionTokenizer(VOCAB)
    predicted, target = logits[:, :-1].argmax(-1).reshape(actions.shape), tokenizer.encode(actions)
    l1 = np.abs(tokenizer.decode(predicted) - tokenizer.decode(target))
    errors = action_tokens.token_errors(logits, actions, valid, VOCAB)
    np.testing.assert_array_equal(errors.count, [6, 3])
    np.testing.assert_array_equal(errors.correct, ((predicted == target) & valid[..., None]).sum((0, 2)))
    np.testing.assert_allclose(errors.l1, (l1 * valid[..., None]).sum((0, 2)), rtol=1e-5)
    assert 0 < errors.correct.sum() < 9
    actions = action_tokens.predict_actions(logits, (CHUNK, ACTION_DIM), VOCAB)
    np.testing.assert_allclose(actions, tokenizer.decode(predicted), atol=1e-7)


def test_logits_stand_before_the_action_tokens_and_the_stop_token(tiny, inputs, draw):
    """In `inputs` the empty token is at 5 of the text, behind 9 inserted tokens; 4 placeholders and the stop token follow."""
    model = OpenVLA(dataclasses.replace(tiny, llama=dataclasses.replace(tiny.llama, lm_head=True)))
    variables = draw(model, inputs)

    @jax.jit
    def run(variables):
        last = model.apply(variables, *inputs, method="last_hidden")
        return (*model.apply(variables, *inputs, method="token_logits"), last, model.apply(variables, last, method="logits"))

    hidden, logits, last, all_logits = run(variables)
    chex.assert_shape([hidden, logits], [(2, 2, 2, 16), (2, 5, 20)])
    np.testing.assert_allclose(logits, all_logits[:, 14:19], atol=1e-5)
    np.testing.assert_allclose(hidden.reshape(2, 4, 16), last[:, 14:18], atol=1e-6)


def original(torch, logits, labels, inserted):
    """Loss and metrics as OpenVLA-OFT takes them, from logits [b inserted+l vocab] and labels [b l] of right-padded text."""
    ignored = torch.full((len(labels), inserted), -100)
    everything = torch.cat([labels[:, :1], ignored, labels[:, 1:]], dim=1)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), everything[:, 1:].flatten(), ignore_index=-100)
    truth, predicted = labels[:, 1:], logits[:, inserted:-1].argmax(dim=2)
    place = torch.cumsum(truth != -100, dim=1)
    is_action = truth > VOCAB - 257  # 31743 of 32000: all bins are above it
    metrics = {"loss": loss}
    decode = ActionTokenizer(VOCAB).decode
    for name, here in (("current", (place >= 1) & (place <= ACTION_DIM)), ("next", place > ACTION_DIM)):
        mask = here & is_action
        metrics[f"{name}_accuracy"] = ((predicted == truth) & mask).sum() / mask.sum()
        difference = decode(predicted[mask].numpy()) - decode(truth[mask].numpy())
        metrics[f"{name}_l1"] = np.abs(difference).mean()
    return {name: float(value) for name, value in metrics.items()}


def test_loss_and_metrics_are_those_of_the_original(batch):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    logits, actions, _ = batch
    inserted, prompts = 4, (3, 6, 5)  # tokens of each prompt, BOS and the empty token included
    targets = action_tokens.make_targets(actions, np.ones((3, CHUNK), bool), np.full(3, 2), VOCAB)
    rng = np.random.default_rng(1)
    everywhere = rng.standard_normal((3, inserted + max(prompts) + LENGTH, ROWS)).astype(np.float32)
    labels = np.full((3, max(prompts) + LENGTH), -100)
    for row, length in enumerate(prompts):
        labels[row, length : length + LENGTH] = targets.ids[row]
        first = inserted + length - 1  # the empty token predicts the first action token
        everywhere[row, first : first + LENGTH] = logits[row]
    expected = original(torch, torch.from_numpy(everywhere), torch.from_numpy(labels), inserted)

    total, count = losses.token_cross_entropy(logits, targets.ids, targets.weights)
    errors = action_tokens.token_errors(logits, actions, np.ones((3, CHUNK), bool), VOCAB)
    got = {
        "loss": total / count,
        "current_accuracy": errors.correct[0] / errors.count[0],
        "current_l1": errors.l1[0] / errors.count[0],
        "next_accuracy": errors.correct[1:].sum() / errors.count[1:].sum(),
        "next_l1": errors.l1[1:].sum() / errors.count[1:].sum(),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
