"""Both vision encoders against those of transformers, whose names and layout differ from the checkpoint's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.models.hf import weights
from eosjax.models.vit import ViT
from tests.parity.conftest import FORWARD, POLICY, QUICK, check_forward, check_gradients, random_params

torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `parity`)")

# Modules of one block in the checkpoint and in transformers; `{}` stands for q, k and v, which the checkpoint keeps as one.
DINO_BLOCK = {"norm1": "norm1", "attn.qkv": "attention.{}_proj", "attn.proj": "attention.o_proj", "norm2": "norm2"}
DINO_BLOCK |= {name: name for name in ("mlp.fc1", "mlp.fc2")}
SIGLIP_BLOCK = {"norm1": "layer_norm1", "attn.qkv": "self_attn.{}_proj", "attn.proj": "self_attn.out_proj", "norm2": "layer_norm2"}
SIGLIP_BLOCK |= {name: name for name in ("mlp.fc1", "mlp.fc2")}


def dino():
    vit = POLICY.dino
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=vit.width, num_hidden_layers=vit.depth, num_attention_heads=vit.heads, mlp_ratio=vit.mlp_dim // vit.width,
        image_size=vit.image_size, patch_size=vit.patch_size, num_register_tokens=vit.register_tokens, attn_implementation="eager",
    )  # fmt: skip
    return transformers.Dinov2WithRegistersModel(config).eval()


def siglip():
    vit = POLICY.siglip
    config = transformers.SiglipVisionConfig(
        hidden_size=vit.width, num_hidden_layers=vit.depth, num_attention_heads=vit.heads, intermediate_size=vit.mlp_dim,
        image_size=vit.image_size, patch_size=vit.patch_size, hidden_act="gelu", vision_use_head=False, attn_implementation="eager",
    )  # fmt: skip
    return transformers.SiglipVisionModel(config).eval()


def block_tensors(arrays, parts, layers, depth):
    """The arrays of the blocks that are run, under the names of the checkpoint."""
    tensors = {}
    for block, (ours, theirs), leaf in itertools.product(range(depth - 1), parts.items(), ("weight", "bias")):
        names = dict.fromkeys(f"{layers}.{block}.{theirs.format(each)}.{leaf}" for each in "qkv")
        tensors[f"blocks.{block}.{ours}.{leaf}"] = np.concatenate([arrays[name] for name in names])
    return tensors


def dino_tensors(arrays):
    """Arrays of transformers' model (weights or gradients) under the names of the checkpoint."""
    tensors = block_tensors(arrays, DINO_BLOCK, "encoder.layer", POLICY.dino.depth)
    for block, i in itertools.product(range(POLICY.dino.depth - 1), (1, 2)):
        tensors[f"blocks.{block}.ls{i}.scale_factor"] = arrays[f"encoder.layer.{block}.layer_scale{i}.lambda1"]
    for leaf in ("weight", "bias"):
        tensors[f"patch_embed.proj.{leaf}"] = arrays[f"embeddings.patch_embeddings.projection.{leaf}"]
    tensors |= {"cls_token": arrays["embeddings.cls_token"], "reg_token": arrays["embeddings.register_tokens"]}
    return tensors | {"pos_embed": arrays["embeddings.position_embeddings"][:, 1:]}  # the first one is that of the class token


def siglip_tensors(arrays):
    """As `dino_tensors`."""
    tensors = block_tensors(arrays, SIGLIP_BLOCK, "encoder.layers", POLICY.siglip.depth)
    for leaf in ("weight", "bias"):
        tensors[f"patch_embed.proj.{leaf}"] = arrays[f"embeddings.patch_embedding.{leaf}"]
    return tensors | {"pos_embed": arrays["embeddings.position_embedding.weight"][None]}


ENCODERS = [("featurizer", POLICY.dino, dino, dino_tensors), ("fused_featurizer", POLICY.siglip, siglip, siglip_tensors)]


def both(name, make, convert, rng):
    """(our params of an encoder, transformers' model with the same weights)."""
    model = make()
    for parameter in model.parameters():
        parameter.data = torch.tensor(0.2 * rng.standard_normal(parameter.shape), dtype=torch.float32)
    if name == "featurizer":
        model.embeddings.position_embeddings.data[:, 0] = 0  # the checkpoint's class token has no position
    prefix = f"vision_backbone.{name}."
    tensors = dict(weights.export_weights(random_params(POLICY), POLICY))
    found = convert({name: leaf.detach().numpy() for name, leaf in model.named_parameters()})
    assert {prefix + each for each in found} == {each for each in tensors if each.startswith(prefix)}
    params = weights.import_weights(tensors | {prefix + each: array for each, array in found.items()}, POLICY)
    return params, model


def features(model, name, images):
    """Patch features of the second-to-last block, without its final norm and without prefix tokens."""
    hidden = model(torch.tensor(images).permute(0, 3, 1, 2), output_hidden_states=True).hidden_states
    assert len(hidden) == 4  # the embeddings and three blocks
    return hidden[-2][:, 1 + POLICY.dino.register_tokens :] if name == "featurizer" else hidden[-2]


def run(name, vit, params, images):
    return ViT(vit, POLICY.linear).apply({"params": params["vision_backbone"][name]}, images)


@pytest.fixture
def images(rng):
    size = POLICY.dino.image_size
    return rng.standard_normal((2, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(("name", "vit", "make", "convert"), ENCODERS, ids=["dino", "siglip"])
def test_features(name, vit, make, convert, images, rng):
    params, model = both(name, make, convert, rng)
    ours = run(name, vit, params, images)
    check_forward(ours, features(model, name, images))
    last = model(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state[:, -vit.num_patches :].detach().numpy()
    assert np.abs(ours - last).max() > 1000 * FORWARD


@pytest.mark.parametrize(("name", "vit", "make", "convert"), ENCODERS, ids=["dino", "siglip"])
def test_gradients(name, vit, make, convert, images, rng):
    params, model = both(name, make, convert, rng)
    features(model, name, images).sin().sum().backward()
    used = {each: leaf.grad.numpy() for each, leaf in model.named_parameters() if leaf.grad is not None}
    prefix = f"vision_backbone.{name}."
    theirs = {prefix + each: array for each, array in convert(used).items()}
    gradient = jax.jit(jax.grad(lambda params: jnp.sin(run(name, vit, params, images)).sum()), compiler_options=QUICK)
    gradients = weights.export_weights(gradient(params), POLICY)
    check_gradients({each: array for each, array in gradients if each.startswith(prefix)}, theirs)
