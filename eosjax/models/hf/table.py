"""One table of names, read in both directions.

Each entry maps one array of our tree to its tensor in a checkpoint of the PyTorch original, or to one tensor per layer where ours are
stacked. It holds the reversible change of layout between them. Import and export read the same table, so they cannot drift apart.
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
EMBEDDING, LM_HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
ROTARY = r"language_model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"  # frequencies that old checkpoints store
_VISION = "vision_backbone."


class Op(NamedTuple):
    """A change of layout and its inverse, on NumPy arrays."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_hf: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
    """One array of our tree and its tensors in the checkpoint."""

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
    """Entries of one module. `{}` in its name stands for the number of a layer; ours are stacked over the layers."""
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
    """Regular expressions of the tensors that a checkpoint may hold and that the model ignores on purpose."""
    patterns = [ROTARY]
    for name, vit in (("featurizer", config.dino), ("fused_featurizer", config.siglip)):
        for tail in (rf"blocks\.{vit.depth - 1}\..+", r"norm\.(weight|bias)", r"attn_pool\..+"):
            patterns.append(rf"vision_backbone\.{name}\.{tail}")
    if not config.llama.lm_head:
        patterns.append(r"language_model\.lm_head\..+")
    return patterns


def renamed(name: str) -> str:
    """The original's name of a tensor: its LayerScale is timm's `gamma` under a name that transformers leaves alone."""
    return re.sub(r"^(vision_backbone\..+\.ls[12])\.gamma$", r"\1.scale_factor", name)


def adapter_table(config: VLAConfig) -> Iterator[Entry]:
    """Entries of the low-rank branches in PEFT's layout: two tensors for each linear layer of `weight_table`.

    PEFT's branch of a convolution is a convolution with `rank` outputs and one of 1 x 1 pixels after it. With FiLM the original wraps the
    vision backbone in one of the same name before it saves.
    """
    for entry in _branches(weight_table(config), "lora_{}.weight"):
        names = entry.names
        if config.freeze_vision and names[0].startswith(_VISION):
            continue
        if config.film and names[0].startswith(_VISION):
            names = tuple(_VISION + in_film(name) for name in names)
        yield entry._replace(names=tuple(ADAPTER_PREFIX + name for name in names))


def _branches(table: Iterable[Entry], tensor: str) -> Iterator[Entry]:
    """Entries of both matrices of each linear layer of `table`; `tensor`: their names within the layer, `{}` for A or B."""
    for entry in table:
        if entry.path[-1] != "kernel":
            continue
        ops = (CONV, POINTWISE) if entry.op is CONV else (TRANSPOSE, TRANSPOSE)
        for matrix, op in zip("AB", ops, strict=True):
            names = tuple(name.removesuffix("weight") + tensor.format(matrix) for name in entry.names)
            yield Entry(names, (*entry.path[:-1], matrix.lower()), op, entry.stacked)


def unused_adapter_patterns(config: VLAConfig) -> list[str]:
    """Like `unused_patterns`, for an adapter: PEFT also wraps layers that are not run."""
    prefix = re.escape(ADAPTER_PREFIX) + (f"({re.escape(_VISION)})?" if config.film else "")
    return [prefix + pattern for pattern in unused_patterns(config)]


def adapter_module(name: str) -> str:
    """The layer of the base model, such as `projector.fc1`, of a tensor of an adapter."""
    return out_of_film(wrapped_module(name))


def wrapped_module(name: str) -> str:
    """That layer under the name that it has where FiLM wraps the encoders."""
    return name.removeprefix(ADAPTER_PREFIX).rpartition(".lora_")[0]


def film_table(config: VLAConfig) -> Iterator[Entry]:
    """Entries of the FiLM vision backbone, `vision_backbone--<step>_checkpoint.pt`; their paths begin with the Flax collection.

    The original saves the wrapped module whole: the base weights (under PEFT's `base_layer` where a layer has a low-rank branch), the
    branches, and `scale` and `shift` of each block, which are no part of the base checkpoint nor of the adapter.
    """
    base = [entry for entry in weight_table(config) if entry.names[0].startswith(_VISION)]
    with_branches = {entry.path[:-1] for entry in base if entry.path[-1] == "kernel"} if config.lora_rank else set()
    for entry in base:
        name = with_base_layer if entry.path[:-1] in with_branches else str
        yield Entry(tuple(name(in_film(n)) for n in entry.names), ("params", *entry.path), entry.op, entry.stacked)
    for entry in _branches(base, "lora_{}.default.weight") if config.lora_rank else ():
        yield Entry(tuple(in_film(n) for n in entry.names), ("lora", *entry.path), entry.op, entry.stacked)
    for encoder, vit in (("featurizer", config.dino), ("fused_featurizer", config.siglip)):
        for layer in ("scale", "shift"):
            theirs, ours = f"{_VISION}{encoder}.blocks.{{}}.{layer}", f"params.{_VISION}{encoder}.blocks.film.{layer}"
            yield from _module(theirs, LINEAR, ours, vit.depth - 1)


def in_film(name: str) -> str:
    """The name of a tensor of the vision backbone once FiLM wraps its blocks."""
    return re.sub(r"\.blocks\.(\d+)\.", r".blocks.\1.block.", name)


def out_of_film(name: str) -> str:
    """The inverse of `in_film`, of a name with or without the prefix that FiLM adds in an adapter."""
    return re.sub(r"\.blocks\.(\d+)\.block\.", r".blocks.\1.", name.removeprefix(_VISION) if name.startswith(2 * _VISION) else name)


def with_base_layer(name: str) -> str:
    """The name of a weight or bias once PEFT wraps its layer."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.base_layer.{leaf}"


def part_table(part: str) -> list[Entry]:
    """Entries of a part that OpenVLA-OFT keeps in a file of its own.

    action_head, eos_head, proprio_projector, noisy_action_projector; and diffusion_action_head, whose file is called action_head too.
    """
    projector = [("fc1", "fc1", LINEAR), ("fc2", "fc2", LINEAR)]
    modules = {
        "action_head": _resnet("model"),
        "eos_head": [("fc1", "model.0", LINEAR), ("fc2", "model.3", LINEAR), ("fc3", "model.6", LINEAR)],
        "proprio_projector": projector,
        "noisy_action_projector": projector,
        "diffusion_action_head": _resnet("noise_predictor.mlp_resnet"),
    }
    if part not in modules:
        raise ValueError(f"part: expected one of {', '.join(modules)}, got {part!r}")
    return [entry for ours, theirs, leaves in modules[part] for entry in _module(theirs, leaves, ours)]


def layout_of(part: str, config: VLAConfig) -> str:
    """The name in `part_table` of a part of the policy that `config` describes."""
    return "diffusion_action_head" if part == "action_head" and config.diffusion else part


def _resnet(prefix: str) -> list[tuple[str, str, tuple[Leaf, Leaf]]]:
    """(ours, theirs, leaves) of the modules of an `ActionHead` with two blocks."""
    inner = [(f"mlp_resnet_blocks_{i}.ffn_{j}", f"mlp_resnet_blocks.{i}.ffn.{j}", (NORM, LINEAR)[j]) for i in range(2) for j in range(2)]
    first, last = [[(name + n, name + n, leaves) for name, leaves in (("layer_norm", NORM), ("fc", LINEAR))] for n in "12"]
    return [(ours, f"{prefix}.{theirs}", leaves) for ours, theirs, leaves in (*first, *inner, *last)]
