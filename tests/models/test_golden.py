"""The float32 forward pass and its gradients against arrays recorded from the PyTorch original."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.models.heads import ActionHead, EosHead
from eosjax.models.hf import weights
from eosjax.models.hf.config import vla_config_from_hf
from eosjax.models.openvla import OpenVLA, all_hidden_states

GOLDEN = pathlib.Path(__file__).resolve().parents[3] / "shared" / "reference" / "golden" / "tiny32k"
TOLERANCE = 2e-5
EMPTY, STOP, PAD = 29871, 2, 32000
LENGTH = 90  # of the text, longer than any recorded prompt needs
CASES = ["img1_proprio0", "img1_proprio1", "img2_proprio0", "img2_proprio1", "boundary_at_t0_noeostoken"]

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden arrays (folder `shared` beside the checkout)")
safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")


def load_part(part):
    return weights.import_part(part, safetensors.load_file(GOLDEN / f"{part}.safetensors"))


@functools.cache
def checkpoint():
    """Base weights and the configuration; the heads of the encoders stand in no file."""
    folder = GOLDEN / "checkpoint"
    config_json, preprocessor = (json.loads((folder / name).read_text()) for name in ("config.json", "preprocessor_config.json"))
    tensors = safetensors.load_file(folder / "model.safetensors")
    shapes = {name: array.shape for name, array in tensors.items()}
    config = vla_config_from_hf(config_json, preprocessor, shapes, vision_heads=(2, 2))
    config = dataclasses.replace(config, llama=dataclasses.replace(config.llama, lm_head=True))
    return weights.import_weights(tensors, config), config


def static_layout(ids, mask, action_tokens, length):
    """Right-padded text -> text of a fixed length, padded between the prompt and the empty token."""
    rows, masks = [], []
    for row, seen in zip(ids, mask, strict=True):
        prompt, tail = np.split(row[seen], [seen.sum() - action_tokens - 2])
        assert tail[0] == EMPTY
        assert tail[-1] == STOP
        padding = length - len(prompt) - len(tail)
        rows.append(np.concatenate([prompt, np.full(padding, PAD), tail]))
        masks.append(np.arange(length) < len(prompt))
        masks[-1][-len(tail) :] = True
    return np.stack(rows).astype(np.int32), np.stack(masks)


@functools.cache
def case(name):
    """(model, variables, inputs, recorded arrays) of one recorded case."""
    golden = dict(np.load(GOLDEN / f"fwd_{name}.npz"))
    params, config = checkpoint()
    proprio = golden.get("proprio")
    if proprio is not None:
        config = dataclasses.replace(config, proprio_dim=proprio.shape[-1])
        params = params | {"proprio_projector": load_part("proprio_projector")}
    raw = golden["raw_images"]
    views = golden["pixel_values"].shape[1] // 6
    images = np.stack([raw[..., 3 * v : 3 * v + 3] for v in range(views)], axis=1)
    text = static_layout(golden["input_ids"], golden["attention_mask"], config.action_tokens, LENGTH)
    inputs = (images, *text, np.zeros((len(images), 0), np.float32) if proprio is None else proprio)
    return OpenVLA(config), {"params": params}, inputs, golden


@functools.partial(jax.jit, static_argnums=0)
def forward(model, variables, heads, inputs):
    """Every quantity that is recorded for the real tokens, and the mask that tells which these are."""
    features = model.apply(variables, inputs[0], method="vision_features")
    states = all_hidden_states(model, variables, *inputs)
    hidden = jnp.asarray(model.apply(variables, *inputs))
    eos_logits = jnp.asarray(EosHead(48).apply({"params": heads["eos_head"]}, hidden))
    return {
        "vision_patches": features,
        "projected_patches": model.apply(variables, features, method="project"),
        "states": states,
        "seen": model.apply(variables, *inputs, method="embed")[1],
        "token_ids": jnp.argmax(model.apply(variables, states[-1], method="logits"), -1),
        "actions_hidden_states": hidden.reshape(len(hidden), -1, hidden.shape[-1]),
        "predicted_actions": ActionHead(64).apply({"params": heads["action_head"]}, hidden),
        "eos_logits_all": eos_logits[..., None],
    }


@pytest.mark.parametrize("name", CASES)
def test_forward(name):
    model, variables, inputs, golden = case(name)
    ours = jax.device_get(forward(model, variables, {p: load_part(p) for p in ("action_head", "eos_head")}, inputs))
    states, seen, token_ids = (ours.pop(key) for key in ("states", "seen", "token_ids"))
    real = golden["mm_attention_mask"]
    ours |= {f"hidden_states_{i}": state[seen] for i, state in enumerate(states)}
    recorded = golden | {f"hidden_states_{i}": golden[f"hidden_states_{i}"][real] for i in range(len(states))}
    for quantity, array in ours.items():
        np.testing.assert_allclose(array, recorded[quantity], atol=TOLERANCE, rtol=0, err_msg=quantity)
    np.testing.assert_array_equal(token_ids[seen], golden["lm_logits_argmax"][real])
    l1 = np.abs(ours["predicted_actions"] - golden["actions"]).mean()
    np.testing.assert_allclose(l1, golden["l1_loss"], atol=TOLERANCE)


def test_gradients():
    """d L1 / d every base weight, proprio projector and action head, compared under the names of the checkpoint."""
    model, variables, inputs, golden = case("img2_proprio1")
    trees = (variables["params"], load_part("action_head"))

    @jax.jit
    @jax.grad
    def gradients(trees):
        hidden = model.apply({"params": trees[0]}, *inputs)
        return jnp.abs(ActionHead(64).apply({"params": trees[1]}, hidden) - golden["actions"]).mean()

    base, head = gradients(trees)
    ours = {f"vla/{name}": grad for name, grad in weights.export_weights(base, model.config)}
    for part, tree in (("proprio_projector", base["proprio_projector"]), ("action_head", head)):
        ours |= {f"{part}/{name}": grad for name, grad in weights.export_part(part, tree).items()}
    recorded = {name.removeprefix("grad/"): grad for name, grad in golden.items() if name.startswith("grad/")}
    recorded = {name: grad for name, grad in recorded.items() if not name.startswith("eos_head/")}
    assert len(recorded) > 20
    assert recorded.keys() <= ours.keys()
    for name, grad in recorded.items():
        np.testing.assert_allclose(ours[name], grad, rtol=0, atol=1e-4 * np.abs(grad).max(), err_msg=name)
