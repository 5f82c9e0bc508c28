"""From a configuration to what a run works with: the joined data, and the shape of the policy."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from eosjax.config import DEMO_MODEL, ConfigError, TrainConfig
from eosjax.data import demo, substeps, tokens
from eosjax.data.frames import FrameStore, open_store
from eosjax.data.loader import SampleSource, split_episodes
from eosjax.data.specs import DatasetSpec, spec_for
from eosjax.data.stats import DatasetStats, compute_stats
from eosjax.models.openvla import VLAConfig, demo_config


class RunData(NamedTuple):
    """The data of a run, read and joined."""

    spec: DatasetSpec
    store: FrameStore
    labels: substeps.Labels
    stats: DatasetStats
    tokenizer: tokens.PromptTokenizer
    train: SampleSource
    val: SampleSource | None


def check_model(config: TrainConfig) -> None:
    """Raises `ConfigError` for a policy that cannot be built."""
    if config.vla_path != DEMO_MODEL:
        raise ConfigError(f"--vla_path {config.vla_path}: pretrained weights cannot be loaded yet; use --vla_path {DEMO_MODEL}")


def open_data(config: TrainConfig) -> RunData:
    """Opens the dataset (the demo is generated and the frame store built on first use) and joins it with the labels.

    Raises:
      eosjax.data.rlds.DatasetError: the dataset cannot be read.
      eosjax.data.substeps.LabelError: the labels do not fit the dataset; lists the episodes.
    """
    spec = spec_for(config.dataset_name)
    labels_path = config.substep_labels_path
    data_root = config.data_root_dir
    if config.is_demo_data:
        generated = demo.ensure_demo(config.data_root_dir)
        data_root, labels_path = generated.data_root, labels_path or generated.labels
    store = open_store(data_root, config.dataset_name, config.cache_dir)
    if config.use_substep_eos and labels_path is not None:
        labels = substeps.join_labels(substeps.import_labels(labels_path, config.dataset_name), store)
    else:
        labels = substeps.task_labels(store)

    train, val = split_episodes(store.num_episodes, config.val_share if config.use_val_set else 0.0, config.seed)
    stats = compute_stats(store.actions, store.proprio, store.num_episodes, spec.action_mask)
    tokenizer = tokens.demo_tokenizer()
    source = SampleSource(
        store=store,
        labels=labels,
        stats=stats,
        tokenizer=tokenizer,
        spec=spec,
        episodes=train,
        image_size=vla_config(config, spec, tokenizer).dino.image_size,
        num_images=config.num_images_in_input,
        use_proprio=config.use_proprio,
        image_aug=config.image_aug,
        seed=config.seed,
    )
    held_out = dataclasses.replace(source, episodes=val) if len(val) else None
    return RunData(spec, store, labels, stats, tokenizer, source, held_out)


def vla_config(config: TrainConfig, spec: DatasetSpec, tokenizer: tokens.PromptTokenizer) -> VLAConfig:
    """The shape and dtypes of the policy that the flags and the dataset ask for."""
    shape = demo_config(
        tokenizer.vocab_size,
        chunk=spec.chunk,
        action_dim=spec.action_size,
        proprio_dim=spec.proprio_size if config.use_proprio else 0,
    )
    return dataclasses.replace(
        shape,
        dtype=config.compute_dtype,
        param_dtype=config.compute_dtype if config.use_lora else "float32",
        remat=config.remat,
        lora_rank=config.lora_rank if config.use_lora else 0,
        lora_dropout=config.lora_dropout,
    )


def share_of_ends(source: SampleSource) -> float:
    """Share of the steps of a split that are ends."""
    return float(np.mean(source.labels.ends[source.anchors]))


def check_ends(data: RunData) -> None:
    """Raises `ConfigError` if a split has no end of a sub-step: there would be nothing to learn, or nothing to measure."""
    for name, split in (("training", data.train), ("validation", data.val)):
        if split is not None and share_of_ends(split) == 0:
            raise ConfigError(f"the {name} split ({len(split.episodes)} episodes) has no end of a sub-step; check the labels")


def tune_counts(config: TrainConfig, share: float) -> tuple[TrainConfig, str]:
    """With `eos_tune auto`, the configuration with the counts of ends that suit their share in the data, and why in words.

    Less than 5 %: 10 ends drawn and needed; 5-10 %: the defaults; more than 10 %: 20. The advice is the original's.

    Args:
      config: the run.
      share: of ends in the training split, 0 to 1.

    Raises:
      ConfigError: the buffer is too small for the counts.
    """
    if config.eos_tune == "manual":
        return config, ""
    if share < 0.05:
        count, why = 10, "less than 5 %, so that the first update does not wait long"
    elif share <= 0.10:
        count, why = TrainConfig.eos_sample_positive, "5-10 %, the regime of the defaults"
    else:
        count, why = 20, "more than 10 %, so that each draw can hold as many ends as other steps"
    text = f"--eos_tune auto: {share:.2%} of the training steps are ends ({why}): eos_sample_positive = eos_min_positive = {count}"
    return dataclasses.replace(config, eos_sample_positive=count, eos_min_positive=count), text


def explain_share(config: TrainConfig, share: float, rows_per_step: int) -> str:
    """What the share of ends means for the buffer, in one line.

    Args:
      config: the run.
      share: of ends in the training split, above 0 and at most 1.
      rows_per_step: rows that an update adds to the buffer (batch over all devices x chunk).
    """
    ends = share * rows_per_step
    wait = max(config.eos_min_positive / ends, config.eos_min_negative / (rows_per_step - ends))
    return (
        f"{share:.2%} of the training steps are ends: about {ends:.1f} of the {rows_per_step} rows of a step; first EOS update after "
        f"about {np.ceil(wait):.0f} step(s); an end stays in the buffer for about {config.eos_buffer_capacity / ends:.0f} step(s)"
    )
