"""adapter_config.json of PEFT: which layers have a low-rank branch, of which rank and scale."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eosjax.fields import Field, check_fields, show, table
from eosjax.models.hf import files
from eosjax.models.hf.patterns import PatternError, check_pattern
from eosjax.models.hf.weights import WeightsError

ADAPTER_CONFIG = "adapter_config.json"
MERGE = "merge it into its base with PEFT (merge_and_unload) and give the merged checkpoint as --vla_path"
_OFF = (False, None)
_NONE = (None, [], {})
_MOST_PATTERNS = 1000  # more than a 7B policy has layers
_MOST_WAYS, _MOST_WAYS_OF_A_NAME = 2_000_000, 60  # to match one expression for all layers, and one of many (`check_pattern`)
_LARGEST_RANK = 1 << 16

# All fields of peft 0.21's LoraConfig.
ADAPTER_FIELDS = table(
    Field("peft_type", "refused", f"other kinds of adapters compute other layers; {MERGE}", accepts=("LORA",)),
    Field("r", "honoured", "rank, which must be --lora_rank"),
    Field("lora_alpha", "honoured", "the scale of the branches is lora_alpha / r"),
    Field("use_rslora", "honoured", "the scale of the branches is lora_alpha / sqrt(r)"),
    Field("rank_pattern", "honoured", "ranks by layer; smaller ones are padded with zeros, which stay zero in training"),
    Field("alpha_pattern", "honoured", "scales by layer; their ratio to the common scale is multiplied into B"),
    Field("target_modules", "honoured", "layers whose branch must be in the file; other layers stay without one"),
    Field("exclude_modules", "honoured", "layers without a branch"),
    Field(
        "init_lora_weights",
        "refused",
        f"this initialisation changes the base weights, so that the adapter fits no published base; {MERGE}",
        accepts=(True, False, None, "gaussian", "orthogonal", "eva", "mica"),
    ),
    Field("use_dora", "refused", f"DoRA computes another formula; {MERGE}", accepts=_OFF),
    Field("fan_in_fan_out", "refused", "the layers of the policy store their weights as [out in]", accepts=_OFF),
    Field("bias", "refused", f"the adapter changes biases of the base; {MERGE}", accepts=("none", None)),
    Field("modules_to_save", "refused", f"the adapter replaces layers of the base; {MERGE}", accepts=_NONE),
    Field("trainable_token_indices", "refused", f"the adapter changes rows of the embedding; {MERGE}", accepts=_NONE),
    Field("target_parameters", "refused", f"branches of parameters that are no linear layers; {MERGE}", accepts=_NONE),
    Field("layer_replication", "refused", "a model with repeated layers", accepts=_NONE),
    Field("layers_to_transform", "refused", f"another choice of layers than target_modules; {MERGE}", accepts=_NONE),
    Field("layers_pattern", "refused", f"another choice of layers than target_modules; {MERGE}", accepts=(None, [], "")),
    Field("lora_bias", "refused", f"branches with a bias; {MERGE}", accepts=_OFF),
    Field("use_qalora", "refused", "branches of quantised layers", accepts=_OFF),
    Field("velora_config", "refused", "another backward pass", accepts=_NONE),
    Field("alora_invocation_tokens", "refused", "branches that are off before certain tokens", accepts=_NONE),
    Field("monteclora_config", "refused", "branches that are sampled", accepts=_NONE),
    Field("use_bdlora", "refused", f"block-diagonal branches; {MERGE}", accepts=(False, None)),
    Field("arrow_config", "refused", "a router between adapters", accepts=_NONE),
    Field("kasa_config", "refused", f"a diagonal between A and B, and a base that was changed; {MERGE}", accepts=_NONE),
    Field("ensure_weight_tying", "refused", "branches that are shared by embedding and output", accepts=_OFF),
    Field("megatron_config", "refused", "layers of another library", accepts=_NONE),
    Field("megatron_core", "harmless", "read with megatron_config only"),
    Field("qalora_group_size", "harmless", "read with use_qalora only"),
    Field("loftq_config", "harmless", "read with the initialisation loftq only"),
    Field("eva_config", "harmless", "read when an adapter is made"),
    Field("corda_config", "harmless", "read with the initialisation corda only"),
    Field("lora_ga_config", "harmless", "read with the initialisation lora_ga only"),
    Field("lora_dropout", "harmless", "training uses --lora_dropout"),
    Field("base_model_name_or_path", "harmless", "the base comes from --vla_path; the console shows both"),
    Field("revision", "harmless", "the base comes from --vla_revision"),
    Field("auto_mapping", "harmless", "names a Python class; nothing of it is run"),
    Field("inference_mode", "harmless", "whether PEFT trains the adapter"),
    Field("peft_version", "harmless", "what wrote the file"),
    Field("runtime_config", "harmless", "where PEFT computes"),
    Field("task_type", "harmless", "a class of PEFT"),
)


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says of the branches."""

    rank: int
    alpha: float
    rank_stabilised: bool  # scale alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)
    ranks: Mapping[re.Pattern[str], int]  # of layers that have another rank
    alphas: Mapping[re.Pattern[str], float]
    targets: re.Pattern[str] | frozenset[str]  # all of the name, or its end
    excluded: re.Pattern[str] | frozenset[str]
    base: str  # what the file calls its base, for messages

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """That of an adapter's folder; raises `WeightsError` as `from_json`, or when there is no such file."""
        return cls.from_json(files.read_json(folder, ADAPTER_CONFIG), folder / ADAPTER_CONFIG)

    @classmethod
    def from_json(cls, content: object, source: object = ADAPTER_CONFIG) -> AdapterConfig:
        """From the content of the file; `source`: its path, for messages.

        Raises:
            WeightsError: a field that is refused (`ADAPTER_FIELDS`), unknown, missing or of a wrong type.
        """
        fields = _Reader(check_fields(content, ADAPTER_FIELDS, source, WeightsError), source)
        if "peft_type" not in fields.content:
            raise WeightsError(f"{source}: peft_type: expected 'LORA', got no such field; is it the file of a PEFT adapter?")
        return cls(
            rank=fields.rank("r", fields.content.get("r")),
            alpha=fields.alpha("lora_alpha", fields.content.get("lora_alpha")),
            rank_stabilised=fields.flag("use_rslora"),
            ranks=fields.by_layer("rank_pattern", fields.rank),
            alphas=fields.by_layer("alpha_pattern", fields.alpha),
            targets=fields.layers("target_modules"),
            excluded=fields.layers("exclude_modules"),
            base=show(fields.content.get("base_model_name_or_path")),
        )

    @property
    def scaling(self) -> float:
        """The factor of the branches, as PEFT computes it, of layers that no pattern names."""
        return self._scaling(self.rank, self.alpha)

    def of_module(self, name: str) -> tuple[int, float]:
        """Rank and scale of the branch of a layer; `name`: its place in the base model, such as `projector.fc1`."""
        rank = next((rank for pattern, rank in self.ranks.items() if pattern.match(name)), self.rank)
        alpha = next((alpha for pattern, alpha in self.alphas.items() if pattern.match(name)), self.alpha)
        return rank, self._scaling(rank, alpha)

    def has(self, name: str) -> bool:
        """Whether PEFT gave the layer a branch."""
        return _chosen(name, self.targets) and not _chosen(name, self.excluded)

    def _scaling(self, rank: int, alpha: float) -> float:
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank


