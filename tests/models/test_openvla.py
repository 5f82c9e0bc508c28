import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.models.openvla import OpenVLA, all_hidden_states, demo_config

PROPRIO = 9  # its place, after BOS and 2 views of 4 patches
EMPTY = 5  # place of the empty token in the text of `inputs`
ACTIONS = slice(6, 10)  # and of the placeholders
# These programs take far longer to compile than to run; fused as for users, since a test compares bits of two of them.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True}


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(model, variables, inputs):
    """All that the model can tell about its inputs, compiled once for most of the tests."""
    features = model.apply(variables, inputs[0], method="vision_features")
    return {
        "hidden": model.apply(variables, *inputs),
        "last": model.apply(variables, *inputs, method="last_hidden"),
        "states": all_hidden_states(model, variables, *inputs),
        "embeds": model.apply(variables, *inputs, method="embed"),
        "features": features,
        "patches": model.apply(variables, features, method="project"),
    } | ({"proprio": model.apply(variables, inputs[3], method="embed_proprio")} if model.config.proprio_dim else {})


@pytest.fixture(scope="module")
def out(tiny, variables, inputs):
    return jax.device_get(run(OpenVLA(tiny), variables, inputs))


def tree_paths(tree):
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def moved(tiny, variables, other, out):
    """Largest change [b s] of the last hidden states when `other` inputs take the place of those of `out`."""
    return np.abs(np.asarray(run(OpenVLA(tiny), variables, other)["last"]) - out["last"]).max(-1)


def test_shapes(out):
    chex.assert_shape([out["hidden"], out["last"]], [(2, 2, 2, 16), (2, 20, 16)])
    chex.assert_shape(out["embeds"], [(2, 20, 16), (2, 20)])
    chex.assert_shape([out["features"], out["patches"], out["states"]], [(2, 8, 20), (2, 8, 16), (3, 2, 20, 16)])


def test_sequence_is_bos_patches_proprio_text_with_placeholders_zeroed(out, inputs, variables):
    embeds, mask = out["embeds"]
    words = variables["params"]["language_model"]["model"]["embed_tokens"]["embedding"][inputs[1]]
    words[:, ACTIONS] = 0
    np.testing.assert_array_equal(np.delete(embeds, np.s_[1 : PROPRIO + 1], axis=1), words)
    np.testing.assert_array_equal(np.delete(mask, np.s_[1 : PROPRIO + 1], axis=1), inputs[2])
    assert mask[:, 1 : PROPRIO + 1].all()
    np.testing.assert_allclose(embeds[:, PROPRIO], out["proprio"], atol=1e-6)
    np.testing.assert_allclose(embeds[:, 1:PROPRIO], out["patches"], atol=1e-6)


def test_patches_of_the_first_view_come_first(tiny, out, inputs, variables):
    images = inputs[0].copy()
    images[:, 1] = 255 - images[:, 1]
    patches = run(OpenVLA(tiny), variables, (images, *inputs[1:]))["patches"]
    difference = np.abs(patches - out["patches"]).max(-1)
    assert (difference[:, :4] < 1e-5).all()
    assert (difference[:, 4:] > 1e-4).all()


def test_hidden_states_are_those_before_each_action_token(out):
    first = PROPRIO + EMPTY  # BOS stands before the inserted tokens and the rest of the text after them
    np.testing.assert_allclose(out["hidden"].reshape(2, 4, 16), out["last"][:, first : first + 4], atol=1e-6)


def test_all_hidden_states_begin_with_the_embeddings_and_end_with_the_final_norm(out):
    np.testing.assert_allclose(out["states"][0], out["embeds"][0], atol=1e-6)
    np.testing.assert_allclose(out["states"][-1], out["last"], atol=1e-6)
    assert np.abs(out["states"][1] - out["states"][0]).max() > 0.1


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def action_states(model, variables, inputs):
    return model.apply(variables, *inputs)


@st.composite
def surroundings(draw):
    """(place of a sample in a batch of two, number of padding tokens behind the longest prompt, seed of everything around it)."""
    return draw(st.integers(0, 1)), draw(st.sampled_from([0, 1, 6])), draw(st.integers(0, 2**16))


