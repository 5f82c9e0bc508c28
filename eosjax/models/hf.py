"""Checkpoints of the PyTorch original: one table of names, read in both directions.

Each entry ties one array of our tree to its tensor in the checkpoint, or to one tensor a layer where ours are stacked,
and holds the reversible change of layout between them. Import and export walk the same table, so they cannot drift
apart.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from eosjax.models.openvla import IMAGENET_MEAN, IMAGENET_STD, LlamaConfig, OpenVLA, ViTConfig, VLAConfig

TIMM_VITS: Mapping[str, ViTConfig] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": ViTConfig(
        image_size=224, patch_size=14, width=1024, depth=24, heads=16, mlp_dim=4096,
        class_token=True, register_tokens=4, layer_scale=1e-5, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD,
    ),
    "vit_so400m_patch14_siglip_224": ViTConfig(
        image_size=224, patch_size=14, width=1152, depth=27, heads=16, mlp_dim=4304
    ),
}  # fmt: skip


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
        patterns.append(r"language_model\.lm_head\.weight")
    return patterns


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


def _listed(title: str, names: set[str], limit: int = 20) -> str:
    shown = sorted(names)[:limit] + [f"... and {len(names) - limit} more"] * (len(names) > limit)
    return f"{title} ({len(names)}):" + "".join(f"\n  {name}" for name in shown or ["none"])


def _check_names(what: str, table: list[Entry], found: set[str], unused: Iterable[str] = ()) -> None:
    wanted = {name for entry in table for name in entry.names}
    missing = wanted - found
    unknown = {name for name in found - wanted if not any(re.fullmatch(pattern, name) for pattern in unused)}
    if missing or unknown:
        raise ValueError(
            f"{what}: the tensors do not fit the model.\n"
            + _listed("expected by the model, not in the checkpoint", missing)
            + "\n"
            + _listed("in the checkpoint, unknown to the model", unknown)
        )


def _read(entry: Entry, tensors: Mapping[str, np.ndarray], expected: jax.ShapeDtypeStruct) -> np.ndarray:
    """The array of one entry. Layers go to their place one by one: no more than one of them is held twice."""
    out = np.empty(expected.shape, expected.dtype)
    rows = out if entry.stacked else out[None]
    for i, name in enumerate(entry.names):
        array = entry.op.to_ours(np.asarray(tensors[name]))
        if array.shape != rows.shape[1:]:
            raise ValueError(
                f"{name}: expected the shape {rows.shape[1:]} of {'/'.join(entry.path)}, got {array.shape}, both in our layout"
            )
        rows[i] = array
    return out


def abstract_params(config: VLAConfig) -> dict[str, Any]:
    """The `params` tree of `OpenVLA(config)` as `jax.ShapeDtypeStruct`s; allocates and computes nothing."""
    size, length = config.dino.image_size, config.action_tokens + 3
    inputs = (
        jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        jax.ShapeDtypeStruct((1, length), jnp.bool_),
        jax.ShapeDtypeStruct((1, config.proprio_dim), jnp.float32),
    )
    return jax.eval_shape(OpenVLA(config).init, jax.random.key(0), *inputs)["params"]


def import_weights(tensors: Mapping[str, np.ndarray], config: VLAConfig) -> dict[str, Any]:
    """The `params` tree of the base model, NumPy arrays in `config.param_dtype`, without the proprio projector.

    `tensors`: name -> array of the checkpoint; each is looked up once, so a lazy mapping keeps memory low. Raises
    `ValueError` with both lists when a tensor is missing or neither used nor in `unused_patterns`, and when a shape
    does not fit.
    """
    table = weight_table(config)
    _check_names("import_weights", table, set(tensors), unused_patterns(config))
    expected: dict[Any, Any] = dict(flatten_dict(abstract_params(config)))
    return unflatten_dict({entry.path: _read(entry, tensors, expected[entry.path]) for entry in table})


def export_weights(params: Mapping[str, Any], config: VLAConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of each tensor that `import_weights` used: its inverse, bit for bit, a tensor at a time."""
    flat = flatten_dict(params)
    for entry in weight_table(config):
        array = np.asarray(flat[entry.path])
        for name, row in zip(entry.names, array if entry.stacked else array[None], strict=True):
            yield name, np.ascontiguousarray(entry.op.to_hf(row))


def import_part(part: str, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The float32 params of a part (see `part_table`); its names may carry the `module.` that DDP puts in front.

    Raises `ValueError` with both lists when the names are not exactly those of the part.
    """
    tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    table = part_table(part)
    _check_names(part, table, set(tensors))
    arrays = {entry.path: entry.op.to_ours(np.asarray(tensors[entry.names[0]], np.float32)) for entry in table}
    return unflatten_dict({path: np.ascontiguousarray(array) for path, array in arrays.items()})


def export_part(part: str, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `import_part`, without the `module.` prefix."""
    flat = flatten_dict(params)
    return {e.names[0]: np.ascontiguousarray(e.op.to_hf(np.asarray(flat[e.path]))) for e in part_table(part)}


def vla_config_from_hf(
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None = None,
    *,
    vision: tuple[ViTConfig, ViTConfig] | None = None,
    **overrides: Any,
) -> VLAConfig:
    """The `VLAConfig` of a checkpoint's config.json (and preprocessor_config.json), both as parsed JSON.

    `preprocessor`: its `tvf_normalize_params` replace the means and standard deviations of the encoders, as in the
    original. `vision`: sizes of the two encoders (default: by their timm names). `overrides`: fields of `VLAConfig` that
    a checkpoint does not fix (chunk, proprio_dim, dtypes, LoRA, ...). Raises `ValueError` for an architecture other than
    fused DINOv2 + SigLIP.
    """
    if not config.get("use_fused_vision_backbone"):
        raise ValueError("config.json, use_fused_vision_backbone: expected true (DINOv2 and SigLIP together)")
    if vision is None:
        unknown = [name for name in config["timm_model_ids"] if name not in TIMM_VITS]
        if unknown or len(config["timm_model_ids"]) != 2:
            raise ValueError(f"config.json, timm_model_ids: expected two of {', '.join(TIMM_VITS)}, got {config['timm_model_ids']}")
        vision = (TIMM_VITS[config["timm_model_ids"][0]], TIMM_VITS[config["timm_model_ids"][1]])
    encoders: list[ViTConfig] = []
    for i, vit in enumerate(vision):
        vit = dataclasses.replace(vit, image_size=config["image_sizes"][i])
        if preprocessor is not None:
            pixels = preprocessor["tvf_normalize_params"][i]
            vit = dataclasses.replace(vit, image_mean=tuple(pixels["mean"]), image_std=tuple(pixels["std"]))
        encoders.append(vit)
    return VLAConfig(encoders[0], encoders[1], _llama_config(config["text_config"]), **overrides)


def _llama_config(text: Mapping[str, Any]) -> LlamaConfig:
    # A size that text_config leaves out has the default of transformers' LlamaConfig, which is that of ours.
    names = {
        "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads", "intermediate_size": "mlp_dim", "rms_norm_eps": "rms_norm_eps",
        "rope_theta": "rope_theta",
    }  # fmt: skip
    if text.get("rope_scaling"):
        raise ValueError(f"config.json, text_config.rope_scaling: expected none, got {text['rope_scaling']}")
    fields = {ours: text[theirs] for theirs, ours in names.items() if theirs in text}
    if "heads" in fields:
        fields.setdefault("kv_heads", fields["heads"])
    return LlamaConfig(vocab_size=text["vocab_size"], **fields)
