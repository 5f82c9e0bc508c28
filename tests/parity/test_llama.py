"""The language model against that of transformers, which gets the tokens in another order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.models.hf import weights
from eosjax.models.openvla import OpenVLA
from tests.parity.conftest import FORWARD, POLICY, QUICK, check_forward, check_gradients, random_params

torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
pytest.importorskip("transformers", reason="transformers is not installed (extra `parity`)")

from benchmarks.torch_policy import llama, load  # noqa: E402

PREFIX = "language_model."
LENGTH = 9


def config_with(**changes):
    return dataclasses.replace(POLICY, llama=dataclasses.replace(POLICY.llama, **changes))


CONFIGS = [POLICY, config_with(kv_heads=2, rms_norm_eps=1e-5), config_with(kv_heads=1, lm_head=True)]


def both(config):
    """(params of our policy, transformers' Llama with the same weights)."""
    params = random_params(config)
    tensors = {name.removeprefix(PREFIX): array for name, array in weights.export_weights(params, config) if name.startswith(PREFIX)}
    tensors.setdefault("lm_head.weight", np.zeros((config.llama.vocab_size, config.llama.width), np.float32))
    model = llama(config.llama)
    assert not load(model, tensors)
    return params, model


@pytest.fixture
def inputs(rng):
    """Embeddings, the mask of two rows with padding within and behind them, and positions that do not count it."""
    x = rng.standard_normal((2, LENGTH, POLICY.llama.width)).astype(np.float32)
    mask = np.ones((2, LENGTH), bool)
    mask[0, 3:6] = mask[1, -2:] = False
    return x, mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)


def forward(config, params, x, mask, positions):
    """Hidden states in the order of `x`: the language model gets what is masked last."""

    def hidden(policy, *arguments):
        return policy.language_model(*arguments)

    order = np.argsort(~mask, axis=1, kind="stable")
    moved = (np.take_along_axis(x, order[..., None], 1), mask.sum(1, dtype=np.int32), np.take_along_axis(positions, order, 1))
    out = OpenVLA(config).apply({"params": params}, *moved, method=hidden)
    return jnp.take_along_axis(out, np.argsort(order, axis=1)[..., None], 1)


def run(config, params, *inputs):
    return jax.jit(lambda params: forward(config, params, *inputs), compiler_options=QUICK)(params)


def run_torch(model, x, mask, positions):
    return model.model(
        inputs_embeds=torch.tensor(x), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions).long()
    ).last_hidden_state


def in_both_directions(mask):
    return np.broadcast_to(mask[:, None, None], (len(mask), 1, LENGTH, LENGTH))


@pytest.mark.parametrize("config", CONFIGS)
def test_bidirectional(config, inputs):
    params, model = both(config)
    x, mask, positions = inputs
    check_forward(run(config, params, x, mask, positions), run_torch(model, x, in_both_directions(mask), positions))


def test_transformers_own_causal_attention_is_another_one(inputs):
    params, model = both(POLICY)
    x, mask, positions = inputs
    causal = run_torch(model, x, mask, positions).detach().numpy()  # a mask of two dimensions: transformers makes it causal
    # All tokens but the last of a row see more than before.
    assert (np.abs(run(POLICY, params, x, mask, positions) - causal).max(-1)[:, : LENGTH - 3] > 1000 * FORWARD).all()


def test_positions_are_those_that_are_given(inputs):
    params, model = both(POLICY)
    x, mask, positions = inputs
    stretched = positions * 7
    ours = run(POLICY, params, x, mask, stretched)
    check_forward(ours, run_torch(model, x, in_both_directions(mask), stretched))
    assert np.abs(ours - run(POLICY, params, x, mask, positions)).max() > 1000 * FORWARD


@pytest.mark.parametrize("config", CONFIGS[:2])
def test_gradients(config, inputs):
    params, model = both(config)
    x, mask, positions = inputs
    run_torch(model, x, in_both_directions(mask), positions).sin().sum().backward()
    theirs = {PREFIX + name: leaf.grad.numpy() for name, leaf in model.named_parameters() if leaf.grad is not None}
    gradient = jax.jit(jax.grad(lambda params: jnp.sin(forward(config, params, x, mask, positions)).sum()), compiler_options=QUICK)
    ours = {name: array for name, array in weights.export_weights(gradient(params), config) if name.startswith(PREFIX)}
    assert not ours.pop(PREFIX + "model.embed_tokens.weight").any()
    check_gradients(ours, theirs)


def test_embedding_and_logits(rng):
    config = CONFIGS[2]
    params, model = both(config)
    ids = rng.integers(0, config.llama.vocab_size, (2, LENGTH))
    embedded = OpenVLA(config).apply({"params": params}, ids, method=lambda policy, ids: policy.language_model.embed(ids))
    np.testing.assert_array_equal(embedded, model.model.embed_tokens(torch.tensor(ids)).detach().numpy())
    hidden = rng.standard_normal((2, 4, config.llama.width)).astype(np.float32)
    check_forward(OpenVLA(config).apply({"params": params}, hidden, method="logits"), model.lm_head(torch.tensor(hidden)))