def surround(sample, place, padding, seed):
    """A batch with a sample (image, prompt, proprio) in it: other samples, padding and labels in the place of actions are random."""
    rng, longest = np.random.default_rng(seed), 4
    others = [random_sample(rng, rng.integers(0, longest + 1)) for _ in range(2)]
    others[place] = sample
    images, prompts, proprio = zip(*others, strict=True)
    ids = rng.integers(0, 20, (2, 1 + longest + padding + 6), dtype=np.int32)
    ids[:, 0], ids[:, -6], ids[:, -1] = 1, 3, 2
    mask = np.ones(ids.shape, bool)
    for row, prompt in enumerate(prompts):
        ids[row, 1 : 1 + len(prompt)] = prompt
        mask[row, 1 + len(prompt) : -6] = False
    return np.stack(images), ids, mask, np.stack(proprio)


def random_sample(rng, words):
    return rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8), rng.integers(3, 20, words), rng.standard_normal(3).astype(np.float32)


@settings(max_examples=15)
@given(st.integers(0, 4), st.integers(0, 2**16), surroundings(), surroundings())
def test_padding_company_and_labels_change_no_output(tiny, variables, words, seed, one, two):
    sample = random_sample(np.random.default_rng(seed), words)
    first, second = (action_states(OpenVLA(tiny), variables, surround(sample, *around))[around[0]] for around in (one, two))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_content_of_placeholders_and_padding_is_not_seen(tiny, out, inputs, variables):
    images, ids, mask, proprio = inputs
    other = np.where(mask, ids, 19)
    other[:, ACTIONS] = 3
    assert (other != ids).any()
    difference = moved(tiny, variables, (images, other, mask, proprio), out)
    assert (difference[out["embeds"][1]] == 0).all()


def test_attention_runs_in_both_directions(tiny, out, inputs, variables):
    """The stop token and the proprio token move the hidden state of every token before them."""
    images, ids, mask, proprio = inputs
    stop = ids.copy()
    stop[:, -1] = (stop[:, -1] + 1) % 20
    assert (moved(tiny, variables, (images, stop, mask, proprio), out) > 1e-4).all()
    assert (moved(tiny, variables, (images, ids, mask, proprio + 1), out)[:, :PROPRIO] > 1e-4).all()


def test_every_input_reaches_the_actions(tiny, out, inputs, variables):
    images, ids, mask, proprio = inputs
    word = ids.copy()
    word[:, 1] = (word[:, 1] + 1) % 20
    others = [(images[:, ::-1], ids, mask, proprio), (images, word, mask, proprio), (images, ids, mask, -proprio)]
    for other in others:
        hidden = run(OpenVLA(tiny), variables, other)["hidden"]
        assert (np.abs(hidden - out["hidden"]).max(-1) > 1e-4).all()


def test_lora_and_remat(tiny, inputs, draw):
    """Remat changes neither loss nor gradients, and each matrix of LoRA gets a gradient."""
    models = [OpenVLA(dataclasses.replace(tiny, lora_rank=2, remat=remat)) for remat in ("none", "full")]
    variables, again = (draw(model, inputs) for model in models)
    chex.assert_trees_all_equal(variables, again)

    def loss(lora, model):
        hidden = model.apply(variables | {"lora": lora}, *inputs)
        return jnp.sum(jnp.sin(hidden))

    plain, remat = (
        jax.jit(jax.value_and_grad(loss), static_argnums=1, compiler_options=QUICK)(variables["lora"], model) for model in models
    )
    chex.assert_trees_all_close(plain, remat, rtol=1e-3, atol=1e-4)
    assert all(np.abs(gradient).max() > 1e-6 for gradient in jax.tree.leaves(plain[1]))


