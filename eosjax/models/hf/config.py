"""The shape of the policy from the config.json of a checkpoint and the shapes of its tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from eosjax.fields import check_fields, show
from eosjax.models.action_tokens import NUM_BINS
from eosjax.models.hf.config_fields import CONFIG_FIELDS, PREPROCESSOR_FIELDS, ROPE_FIELDS, TEXT_FIELDS
from eosjax.models.hf.values import flag, mapping, real, sequence, whole
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
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_SIZES = {  # of text_config, with the largest that is read
    "vocab_size": ("vocab_size", 1 << 24),
    "hidden_size": ("width", 1 << 20),
    "num_hidden_layers": ("depth", 1000),
    "num_attention_heads": ("heads", 1 << 20),
    "num_key_value_heads": ("kv_heads", 1 << 20),
    "intermediate_size": ("mlp_dim", 1 << 20),
}
_DEFAULT_VOCABULARY = 32000  # of transformers' LlamaConfig; its other defaults are those of ours
_DEFAULT_PADDING = 64  # `pad_to_multiple_of` of the original

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
        WeightsError: another architecture than fused DINOv2 and SigLIP before a Llama; a field that is refused or unknown
            (`config_fields`), missing or of no value that it can have.
    """
    check_fields(dict(config), CONFIG_FIELDS, CONFIG, WeightsError)
    if config.get("use_fused_vision_backbone") is not True:
        raise WeightsError(f"{CONFIG}: use_fused_vision_backbone: expected true (DINOv2 and SigLIP together)")
    names = config.get("timm_model_ids")
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) and name in TIMM_VITS for name in names):
        raise WeightsError(f"{CONFIG}: timm_model_ids: expected two of {', '.join(TIMM_VITS)}, got {show(names)}")
    sizes = [whole(size, f"{CONFIG}: image_sizes", most=4096) for size in sequence(config.get("image_sizes"), f"{CONFIG}: image_sizes", 2)]
    pixels = _pixels(preprocessor, sizes) if preprocessor is not None else ({}, {})
    try:
        encoders = []
        for i, name in enumerate(names):
            changes: dict[str, Any] = {"image_size": sizes[i], **pixels[i]}
            if shapes is not None:
                changes |= _measured(shapes, PREFIXES[i], name, vision_heads and vision_heads[i])
            encoders.append(dataclasses.replace(TIMM_VITS[name], **changes))
        return VLAConfig(encoders[0], encoders[1], _llama_config(config), **overrides)
    except WeightsError:
        raise
    except ValueError as error:  # sizes that do not fit each other
        raise WeightsError(f"{CONFIG}: {error}") from error


