"""A tiny pretrained policy on disk, in the layout of the real one."""

import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from eosjax.data.samples.tokens import demo_tokenizer
from eosjax.models.hf.weights import abstract_variables, export_weights
from eosjax.models.llama import LlamaConfig
from eosjax.models.openvla import VLAConfig
from eosjax.models.vit import ViTConfig

HEADS = "2,2"  # of the encoders: `--vision_heads`


def tiny_config(**overrides) -> VLAConfig:
    """The shape of what `write_checkpoint` writes: 16-pixel images, 2 x 2 patches, language model of width 16."""
    dino = ViTConfig(16, 8, 8, 3, 2, 16, class_token=True, register_tokens=2, layer_scale=1e-5)
    llama = LlamaConfig(vocab_size=576, width=16, depth=2, heads=4, kv_heads=2, mlp_dim=24)
    return VLAConfig(dino, ViTConfig(16, 8, 12, 3, 2, 16), llama, **overrides)


def write_checkpoint(folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes two shards with an index, config.json and tokenizer.json; returns the tensors, those of parts that are not run included."""
    folder.mkdir(parents=True)
    rng, config = np.random.default_rng(seed), tiny_config()
    params = jax.tree.map(lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), abstract_variables(config)["params"])
    tensors = dict(export_weights(params, config))
    for part, width in (("featurizer", 8), ("fused_featurizer", 12)):
        tensors[f"vision_backbone.{part}.blocks.2.norm1.weight"] = np.ones(width, np.float32)
        tensors[f"vision_backbone.{part}.norm.weight"] = np.ones(width, np.float32)
    tensors["language_model.lm_head.weight"] = rng.standard_normal((576, 16)).astype(np.float32)
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    text = {"model_type": "llama", "vocab_size": 576, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    content = {
        "model_type": "openvla",
        "use_fused_vision_backbone": True,
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "image_sizes": [16, 16],
        "pad_to_multiple_of": 16,  # the demo's tokenizer has 560 ids
        "text_config": text | {"num_key_value_heads": 2, "intermediate_size": 24},
    }
    (folder / "config.json").write_text(json.dumps(content))
    demo_tokenizer().tokenizer.save(str(folder / "tokenizer.json"))
    return tensors
