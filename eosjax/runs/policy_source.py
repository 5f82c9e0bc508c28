"""Where the policy of a run comes from: a pretrained checkpoint, or the demo's random weights; and its tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from eosjax.config import DEMO_MODEL, TrainConfig
from eosjax.data.samples.tokens import PromptTokenizer, demo_tokenizer, load_tokenizer
from eosjax.data.specs import DatasetSpec
from eosjax.flag_values import ConfigError
from eosjax.models.hf.adapter_config import AdapterConfig
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.lora import openvla_scaling
from eosjax.models.openvla import VLAConfig, demo_config, with_action_tokens


class PolicySource(NamedTuple):
    """A pretrained checkpoint, or random weights (`pretrained` None), and the tokenizer of the prompts."""

    pretrained: Pretrained | None
    tokenizer: PromptTokenizer
    tokenizer_json: bytes  # the content of its tokenizer.json

    @classmethod
    def open(cls, config: TrainConfig) -> PolicySource:
        """Finds the checkpoint (downloading it if it is on the hub) and reads its tokenizer, but no weights.

        Raises:
          eosjax.models.hf.weights.WeightsError: there is no such checkpoint, or it is damaged.
          UserError: its tokenizer cannot be used.
        """
        if config.vla_path == DEMO_MODEL:
            tokenizer = demo_tokenizer()
            return cls(None, tokenizer, tokenizer.tokenizer.to_str(pretty=True).encode())
        pretrained = Pretrained.open(config.vla_path, config.vla_revision)
        tokenizer = load_tokenizer(pretrained.tokenizer_file)
        if config.predicts_tokens and tokenizer.text_vocab_size != pretrained.action_vocabulary:
            raise ConfigError(
                f"{pretrained.tokenizer_file}: expected as many ids of text as config.json gives actions as tokens, vocab_size less "
                f"pad_to_multiple_of = {pretrained.action_vocabulary}; got {tokenizer.text_vocab_size}"
            )
        return cls(pretrained, tokenizer, Path(pretrained.tokenizer_file).read_bytes())

    def vla_config(self, config: TrainConfig, spec: DatasetSpec) -> VLAConfig:
        """The shape and dtypes of the policy that the flags and the dataset ask for."""
        wanted = {
            "chunk": spec.chunk,
            "action_dim": spec.action_size,
            "proprio_dim": spec.proprio_size if config.use_proprio else 0,
            "dtype": config.compute_dtype,
            "param_dtype": config.compute_dtype if config.use_lora else "float32",
            "attention": config.attention,
            "unroll": config.layers == "unroll",
            "remat": "none" if config.remat == "auto" else config.remat,
            "lora_rank": config.lora_rank if config.use_lora else 0,
            "lora_scaling": _lora_scaling(config) if config.use_lora else 1.0,
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
                f"the tokenizer at {config.vla_path} has {self.tokenizer.vocab_size} ids, but the model embeds {shape.llama.vocab_size}"
            )
        if not config.predicts_tokens:
            return shape
        return with_action_tokens(shape, self.pretrained.action_vocabulary if self.pretrained else self.tokenizer.text_vocab_size)


def _lora_scaling(config: TrainConfig) -> float:
    """The scale of the low-rank branches: that of the adapter that the run starts from, or OpenVLA's."""
    if config.lora_adapter_path is None:
        return openvla_scaling(config.lora_rank)
    return AdapterConfig.read(config.lora_adapter_path).scaling