def _pixels(preprocessor: Mapping[str, Any], sizes: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and standard deviation of the pixels of both encoders, as fields of `ViTConfig`."""
    check_fields(dict(preprocessor), PREPROCESSOR_FIELDS, PREPROCESSOR, WeightsError)
    for field, size_of in (
        ("input_sizes", lambda each: sequence(each, f"{PREPROCESSOR}: input_sizes", 3)[1:]),
        ("tvf_resize_params", lambda each: mapping(each, f"{PREPROCESSOR}: tvf_resize_params").get("size")),
        ("tvf_crop_params", lambda each: mapping(each, f"{PREPROCESSOR}: tvf_crop_params").get("output_size")),
    ):
        if preprocessor.get(field) is not None:
            got = [size_of(each) for each in sequence(preprocessor[field], f"{PREPROCESSOR}: {field}", 2)]
            if got != [[size, size] for size in sizes]:
                raise WeightsError(f"{PREPROCESSOR}: {field}: expected the image_sizes {sizes} of {CONFIG}, got {show(got)}")
    field = "tvf_normalize_params"
    if preprocessor.get(field) is not None:
        pairs = [
            (mapping(each, f"{PREPROCESSOR}: {field}").get("mean"), each.get("std"))
            for each in sequence(preprocessor[field], f"{PREPROCESSOR}: {field}", 2)
        ]
    else:
        means, stds = (sequence(preprocessor.get(name), f"{PREPROCESSOR}: {name}", 2) for name in ("means", "stds"))
        pairs, field = list(zip(means, stds, strict=True)), "means, stds"
    dino, siglip = ({"image_mean": _rgb(mean, field, -10.0), "image_std": _rgb(std, field, 1e-3)} for mean, std in pairs)
    return dino, siglip


def _rgb(values: object, field: str, least: float) -> tuple[float, ...]:
    what = f"{PREPROCESSOR}: {field}"
    return tuple(real(value, what, least, 10.0) for value in sequence(values, what, 3))


def _measured(shapes: Shapes, prefix: str, name: str, heads: int | None) -> dict[str, Any]:
    """The sizes of the encoder with these tensors, as fields of `ViTConfig`; `name`: the timm model that config.json names."""
    patches, hidden = f"{prefix}.patch_embed.proj.weight", f"{prefix}.blocks.0.mlp.fc1.weight"
    for tensor, axes in ((patches, 4), (hidden, 2)):
        if tensor not in shapes:
            raise WeightsError(f"the checkpoint has no tensor {tensor!r}: expected the encoder {name} under {prefix}")
        if len(shapes[tensor]) != axes or 0 in shapes[tensor]:
            raise WeightsError(f"{tensor}: expected {axes} axes, got the shape {shapes[tensor]}")
    width, _, patch, _ = shapes[patches]
    registers = shapes.get(f"{prefix}.reg_token", (1, 0, width))
    if len(registers) != 3:
        raise WeightsError(f"{prefix}.reg_token: expected 3 axes, got the shape {registers}")
    named = TIMM_VITS[name]
    found = {
        "patch_size": patch,
        "width": width,
        "depth": _depth(shapes, prefix + ".blocks"),
        "mlp_dim": shapes[hidden][0],
        "class_token": f"{prefix}.cls_token" in shapes,
        "register_tokens": registers[1],
        "layer_scale": 1e-5 if f"{prefix}.blocks.0.ls1.scale_factor" in shapes else None,
    }
    differing = {field: size for field, size in found.items() if getattr(named, field) != size}
    if heads is None and differing:
        sizes = ", ".join(f"{field} {size}" for field, size in differing.items())
        raise WeightsError(
            f"{prefix}: config.json names {name}, but the tensors have {sizes}; the number of attention heads stands in no file: give it "
            "with --vision_heads"
        )
    if heads not in (None, named.heads) and not differing:
        raise WeightsError(f"--vision_heads: {name} has {named.heads} heads, got {heads}; leave the flag out")
    return found | {"heads": heads or named.heads}


def _depth(shapes: Shapes, prefix: str) -> int:
    """Number of layers that have tensors."""
    numbers = {match[1] for name in shapes if (match := re.match(rf"{re.escape(prefix)}\.(\d{{1,3}})\.", name))}
    return max(map(int, numbers), default=-1) + 1


def _llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    prefix = "text_config."
    text = check_fields(config.get("text_config"), TEXT_FIELDS, CONFIG, WeightsError, prefix)
    fields: dict[str, Any] = {
        ours: whole(text[theirs], f"{CONFIG}: {prefix}{theirs}", most=most)
        for theirs, (ours, most) in _SIZES.items()
        if text.get(theirs) is not None
    }
    if "heads" in fields:
        fields.setdefault("kv_heads", fields["heads"])
    fields.setdefault("vocab_size", _DEFAULT_VOCABULARY)
    llama = dataclasses.replace(LlamaConfig(**fields), rope_theta=_rope_theta(text))
    if text.get("rms_norm_eps") is not None:
        llama = dataclasses.replace(llama, rms_norm_eps=real(text["rms_norm_eps"], f"{CONFIG}: {prefix}rms_norm_eps", 0.0, 1.0))
    if text.get("head_dim") not in (None, llama.head_dim):
        raise WeightsError(
            f"{CONFIG}: {prefix}head_dim: expected hidden_size / num_attention_heads = {llama.head_dim}, got {show(text['head_dim'])}"
        )
    return llama


def _rope_theta(text: Mapping[str, Any]) -> float:
    """The base of the rotary frequencies; raises `WeightsError` where they are of another kind, or two fields disagree."""
    found = {}
    for field in ("rope_parameters", "rope_scaling"):
        if text.get(field) is not None:
            rope = check_fields(text[field], ROPE_FIELDS, CONFIG, WeightsError, f"text_config.{field}.")
            found[f"{field}.rope_theta"] = rope.get("rope_theta")
    found["rope_theta"] = text.get("rope_theta")
    thetas = {field: real(value, f"{CONFIG}: text_config.{field}", 1.0, 1e12) for field, value in found.items() if value is not None}
    if len(set(thetas.values())) > 1:
        raise WeightsError(f"{CONFIG}: text_config: two bases of the rotary frequencies: {thetas}")
    return next(iter(thetas.values()), LlamaConfig.rope_theta)


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output projection of the language model is its embedding."""
    text = mapping(config.get("text_config"), f"{CONFIG}: text_config")
    return flag(text.get("tie_word_embeddings"), f"{CONFIG}: text_config.tie_word_embeddings")


def action_vocabulary(config: Mapping[str, Any]) -> int:
    """Number of ids of the text vocabulary, whose last 256 stand for actions where these are tokens.

    As the original computes it: rows of the embedding less `pad_to_multiple_of`.

    Raises:
        WeightsError: another number of bins than 256, or fewer rows than that.
    """
    if (bins := config.get("n_action_bins", NUM_BINS)) != NUM_BINS:
        raise WeightsError(f"{CONFIG}: n_action_bins: expected {NUM_BINS} for actions as tokens, got {show(bins)}")
    padding = whole(config.get("pad_to_multiple_of", _DEFAULT_PADDING), f"{CONFIG}: pad_to_multiple_of", 0, 1 << 24)
    text = mapping(config.get("text_config"), f"{CONFIG}: text_config")
    rows = whole(text.get("vocab_size", _DEFAULT_VOCABULARY), f"{CONFIG}: text_config.vocab_size", most=1 << 24)
    if rows - padding <= NUM_BINS:
        raise WeightsError(
            f"{CONFIG}: text_config.vocab_size: expected more than {NUM_BINS} ids beside pad_to_multiple_of {padding}, got {rows}"
        )
    return rows - padding