def test_lora_with_zero_b_changes_no_bit(tiny, out, inputs, variables, draw):
    model = OpenVLA(dataclasses.replace(tiny, lora_rank=2))
    lora = draw(model, inputs)["lora"]
    fresh = jax.tree.map_with_path(lambda path, leaf: leaf * (path[-1].key != "b"), lora)
    chex.assert_trees_all_equal(jax.device_get(run(model, variables | {"lora": fresh}, inputs)), out)
    assert np.abs(run(model, variables | {"lora": lora}, inputs)["hidden"] - out["hidden"]).max() > 0.1


def test_lora_reaches_every_linear_layer_of_the_base_model_only(tiny, inputs):
    model = OpenVLA(dataclasses.replace(tiny, lora_rank=2))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    kernels = {path[:-1] for path in tree_paths(shapes["params"]) if path[-1] == "kernel"}
    assert {path[:-1] for path in tree_paths(shapes["lora"])} == {path for path in kernels if path[0] != "proprio_projector"}


def test_bfloat16_stays_close_to_float32(tiny, out, inputs, variables):
    half = OpenVLA(dataclasses.replace(tiny, dtype="bfloat16", param_dtype="bfloat16"))
    shapes = jax.eval_shape(half.init, jax.random.key(0), *inputs)["params"]
    for path, leaf in tree_paths(shapes).items():
        assert leaf.dtype == ("float32" if path[0] == "proprio_projector" else "bfloat16"), path
    hidden = jax.jit(half.apply)(variables, *inputs)
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(hidden.astype(np.float32), out["hidden"], atol=0.15)


def test_tokens_in_16_bits_come_in_multiples_of_8(tiny, inputs, variables, monkeypatch):
    model = OpenVLA(dataclasses.replace(tiny, dtype="bfloat16"))

    def read():
        compute = jax.jit(lambda: (model.apply(variables, *inputs, method="last_hidden"), all_hidden_states(model, variables, *inputs)))
        traced = compute.trace()
        return jax.device_get(traced.lower().compile(QUICK)()), str(traced.jaxpr).count("bf16[2,24,16]")

    filled, tokens_of_24 = read()
    monkeypatch.setattr("eosjax.models.openvla.TOKENS_AT_ONCE", 1)
    exact, none_of_24 = read()
    assert tokens_of_24 > 0 == none_of_24
    for a, b in zip(filled, exact, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=0.06)


def test_policy_without_proprio(tiny, inputs):
    model = OpenVLA(dataclasses.replace(tiny, proprio_dim=0))
    nothing = (*inputs[:3], np.zeros((2, 0), np.float32))
    hidden, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), *nothing)
    assert set(variables["params"]) == {"vision_backbone", "projector", "language_model"}
    chex.assert_shape(hidden, (2, 2, 2, 16))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x.astype(np.float32), "images: expected uint8"),
        (0, lambda x: x[:, :, :4], "images"),
        (1, lambda x: x[:, -6:], "input_ids: expected"),
        (2, lambda x: x.astype(np.int32), "attn_mask: expected bool"),
        (3, lambda x: x[:, :2], r"proprio: expected \[b 3\]"),
    ],
)
def test_refuses_wrong_inputs(tiny, inputs, index, change, message):
    wrong = list(inputs)
    wrong[index] = change(wrong[index])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(OpenVLA(tiny).init, jax.random.key(0), *wrong)


def test_refuses_encoders_that_disagree_and_empty_chunks(tiny):
    with pytest.raises(ValueError, match="patches"):
        dataclasses.replace(tiny, siglip=dataclasses.replace(tiny.siglip, patch_size=2))
    with pytest.raises(ValueError, match="chunk"):
        dataclasses.replace(tiny, chunk=0)


def test_demo_policy_is_small():
    config = demo_config(300, chunk=4, action_dim=7, proprio_dim=8)
    images = jax.ShapeDtypeStruct((2, 2, 32, 32, 3), jnp.uint8)
    text = (np.ones((2, 40), np.int32), np.ones((2, 40), bool), np.ones((2, 8), np.float32))
    hidden, variables = jax.eval_shape(OpenVLA(config).init_with_output, jax.random.key(0), images, *text)
    chex.assert_shape(hidden, (2, 4, 7, 96))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) < 1e6
