"""The shape of the policy from the config.json of a checkpoint and the shapes of its tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from eosjax.models.hf.weights import WeightsError
from eosjax.models.llama import LlamaConfig
from eosjax.models.openvla import IMAGENET_MEAN, IMAGENET_STD, VLAConfig
from eosjax.models.vit import ViTConfig

TIMM_VITS: Mapping[str, ViTConfig] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": ViTConfig(
        image_size=224, patch_size=14, width=1024, depth=24, heads=16, mlp_dim=4096,
        class_token=True, register_tokens=4, layer_scale=1e-5, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD,
    ),
    "vit_so400m_patch14_siglip_224": ViTConfig(
        image_size=224, patch_size=14, width=1152, depth=27, heads=16, mlp_dim=4304
    ),
}  # fmt: skip
# Shape fields from the config.json of well-known checkpoints, for plans without the checkpoint.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "openvla/openvla-7b": {
        "use_fused_vision_backbone": True,
        "timm_model_ids": list(TIMM_VITS),
        "image_sizes": [224, 224],
        "text_config": {"vocab_size": 32064},
    },
}
PREFIXES = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")
_LLAMA_FIELDS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "mlp_dim",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}

Shapes = Mapping[str, tuple[int, ...]]


def vla_config_from_hf(
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None = None,
    shapes: Shapes | None = None,
    vision_heads: tuple[int, int] | None = None,
    **overrides: Any,
) -> VLAConfig:
    """The `VLAConfig` of a checkpoint.

    Args:
        config: config.json, parsed.
        preprocessor: preprocessor_config.json, parsed; its `tvf_normalize_params` replace the means and standard deviations of the
            encoders, as in the original.
        shapes: name -> shape of the checkpoint's tensors, which give the sizes of the encoders. None: the timm models that
            config.json names.
        vision_heads: attention heads of the two encoders, which no file holds. None: those of the timm models; the encoders must then
            have their sizes.
        overrides: fields of `VLAConfig` that a checkpoint does not fix (chunk, proprio_dim, dtypes, LoRA, ...).

    Raises:
        WeightsError: another architecture than fused DINOv2 and SigLIP before a Llama.
    """
    if not config.get("use_fused_vision_backbone"):
        raise WeightsError("config.json, use_fused_vision_backbone: expected true (DINOv2 and SigLIP together)")
    names = config.get("timm_model_ids") or []
    if len(names) != 2 or any(name not in TIMM_VITS for name in names):
        raise WeightsError(f"config.json, timm_model_ids: expected two of {', '.join(TIMM_VITS)}, got {names}")
    encoders: list[ViTConfig] = []
    for i, name in enumerate(names):
        changes: dict[str, Any] = {"image_size": config["image_sizes"][i]}
        if shapes is not None:
            changes |= _measured(shapes, PREFIXES[i], name, vision_heads and vision_heads[i])
        if preprocessor is not None:
            pixels = preprocessor["tvf_normalize_params"][i]
            changes |= {"image_mean": tuple(pixels["mean"]), "image_std": tuple(pixels["std"])}
        encoders.append(dataclasses.replace(TIMM_VITS[name], **changes))
    return VLAConfig(encoders[0], encoders[1], _llama_config(config["text_config"]), **overrides)


def _measured(shapes: Shapes, prefix: str, name: str, heads: int | None) -> dict[str, Any]:
    """The sizes of the encoder with these tensors, as fields of `ViTConfig`; `name`: the timm model that config.json names."""
    try:
        (width, _, patch, _), (mlp_dim, _) = shapes[f"{prefix}.patch_embed.proj.weight"], shapes[f"{prefix}.blocks.0.mlp.fc1.weight"]
    except KeyError as error:
        raise WeightsError(f"the checkpoint has no tensor {error}: expected the encoder {name} under {prefix}") from error
    blocks = {int(match[1]) for key in shapes if (match := re.match(rf"{re.escape(prefix)}\.blocks\.(\d+)\.", key))}
    named = TIMM_VITS[name]
    found = {
        "patch_size": patch,
        "width": width,
        "depth": max(blocks) + 1,
        "mlp_dim": mlp_dim,
        "class_token": f"{prefix}.cls_token" in shapes,
        "register_tokens": shapes.get(f"{prefix}.reg_token", (1, 0, width))[1],
        "layer_scale": 1e-5 if f"{prefix}.blocks.0.ls1.scale_factor" in shapes else None,
    }
    differing = {field: size for field, size in found.items() if getattr(named, field) != size}
    if heads is None and differing:
        sizes = ", ".join(f"{field} {size}" for field, size in differing.items())
        raise WeightsError(
            f"{prefix}: config.json names {name}, but the tensors have {sizes}; the number of attention heads stands in no file: give it "
            "with --vision_heads"
        )
    return found | {"heads": heads or named.heads}


def _llama_config(text: Mapping[str, Any]) -> LlamaConfig:
    # A size that text_config leaves out has the default of transformers' LlamaConfig, which is that of ours.
    if text.get("rope_scaling"):
        raise WeightsError(f"config.json, text_config.rope_scaling: expected none, got {text['rope_scaling']}")
    fields = {ours: text[theirs] for theirs, ours in _LLAMA_FIELDS.items() if theirs in text}
    if "heads" in fields:
        fields.setdefault("kv_heads", fields["heads"])
    return LlamaConfig(vocab_size=text["vocab_size"], **fields)
