"""The vision backbone with FiLM, which OpenVLA-OFT keeps whole in a file of its own beside the base weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from eosjax.models.hf import weights
from eosjax.models.hf.table import film_table, in_film, unused_patterns, with_base_layer
from eosjax.models.openvla import VLAConfig

# Layers that PEFT wraps for `all-linear`: those of a block, and of the pooling head that is not run.
_WRAPPED = re.compile(r".+\.(qkv|proj|fc1|fc2|q|kv)\.(weight|bias)")


def import_film(tensors: Mapping[str, np.ndarray], config: VLAConfig, put: weights.Put = lambda array: array) -> dict[str, Any]:
    """The variables of the vision backbone in `vision_backbone--<step>_checkpoint.pt`.

    Returns `{"params": {"vision_backbone": ...}}` with the FiLM layers in the blocks, and beside it `{"lora": {"vision_backbone": ...}}`
    when `config.lora_rank` is positive. Arguments as in `weights.import_weights`; the names may carry DDP's `module.` prefix.

    Raises:
        WeightsError: a tensor is missing, unknown or of another shape; the file must have adapters exactly when `config` has them.
    """
    tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    table = list(film_table(config))
    weights.compare_names(table, tensors, unused_patterns(config)).check("FiLM vision backbone")
    return weights._import(table, tensors, weights.abstract_variables(config), put)


def export_film(variables: Mapping[str, Any], config: VLAConfig, base: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of all tensors of `vision_backbone--<step>_checkpoint.pt`; the original loads nothing less.

    Args:
        variables: of `OpenVLA`, as `import_film` returns them.
        config: the model.
        base: tensors of the checkpoint that was fine-tuned. Layers that are not run are taken from there; their FiLM layers and their
            low-rank branches are zero.
    """
    yield from weights._export(film_table(config), variables)
    unused = [pattern for pattern in unused_patterns(config) if pattern.startswith("vision_backbone")]
    for name in base:
        if any(re.fullmatch(pattern, name) for pattern in unused):
            yield from _not_run(name, np.asarray(base[name]), config)
    width = config.llama.width
    for encoder, vit in (("featurizer", config.dino), ("fused_featurizer", config.siglip)):
        for layer in ("scale", "shift"):
            prefix = f"vision_backbone.{encoder}.blocks.{vit.depth - 1}.{layer}"
            yield f"{prefix}.weight", np.zeros((vit.width, width), np.float32)
            yield f"{prefix}.bias", np.zeros(vit.width, np.float32)


def _not_run(name: str, array: np.ndarray, config: VLAConfig) -> Iterator[tuple[str, np.ndarray]]:
    """A tensor of a layer that is not run, under its name in the file, with a branch that does nothing where PEFT wraps the layer."""
    name = in_film(name)
    if not (config.lora_rank and _WRAPPED.fullmatch(name)):
        yield name, array
        return
    yield with_base_layer(name), array
    if name.endswith(".weight"):
        outputs, inputs = array.shape
        layer = name.removesuffix("weight")
        yield f"{layer}lora_A.default.weight", np.zeros((config.lora_rank, inputs), np.float32)
        yield f"{layer}lora_B.default.weight", np.zeros((outputs, config.lora_rank), np.float32)
