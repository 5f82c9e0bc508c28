"""The data of a run, opened and joined with their labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eosjax.config import DEMO_DATASET, MixtureMember, TrainConfig
from eosjax.data.frames.store import open_store
from eosjax.data.labels import import_labels, join_labels, task_labels
from eosjax.data.samples.mixture import LabelledDataset, Mixture, stored_stats
from eosjax.data.samples.source import SampleSource, split_mixture
from eosjax.data.specs import spec_for
from eosjax.demo.dataset import ensure_demo
from eosjax.runs.policy_source import PolicySource


class RunData(NamedTuple):
    """The data of a run, read and joined."""

    mixture: Mixture
    train: SampleSource
    val: SampleSource | None


def open_data(config: TrainConfig, policy: PolicySource) -> RunData:
    """Opens the datasets (the demo is generated and frame stores are built on first use) and joins them with their labels.

    Raises:
      eosjax.data.specs.SpecError: a dataset that nobody has described.
      eosjax.data.rlds.episodes.DatasetError: a dataset cannot be read.
      eosjax.data.labels.LabelError: the labels do not fit a dataset; lists the episodes.
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
        rephrase=config.rephrase,
        seed=config.seed,
    )
    held_out = dataclasses.replace(source, episodes=val) if len(val) else None
    return RunData(mixture, source, held_out)


def _open_dataset(config: TrainConfig, member: MixtureMember, labels_path: Path | None) -> LabelledDataset:
    data_root = config.data_root_dir
    if member.name == DEMO_DATASET:
        generated = ensure_demo(config.data_root_dir)
        data_root, labels_path = generated.data_root, labels_path or generated.labels
    spec = spec_for(member.name, config.dataset_specs)
    store = open_store(data_root, member.name, spec, config.cache_dir)
    if config.use_substep_eos and labels_path is not None:
        table = import_labels(labels_path, member.name, config.substep_labels_format)
        labels = join_labels(table, store, config.allow_unlabelled)
    else:
        labels = task_labels(store)
    return LabelledDataset(store, spec, labels, stored_stats(store, spec), member.weight)


def share_of_ends(source: SampleSource) -> float:
    """Share of the steps of a split that are ends."""
    return float(np.mean(source.data.labels.ends[source.anchors]))


def episode_ends(source: SampleSource) -> list[np.ndarray]:
    """For each episode of a split bool [t]: whether a sub-step ends at each step."""
    ends, starts = source.data.labels.ends, source.data.episode_starts
    return [ends[starts[number] : starts[number + 1]] for number in source.episodes]
