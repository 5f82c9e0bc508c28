"""Where the policy of a run comes from: a pretrained checkpoint, or the demo's random weights."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from eosjax.config import DEMO_MODEL, ConfigError, TrainConfig
from eosjax.data.samples import tokens
from eosjax.data.specs import DatasetSpec
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.openvla import VLAConfig, demo_config, with_action_tokens


class PolicySource(NamedTuple):
    """Where the policy comes from: a pretrained checkpoint, or random weights (`pretrained` None)."""

    pretrained: Pretrained | None
    tokenizer: tokens.PromptTokenizer

    @classmethod
    def open(cls, config: TrainConfig) -> PolicySource:
        """Finds the checkpoint (downloading it if it is on the hub) and reads its tokenizer, but no weights.

        Raises:
          eosjax.models.hf.weights.WeightsError: there is no such checkpoint, or it is damaged.
          UserError: its tokenizer cannot be used.
        """
        if config.vla_path == DEMO_MODEL:
            return cls(None, tokens.demo_tokenizer())
        pretrained = Pretrained.open(config.vla_path, config.vla_revision)
        return cls(pretrained, tokens.load_tokenizer(pretrained.tokenizer_file))

    def vla_config(self, config: TrainConfig, spec: DatasetSpec) -> VLAConfig:
        """The shape and dtypes of the policy that the flags and the dataset ask for."""
        wanted = {
            "chunk": spec.chunk,
            "action_dim": spec.action_size,
            "proprio_dim": spec.proprio_size if config.use_proprio else 0,
            "dtype": config.compute_dtype,
            "param_dtype": config.compute_dtype if config.use_lora else "float32",
            "remat": config.remat,
            "lora_rank": config.lora_rank if config.use_lora else 0,
            "lora_dropout": config.lora_dropout,
            "diffusion": config.use_diffusion,
            "diffusion_train_steps": config.num_diffusion_steps_train,
            "diffusion_steps": config.num_diffusion_steps_inference,
            "film": config.use_film,
            "freeze_vision": config.freeze_vision,
        }
        if self.pretrained is None:
            shape = dataclasses.replace(demo_config(self.tokenizer.vocab_size), **wanted)
        else:
            shape = self.pretrained.vla_config(config.encoder_heads, **wanted)
        if self.tokenizer.vocab_size > shape.llama.vocab_size:
            raise ConfigError(
                f"the tokenizer at {config.vla_path} has {self.tokenizer.vocab_size} tokens, but the model embeds {shape.llama.vocab_size}"
            )
        return with_action_tokens(shape, self.tokenizer.text_vocab_size) if config.predicts_tokens else shape
