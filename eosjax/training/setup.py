"""From a configuration to what a run works with: the joined data, and the shape of the policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eosjax.config import DEMO_DATASET, DEMO_MODEL, ConfigError, MixtureMember, TrainConfig
from eosjax.data import demo, substeps, tokens
from eosjax.data.advice import advise_positives
from eosjax.data.frames import open_store
from eosjax.data.loader import SampleSource, split_mixture
from eosjax.data.mixture import LabelledDataset, Mixture, stored_stats
from eosjax.data.specs import DatasetSpec, spec_for
from eosjax.data.stats import describe
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.openvla import VLAConfig, demo_config, with_action_tokens


class RunData(NamedTuple):
    """The data of a run, read and joined."""

    mixture: Mixture
    train: SampleSource
    val: SampleSource | None


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
        pretrained = Pretrained.open(config.vla_path)
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


def open_data(config: TrainConfig, policy: PolicySource) -> RunData:
    """Opens the datasets (the demo is generated and frame stores are built on first use) and joins them with their labels.

    Raises:
      eosjax.data.specs.SpecError: a dataset that nobody has described.
      eosjax.data.rlds.DatasetError: a dataset cannot be read.
      eosjax.data.substeps.LabelError: the labels do not fit a dataset; lists the episodes.
      UserError: datasets that cannot be mixed, or have fewer cameras than `num_images_in_input`.
    """
    sources = zip(config.mixture, config.label_paths, strict=True)
    mixture = Mixture([_open_dataset(config, member, labels) for member, labels in sources])
    train, val = split_mixture(mixture, config.val_share if config.use_val_set else 0.0, config.seed)
    source = SampleSource(
        data=mixture,
        tokenizer=policy.tokenizer,
        episodes=train,
        image_size=policy.vla_config(config, mixture.spec).dino.image_size,
        num_images=config.num_images_in_input,
        use_proprio=config.use_proprio,
        image_aug=config.image_aug,
        seed=config.seed,
    )
    held_out = dataclasses.replace(source, episodes=val) if len(val) else None
    return RunData(mixture, source, held_out)


def _open_dataset(config: TrainConfig, member: MixtureMember, labels_path: Path | None) -> LabelledDataset:
    data_root = config.data_root_dir
    if member.name == DEMO_DATASET:
        generated = demo.ensure_demo(config.data_root_dir)
        data_root, labels_path = generated.data_root, labels_path or generated.labels
    spec = spec_for(member.name, config.dataset_specs)
    store = open_store(data_root, member.name, spec, config.cache_dir)
    if config.use_substep_eos and labels_path is not None:
        table = substeps.import_labels(labels_path, member.name, config.substep_labels_format)
        labels = substeps.join_labels(table, store, config.allow_unlabelled)
    else:
        labels = substeps.task_labels(store)
    return LabelledDataset(store, spec, labels, stored_stats(store, spec), member.weight)


def describe_data(data: RunData) -> list[str]:
    """Lines for the console: what is trained on, what was left out, and dimensions that normalisation would blow up."""
    lines = []
    for split, kind in ((data.train, "training"), (data.val, "validation")):
        if split is not None:
            lines.append(f"{len(split)} {kind} samples of {len(split.episodes)} episodes of {data.mixture.name}")
    weighted = [(dataset, dataset.weight * size) for dataset, size in zip(data.mixture.datasets, _sizes(data.train), strict=True)]
    for dataset, size in weighted if len(weighted) > 1 else []:
        lines.append(f"{dataset.name}: {size / sum(size for _, size in weighted):.1%} of the samples (weight {dataset.weight:g})")
    for dataset in data.mixture.datasets:
        if dropped := int(np.sum(~dataset.labels.labelled)):
            lines.append(f"{dataset.name}: {dropped} of {dataset.store.num_episodes} episodes have no labels and are left out")
        lines.extend(_near_constant(dataset))
    return lines


def _sizes(source: SampleSource) -> list[int]:
    return np.diff(source.first_samples).tolist()


def _near_constant(dataset: LabelledDataset) -> list[str]:
    fields = (("action", dataset.store.actions, dataset.stats.action), ("proprio", dataset.store.proprio, dataset.stats.proprio))
    found = [(name, np.flatnonzero(describe(values, stats, dataset.spec.normalisation).near_constant)) for name, values, stats in fields]
    return [
        f"warning: {dataset.name}: {name} dimension(s) {', '.join(map(str, where))} hardly vary: normalisation magnifies what may be noise"
        for name, where in found
        if where.size
    ]


def share_of_ends(source: SampleSource) -> float:
    """Share of the steps of a split that are ends."""
    return float(np.mean(source.data.labels.ends[source.anchors]))


def check_ends(data: RunData) -> None:
    """Raises `ConfigError` if a split has no end of a sub-step or nothing else: there would be nothing to learn, or nothing to measure."""
    for name, split in (("training", data.train), ("validation", data.val)):
        share = 0.5 if split is None else share_of_ends(split)
        if share in (0, 1):
            what = "no end of a sub-step" if share == 0 else "nothing but ends of sub-steps"
            raise ConfigError(f"the {name} split ({len(split.episodes) if split else 0} episodes) has {what}; check the labels")


def tune_counts(config: TrainConfig, share: float) -> tuple[TrainConfig, str]:
    """With `eos_tune auto`, the configuration with the counts of ends that suit their share in the data, and why in words.

    Args:
      config: the run.
      share: of ends in the training split, 0 to 1.

    Raises:
      ConfigError: the buffer is too small for the counts.
    """
    if config.eos_tune == "manual":
        return config, ""
    count, why = advise_positives(share)
    text = f"--eos_tune auto: {share:.2%} of the training steps are ends ({why}): eos_sample_positive = eos_min_positive = {count}"
    return dataclasses.replace(config, eos_sample_positive=count, eos_min_positive=count), text