def _chosen(name: str, layers: re.Pattern[str] | frozenset[str]) -> bool:
    if isinstance(layers, re.Pattern):
        return layers.fullmatch(name) is not None
    parts = name.split(".")
    return any(".".join(parts[i:]) in layers for i in range(len(parts)))


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Fields of adapter_config.json as values of the right type; the errors name file and field."""

    content: Mapping[str, Any]
    source: object

    def rank(self, field: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST_RANK:
            raise self._error(field, f"a whole number from 1 to {_LARGEST_RANK}", value)
        return value

    def alpha(self, field: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-6 <= abs(value) <= 1e6:
            raise self._error(field, "a number from 1e-6 to 1e6, or minus one", value)
        return float(value)

    def flag(self, field: str) -> bool:
        value = self.content.get(field) or False
        if not isinstance(value, bool):
            raise self._error(field, "true or false", value)
        return value

    def by_layer(self, field: str, read: Any) -> dict[re.Pattern[str], Any]:
        value = self.content.get(field) or {}
        if not isinstance(value, dict) or len(value) > _MOST_PATTERNS:
            raise self._error(field, f"an object of at most {_MOST_PATTERNS} names of layers", value)
        # PEFT takes the first pattern that is the end of the name.
        return {
            self._pattern(field, rf"(.*\.)?({name})$", name, _MOST_WAYS_OF_A_NAME): read(f"{field}.{name}", number)
            for name, number in value.items()
        }

    def layers(self, field: str) -> re.Pattern[str] | frozenset[str]:
        value = self.content.get(field) or []
        if isinstance(value, str) and value.lower() != "all-linear":  # PEFT writes the names that this stands for
            return self._pattern(field, value, value, _MOST_WAYS)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._error(field, "a regular expression or a list of names", value)
        return frozenset(value)

    def _pattern(self, field: str, pattern: str, text: str, most_ways: int) -> re.Pattern[str]:
        try:
            check_pattern(text, most_ways)
        except PatternError as error:
            raise WeightsError(f"{self.source}: {field}: {error}; got {show(text)}") from error
        return re.compile(pattern)

    def _error(self, field: str, expected: str, got: object) -> WeightsError:
        return WeightsError(f"{self.source}: {field}: expected {expected}, got {show(got)}")
