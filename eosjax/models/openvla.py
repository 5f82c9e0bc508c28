"""OpenVLA-OFT: two vision encoders, a projector and a bidirectional Llama that predicts a chunk of actions in one pass.

Kim, Finn, Liang 2025, "Fine-Tuning Vision-Language-Action Models", arXiv:2502.19645.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from eosjax.models import diffusion
from eosjax.models.action_tokens import NUM_BINS
from eosjax.models.attention import SIXTEEN_BITS
from eosjax.models.film import mean_words
from eosjax.models.llama import Llama, LlamaConfig
from eosjax.models.lora import LinearConfig, LoRADense
from eosjax.models.vit import ViT, ViTConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# GPUs multiply 16-bit matrices in blocks. XLA copies the operands of products, to add rows, where the tokens of a batch do not fill them.
TOKENS_AT_ONCE = 8
STOP_TOKENS = 1  # the text ends with the action tokens and one stop token


@dataclasses.dataclass(frozen=True)
class VLAConfig:
    """All settings that determine the module tree of an `OpenVLA` and its numerics."""

    dino: ViTConfig
    siglip: ViTConfig
    llama: LlamaConfig
    chunk: int = 8  # actions predicted at once (k)
    action_dim: int = 7  # numbers per action, and tokens per action (a)
    proprio_dim: int = 0  # 0: the policy sees no proprioception
    diffusion: bool = False  # the placeholders carry noisy actions, and a token gives the noise level
    diffusion_train_steps: int = 50  # noise levels in training
    diffusion_steps: int = 50  # of these, the levels visited when actions are generated
    action_vocab: int = 0  # actions are tokens: the last ids below this one; 0: they are not
    film: bool = False  # the text modulates both encoders
    freeze_vision: bool = False  # no low-rank branches in the encoders (and without LoRA, training leaves them alone)
    dtype: str = "float32"  # of the computation
    param_dtype: str = "float32"  # of the base weights
    remat: str = "none"  # what the backward pass computes again (`stacks.stack_layers`)
    unroll: bool = False  # every layer is compiled for itself, instead of a loop over equal ones
    attention: str = "auto"  # which program computes it (`attention.attend`)
    lora_rank: int = 0  # 0: no LoRA
    lora_scaling: float = 1.0  # factor of the low-rank branches, alpha / rank
    lora_dropout: float = 0.0

    def __post_init__(self):
        if self.dino.num_patches != self.siglip.num_patches or self.dino.image_size != self.siglip.image_size:
            raise ValueError(
                "VLAConfig: both encoders must see the same image and cut it into as many patches; got "
                f"dino {self.dino.image_size} px / {self.dino.num_patches} patches, "
                f"siglip {self.siglip.image_size} px / {self.siglip.num_patches} patches"
            )
        if self.chunk < 1 or self.action_dim < 1 or self.proprio_dim < 0:
            raise ValueError(
                "VLAConfig: expected chunk >= 1, action_dim >= 1, proprio_dim >= 0; got "
                f"{self.chunk}, {self.action_dim}, {self.proprio_dim}"
            )
        if self.diffusion and self.action_vocab:
            raise ValueError("VLAConfig: diffusion and action_vocab: expected one of them at most, actions are either denoised or tokens")
        if self.action_vocab and not (self.llama.lm_head and NUM_BINS < self.action_vocab <= self.llama.vocab_size):
            raise ValueError(
                f"VLAConfig: action_vocab: expected LlamaConfig.lm_head and more than {NUM_BINS} ids, at most the {self.llama.vocab_size} "
                f"of the embedding; got {self.action_vocab} ids and lm_head {self.llama.lm_head}"
            )

    @property
    def linear(self) -> LinearConfig:
        """The settings that all linear layers of the base model share."""
        return LinearConfig(self.dtype, self.param_dtype, self.lora_rank, self.lora_scaling, self.lora_dropout)

    @property
    def vision_linear(self) -> LinearConfig:
        """The settings of the linear layers of the encoders."""
        return dataclasses.replace(self.linear, lora_rank=0) if self.freeze_vision else self.linear

    @property
    def action_tokens(self) -> int:
        """Placeholders of one chunk in the text: one for each number of each action."""
        return self.chunk * self.action_dim

    @property
    def portable(self) -> VLAConfig:
        """The same policy on any machine: without what was chosen for the devices of one."""
        return dataclasses.replace(self, attention="auto", remat="none", unroll=False)

    @property
    def text_tail(self) -> int:
        """Tokens of the text after its padding: the empty token, the placeholders, the stop token."""
        return 1 + self.action_tokens + STOP_TOKENS


def with_action_tokens(config: VLAConfig, action_vocab: int) -> VLAConfig:
    """The configuration of a policy whose actions are tokens; `action_vocab`: ids of the text vocabulary, without added tokens."""
    return dataclasses.replace(config, llama=dataclasses.replace(config.llama, lm_head=True), action_vocab=action_vocab)


def demo_config(vocab_size: int, *, chunk: int = 8, action_dim: int = 7, proprio_dim: int = 8) -> VLAConfig:
    """A VLA of about 0.9 M parameters for 32-pixel images, for training without LoRA in float32 on a few CPU cores.

    Each view is one patch: from random weights, positions are learned sooner as a pattern within a large patch than by attention over small
    ones. Encoders: widths 64 and 48, two blocks, 4 heads; pixels are centred on the colour of the demo's table. Llama: width 96, 2 layers,
    4 heads, SwiGLU of 192. `vocab_size`: rows of the embedding, at least the tokenizer's size.
    """
    vit = ViTConfig(
        image_size=32, patch_size=32, width=64, depth=2, heads=4, mlp_dim=256,
        image_mean=(0.66, 0.6, 0.52), image_std=(0.15, 0.15, 0.15),
    )  # fmt: skip
    dino = dataclasses.replace(vit, class_token=True, register_tokens=4, layer_scale=1.0)
    siglip = dataclasses.replace(vit, width=48, mlp_dim=192)
    llama = LlamaConfig(vocab_size=vocab_size, width=96, depth=2, heads=4, kv_heads=4, mlp_dim=192)
    return VLAConfig(dino, siglip, llama, chunk=chunk, action_dim=action_dim, proprio_dim=proprio_dim)


class NoisyActions(NamedTuple):
    """Input that a diffusion policy denoises."""

    actions: jax.Array  # f32 [b k a], normalised actions with noise
    steps: jax.Array  # [b], diffusion steps: how much noise


class VisionBackbone(nn.Module):
    """Both encoders on each view; their features side by side."""

    config: VLAConfig

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True, words: jax.Array | None = None) -> jax.Array:
        """u8 [b v h w 3] -> [b v·patches dino+siglip], the patches of view 0 first; `words` [b d]: mean of the text, for FiLM."""
        b, v, *size = images.shape
        expected = (self.config.dino.image_size, self.config.dino.image_size, 3)
        if tuple(size) != expected or images.dtype != jnp.uint8:
            raise ValueError(f"images: expected uint8 [b v {expected}], got {images.dtype} {images.shape}")
        if (words is not None) != self.config.film:
            raise ValueError(f"words: VLAConfig.film is {self.config.film}; got {'none' if words is None else words.shape}")
        pixels = images.reshape(b * v, *size).astype(jnp.float32) / 255
        words = None if words is None else jnp.repeat(words, v, axis=0)

        def encode(vit: ViTConfig, name: str) -> jax.Array:
            normalised = (pixels - jnp.asarray(vit.image_mean)) / jnp.asarray(vit.image_std)
            encoder = ViT(vit, self.config.vision_linear, self.config.remat, self.config.attention, self.config.unroll, name=name)
            return encoder(normalised, deterministic, words)

        features = [encode(self.config.dino, "featurizer"), encode(self.config.siglip, "fused_featurizer")]
        return jnp.concatenate(features, axis=-1).reshape(b, v * self.config.dino.num_patches, -1)


class Projector(nn.Module):
    """Vision features to the width of the language model: three linear layers with exact GELUs between them."""

    config: VLAConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """[b n vision] -> [b n d]."""
        width, linear = self.config.llama.width, self.config.linear
        x = nn.gelu(LoRADense(4 * x.shape[-1], linear, name="fc1")(x, deterministic), approximate=False)
        x = nn.gelu(LoRADense(width, linear, name="fc2")(x, deterministic), approximate=False)
        return LoRADense(width, linear, name="fc3")(x, deterministic)


class TokenProjector(nn.Module):
    """Numbers to a token: proprioception, or one noisy number of an action. Trained in full: float32 weights without LoRA."""

    config: VLAConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f32 [... n] -> [... d]."""
        linear = LinearConfig(dtype=self.config.dtype)
        x = nn.gelu(LoRADense(self.config.llama.width, linear, name="fc1")(x), approximate=False)
        return LoRADense(self.config.llama.width, linear, name="fc2")(x)


