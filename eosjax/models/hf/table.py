"""One table of names, read in both directions.

Each entry ties one array of our tree to its tensor in a checkpoint of the PyTorch original, or to one tensor a layer where ours are
stacked, and holds the reversible change of layout between them. Import and export walk the same table, so they cannot drift apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from eosjax.models.llama import LlamaConfig
from eosjax.models.openvla import VLAConfig
from eosjax.models.vit import ViTConfig

ADAPTER_PREFIX = "base_model.model."  # what PEFT puts in front of the names of the base model


class Op(NamedTuple):
    """A change of layout and its inverse, on NumPy arrays."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_hf: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
    """One array of our tree and where the checkpoint has it."""

    names: tuple[str, ...]  # tensors of the checkpoint, one a layer when `stacked`
    path: tuple[str, ...]  # ours
    op: Op
    stacked: bool


def _patches_to_conv(kernel: np.ndarray) -> np.ndarray:
    patch = math.isqrt(kernel.shape[0] // 3)
    return kernel.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


SAME = Op(lambda x: x, lambda x: x)
TRANSPOSE = Op(np.transpose, np.transpose)  # torch keeps linear weights as [out in]
CONV = Op(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _patches_to_conv)  # [out 3 p p] <-> [p·p·3 out]
POINTWISE = Op(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # [out in 1 1] <-> [in out]

_KERNEL = ("weight", "kernel", TRANSPOSE)
_BIAS = ("bias", "bias", SAME)
_SCALE = ("weight", "scale", SAME)
LINEAR, NORM = (_KERNEL, _BIAS), (_SCALE, _BIAS)
Leaf = tuple[str, str, Op]  # name in the checkpoint, ours, layout


def _module(theirs: str, leaves: Iterable[Leaf], ours: str | None = None, layers: int = 1) -> Iterator[Entry]:
    """Entries of one module; `{}` in its name stands for the number of a layer, and ours are stacked over it."""
    path = (theirs.replace(".{}", "") if ours is None else ours).split(".")
    for leaf, mine, op in leaves:
        names = tuple(f"{theirs}.{leaf}".format(i) for i in range(layers))
        yield Entry(names, (*path, mine), op, stacked="{}" in theirs)


def _vit_table(prefix: str, vit: ViTConfig) -> Iterator[Entry]:
    tokens = ["pos_embed"] + ["cls_token"] * vit.class_token + ["reg_token"] * bool(vit.register_tokens)
    yield from _module(prefix, [(token, token, SAME) for token in tokens])
    yield from _module(f"{prefix}.patch_embed.proj", (("weight", "kernel", CONV), _BIAS))
    block = {"norm1": NORM, "norm2": NORM}
    block |= dict.fromkeys(("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"), LINEAR)
    if vit.layer_scale is not None:
        block |= dict.fromkeys(("ls1", "ls2"), (("scale_factor", "scale_factor", SAME),))
    for module, leaves in block.items():
        yield from _module(f"{prefix}.blocks.{{}}.{module}", leaves, layers=vit.depth - 1)


def _llama_table(prefix: str, llama: LlamaConfig) -> Iterator[Entry]:
    yield from _module(f"{prefix}.model.embed_tokens", [("weight", "embedding", SAME)])
    layer = {f"self_attn.{name}_proj": _KERNEL for name in "qkvo"}
    layer |= {f"mlp.{name}_proj": _KERNEL for name in ("gate", "up", "down")}
    layer |= {f"{name}_layernorm": _SCALE for name in ("input", "post_attention")}
    for module, leaf in layer.items():
        yield from _module(f"{prefix}.model.layers.{{}}.{module}", [leaf], layers=llama.depth)
    yield from _module(f"{prefix}.model.norm", [_SCALE])
    if llama.lm_head:
        yield from _module(f"{prefix}.lm_head", [_KERNEL])


def weight_table(config: VLAConfig) -> list[Entry]:
    """All entries of the base model of `config`. The proprio projector is a part of its own (see `part_table`)."""
    return [
        *_vit_table("vision_backbone.featurizer", config.dino),
        *_vit_table("vision_backbone.fused_featurizer", config.siglip),
        *(entry for name in ("fc1", "fc2", "fc3") for entry in _module(f"projector.{name}", LINEAR)),
        *_llama_table("language_model", config.llama),
    ]


def unused_patterns(config: VLAConfig) -> list[str]:
    """Regular expressions of the tensors that a checkpoint may hold and the model leaves aside on purpose."""
    patterns = []
    for name, vit in (("featurizer", config.dino), ("fused_featurizer", config.siglip)):
        for tail in (rf"blocks\.{vit.depth - 1}\..+", r"norm\.(weight|bias)", r"attn_pool\..+"):
            patterns.append(rf"vision_backbone\.{name}\.{tail}")
    if not config.llama.lm_head:
        patterns.append(r"language_model\.lm_head\..+")
    return patterns


def adapter_table(config: VLAConfig) -> Iterator[Entry]:
    """Entries of the low-rank branches in PEFT's layout: two tensors for each linear layer of `weight_table`.

    PEFT's branch of a convolution is a convolution with `rank` outputs and one of 1 x 1 pixels behind it.
    """
    for entry in weight_table(config):
        if entry.path[-1] != "kernel":
            continue
        ops = (CONV, POINTWISE) if entry.op is CONV else (TRANSPOSE, TRANSPOSE)
        for theirs, ours, op in zip(("lora_A", "lora_B"), ("a", "b"), ops, strict=True):
            names = tuple(f"{ADAPTER_PREFIX}{name.removesuffix('weight')}{theirs}.weight" for name in entry.names)
            yield Entry(names, (*entry.path[:-1], ours), op, entry.stacked)


def unused_adapter_patterns(config: VLAConfig) -> list[str]:
    """Like `unused_patterns`, for an adapter: PEFT also wraps layers that are not run, and may store base weights beside."""
    return [re.escape(ADAPTER_PREFIX) + pattern for pattern in (*unused_patterns(config), r".+\.base_layer\..+")]


def part_table(part: str) -> list[Entry]:
    """Entries of a part that OpenVLA-OFT keeps in a file of its own: action_head, eos_head or proprio_projector."""
    modules = {
        "action_head": [("layer_norm1", "model.layer_norm1", NORM), ("fc1", "model.fc1", LINEAR)]
        + [(f"mlp_resnet_blocks_{i}.ffn_0", f"model.mlp_resnet_blocks.{i}.ffn.0", NORM) for i in range(2)]
        + [(f"mlp_resnet_blocks_{i}.ffn_1", f"model.mlp_resnet_blocks.{i}.ffn.1", LINEAR) for i in range(2)]
        + [("layer_norm2", "model.layer_norm2", NORM), ("fc2", "model.fc2", LINEAR)],
        "eos_head": [("fc1", "model.0", LINEAR), ("fc2", "model.3", LINEAR), ("fc3", "model.6", LINEAR)],
        "proprio_projector": [("fc1", "fc1", LINEAR), ("fc2", "fc2", LINEAR)],
    }
    if part not in modules:
        raise ValueError(f"part: expected one of {', '.join(modules)}, got {part!r}")
    return [entry for ours, theirs, leaves in modules[part] for entry in _module(theirs, leaves, ours)]
