"""The policy in plain torch and transformers, under the names of the original's checkpoints, as far as it is run.

Written from the description of the model (docs/weights.md): what tests of the weights and `benchmarks/step.py` compare with. Imports torch
at once.
"""

import numpy as np
import torch
import transformers
from torch import nn

from eosjax.models.openvla import IMAGENET_MEAN, IMAGENET_STD


class Attention(nn.Module):
    """Self-attention with one qkv projection."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        """[... in] -> [... out]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers round the exact GELU."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        """[... in] -> [... out]."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A factor a channel."""

    def __init__(self, width):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x):
        """[... in] -> [... out]."""
        return x * self.scale_factor


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, vit):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(vit.width, eps=1e-6), nn.LayerNorm(vit.width, eps=1e-6)
        self.attn, self.mlp = Attention(vit.width, vit.heads), Mlp(vit.width, vit.mlp_dim)
        scaled = vit.layer_scale is not None
        self.ls1, self.ls2 = (LayerScale(vit.width) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x):
        """[... in] -> [... out]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """The patch convolution."""

    def __init__(self, vit):
        super().__init__()
        self.proj = nn.Conv2d(3, vit.width, vit.patch_size, vit.patch_size)

    def forward(self, x):
        """[... in] -> [... out]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """[n 3 h w] -> [n patches width], of the second-to-last block."""

    def __init__(self, vit):
        super().__init__()
        self.vit, self.patch_embed = vit, PatchEmbed(vit)
        self.pos_embed = nn.Parameter(torch.zeros(1, vit.num_patches, vit.width))
        if vit.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, vit.width))
        if vit.register_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, vit.register_tokens, vit.width))
        self.blocks = nn.ModuleList(Block(vit) for _ in range(vit.depth - 1))

    def embed(self, images):
        """Patches with their positions, behind the class and register tokens."""
        x = self.patch_embed(images) + self.pos_embed
        prefix = [getattr(self, name).expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if hasattr(self, name)]
        return torch.cat([*prefix, x], dim=1)

    def forward(self, images):
        """[... in] -> [... out]."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x[:, -self.vit.num_patches :]


class VisionBackbone(nn.Module):
    """Both encoders on [n h w 3] pixels, side by side."""

    def __init__(self, config):
        super().__init__()
        self.featurizer, self.fused_featurizer = ViT(config.dino), ViT(config.siglip)

    def forward(self, images):
        """[... in] -> [... out]."""
        pixels = images.permute(0, 3, 1, 2) / 255
        mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
        return torch.cat([self.featurizer((pixels - mean) / std), self.fused_featurizer((pixels - 0.5) / 0.5)], dim=-1)


class Projector(nn.Module):
    """Vision features to the width of the language model."""

    def __init__(self, vision, width):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(vision, 4 * vision), nn.Linear(4 * vision, width), nn.Linear(width, width)

    def forward(self, x):
        """[... in] -> [... out]."""
        gelu = nn.functional.gelu
        return self.fc3(gelu(self.fc2(gelu(self.fc1(x)))))


def llama(config):
    """transformers' Llama of a `LlamaConfig`. Of its kinds of attention, sdpa takes boolean masks [b 1 t t] (eager adds what it gets)."""
    settings = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.mlp_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "attn_implementation": "sdpa",
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()


class TorchOpenVLA(nn.Module):
    """The policy without proprioception, on unpadded text."""

    def __init__(self, config):
        super().__init__()
        self.vla_config = config
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config.dino.width + config.siglip.width, config.llama.width)
        self.language_model = llama(config.llama)

    def forward(self, images, input_ids):
        """u8 [b v h w 3], i64 [b l] -> hidden states [b k a d]."""
        count = self.vla_config.action_tokens
        text = self.language_model.model.embed_tokens(input_ids).clone()
        text[:, -1 - count : -1] = 0
        patches = self.projector(self.vision_backbone(images.flatten(0, 1).float())).reshape(len(images), -1, text.shape[-1])
        x = torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)
        everything = torch.ones(len(x), 1, x.shape[1], x.shape[1], dtype=torch.bool)
        hidden = self.language_model.model(inputs_embeds=x, attention_mask=everything).last_hidden_state
        return hidden[:, -2 - count : -2].unflatten(1, (self.vla_config.chunk, -1))


def load(model, tensors):
    """Loads named arrays into a torch model; raises for a parameter that gets none. Returns the names that it has no use for."""
    state = {name: torch.tensor(np.asarray(array)) for name, array in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing, missing
    return set(unexpected)