class OpenVLA(nn.Module):
    """Images, instruction and proprioception to one hidden state for each number of each action of the chunk.

    The text is laid out statically: BOS, prompt, padding (masked), empty token, chunk · action_dim placeholders, stop
    token. The model sees [BOS, patches of view 0, of view 1, ..., proprio token, diffusion-step token, rest of the text]; the
    embeddings of the placeholders are zeroed, or those of the noisy actions; positions count unmasked tokens only; each token
    attends to all unmasked tokens, in both directions. The language model gets what follows the padding first, each token with its
    position: their order means nothing to it, and fused attention can leave out keys at the end of a row alone.

    Arguments of the methods: `images` u8 [b v h w 3] · `input_ids` i32 [b l] · `attn_mask` bool [b l] · `proprio` f32
    [b p] (ignored when `proprio_dim` is 0) · `noisy`: the `NoisyActions` of a diffusion policy, None for any other ·
    `deterministic=False` turns LoRA dropout on and needs a `dropout` rng. In the shapes, s = l + inserted tokens and d is the
    width of the language model.
    """

    config: VLAConfig

    def setup(self):
        """Declare the parts under the names of the checkpoint."""
        self.vision_backbone = VisionBackbone(self.config)
        self.projector = Projector(self.config)
        config = self.config
        self.language_model = Llama(config.llama, config.linear, config.remat, config.attention, config.unroll)
        if self.config.proprio_dim:
            self.proprio_projector = TokenProjector(self.config)
        if self.config.diffusion:
            self.noisy_action_projector = TokenProjector(self.config)

    def __call__(
        self, images, input_ids, attn_mask, proprio, noisy: NoisyActions | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Hidden states [b k a d]: after the final norm, at the position before each action token."""
        hidden = self.last_hidden(images, input_ids, attn_mask, proprio, noisy, deterministic=deterministic)
        return self._of_actions(hidden)

    def token_logits(self, images, input_ids, attn_mask, proprio, *, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """What `__call__` returns, and the token logits [b k·a+1 vocab_size] for the action tokens and the stop token.

        Needs `LlamaConfig.lm_head`.
        """
        hidden = self.last_hidden(images, input_ids, attn_mask, proprio, deterministic=deterministic)
        before = hidden[:, -STOP_TOKENS - self.config.action_tokens - 1 : -STOP_TOKENS]
        return self._of_actions(hidden), self.logits(before, deterministic=deterministic)

    def last_hidden(
        self, images, input_ids, attn_mask, proprio, noisy: NoisyActions | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Hidden states [b s d] of the whole sequence, after the final norm."""
        x, mask = self.embed(images, input_ids, attn_mask, proprio, noisy, deterministic=deterministic)
        return self._read(x, mask, deterministic)

    def embed(
        self, images, input_ids, attn_mask, proprio, noisy: NoisyActions | None = None, *, deterministic: bool = True
    ) -> tuple[Any, Any]:
        """The input of the language model: embeddings [b s d] and mask bool [b s]."""
        observed = self.observe(images, input_ids, attn_mask, proprio, deterministic=deterministic)
        return self._sequence(observed, input_ids, attn_mask, noisy)

    def observe(self, images, input_ids, attn_mask, proprio, *, deterministic: bool = True) -> jax.Array:
        """The tokens [b n d] of the observation: patches, proprio. They do not change while actions are denoised."""
        self._check_text(input_ids, attn_mask)
        words = self._words(input_ids, attn_mask) if self.config.film else None
        features = self.vision_features(images, words, deterministic=deterministic)
        tokens = [self.project(features, deterministic=deterministic)]
        if self.config.proprio_dim:
            tokens.append(self.embed_proprio(proprio)[:, None])
        return jnp.concatenate(tokens, axis=1)

    def act(self, observed, input_ids, attn_mask, noisy: NoisyActions | None = None, *, deterministic: bool = True) -> jax.Array:
        """Hidden states as of `__call__`, from what `observe` returned."""
        x, mask = self._sequence(observed, input_ids, attn_mask, noisy)
        return self._of_actions(self._read(x, mask, deterministic))

    def vision_features(self, images, words=None, *, deterministic: bool = True) -> jax.Array:
        """Features [b v·patches dino+siglip] of both encoders, side by side on the last axis; `words` [b d] with FiLM."""
        return self.vision_backbone(images, deterministic, words)

    def project(self, features, *, deterministic: bool = True) -> jax.Array:
        """Vision features [b n dino+siglip] -> patch embeddings [b n d]."""
        return self.projector(features, deterministic)

    def embed_proprio(self, proprio) -> jax.Array:
        """Proprioception f32 [b p] -> token embedding [b d]."""
        if proprio.shape[-1] != self.config.proprio_dim:
            raise ValueError(f"proprio: expected [b {self.config.proprio_dim}], got {proprio.shape}")
        return self.proprio_projector(proprio)

    def logits(self, hidden, *, deterministic: bool = True) -> jax.Array:
        """Token logits [... vocab] of hidden states [... d]; needs `LlamaConfig.lm_head`."""
        return self.language_model.logits(hidden, deterministic)

    def _sequence(self, observed: jax.Array, input_ids, attn_mask, noisy: NoisyActions | None) -> tuple[jax.Array, jax.Array]:
        text = self.language_model.embed(input_ids).at[:, self._placeholders(input_ids)].set(self._embed_actions(noisy))
        inserted = [observed]
        if noisy is not None:
            step = diffusion.embed_steps(noisy.steps, text.shape[-1]).astype(text.dtype)
            inserted.append(step[:, None])
        x = jnp.concatenate([text[:, :1], *inserted, text[:, 1:]], axis=1)
        seen = jnp.ones((len(x), x.shape[1] - text.shape[1]), bool)
        return x, jnp.concatenate([attn_mask[:, :1], seen, attn_mask[:, 1:]], axis=1)

    def _embed_actions(self, noisy: NoisyActions | None) -> jax.Array | int:
        """The embeddings of the placeholders: 0, or [b k·a d] from the noisy actions."""
        if not self.config.diffusion:
            if noisy is not None:
                raise ValueError("noisy: expected None, since VLAConfig.diffusion is False")
            return 0
        if noisy is None:
            if not self.is_initializing():
                raise ValueError("noisy: expected NoisyActions, since VLAConfig.diffusion is True; got None")
            self.noisy_action_projector(jnp.zeros((1, 1)))  # Flax allocates a part when it is first called
            return 0
        expected = (self.config.chunk, self.config.action_dim)
        if noisy.actions.shape[1:] != expected or noisy.steps.shape != noisy.actions.shape[:1]:
            raise ValueError(f"noisy: expected actions [b {expected}] and steps [b], got {noisy.actions.shape} and {noisy.steps.shape}")
        return self.noisy_action_projector(noisy.actions.reshape(len(noisy.actions), -1, 1))

    def _words(self, input_ids, attn_mask) -> jax.Array:
        """Mean [b d] of the embeddings of the text without placeholders and padding.

        The original also averages the padding, so there the result depends on the other prompts of the batch. Alone, a prompt has none.
        """
        spoken = jnp.asarray(attn_mask).at[:, self._placeholders(input_ids)].set(False)
        return mean_words(self.language_model.embed(input_ids), spoken)

    def _read(self, x: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        tail, count = self.config.text_tail, x.shape[1]
        more = -count % TOKENS_AT_ONCE if self.config.dtype in SIXTEEN_BITS else 0
        # The tail of the text comes first, so that all that nobody sees, padding, is last.
        x, positions = (jnp.pad(jnp.roll(each, tail, 1), [(0, 0), (0, more)] + [(0, 0)] * (each.ndim - 2)) for each in (x, positions))
        hidden = self.language_model(x, jnp.sum(mask, axis=1), positions, deterministic)
        return jnp.roll(hidden[:, :count], -tail, 1)

    def _of_actions(self, hidden: jax.Array) -> jax.Array:
        first = hidden.shape[1] - STOP_TOKENS - self.config.action_tokens - 1
        actions = hidden[:, first : first + self.config.action_tokens]
        return actions.reshape(len(hidden), self.config.chunk, self.config.action_dim, -1)

    def _placeholders(self, input_ids) -> slice:
        last = input_ids.shape[1] - STOP_TOKENS
        return slice(last - self.config.action_tokens, last)

    def _check_text(self, input_ids, attn_mask) -> None:
        shortest = 1 + self.config.text_tail  # BOS
        if input_ids.ndim != 2 or input_ids.shape[1] < shortest:
            raise ValueError(f"input_ids: expected [b l] with l >= {shortest}, got {input_ids.shape}")
        if attn_mask.shape != input_ids.shape or attn_mask.dtype != jnp.bool_:
            raise ValueError(f"attn_mask: expected bool {input_ids.shape}, got {attn_mask.dtype} {attn_mask.shape}")


def all_hidden_states(model: OpenVLA, variables: Mapping[str, Any], images, input_ids, attn_mask, proprio) -> jax.Array:
    """[depth+1 b s d]: the embeddings, the output of each layer but the last, the last after the final norm.

    The order of Hugging Face's `hidden_states`. Runs without dropout.
    """
    text = (images, input_ids, attn_mask, proprio)
    embeds: Any = model.apply(variables, *text, method="embed")[0]
    last, sown = model.apply(variables, *text, method="last_hidden", mutable=["intermediates"])
    outputs: Any = sown["intermediates"]["language_model"]["model"]["layers"]["output"][0]
    outputs = jnp.roll(outputs[:, :, : embeds.shape[1]], -model.config.text_tail, 2)
    return jnp.concatenate([embeds[None], outputs[:-1], jnp.asarray(last)[None]])
