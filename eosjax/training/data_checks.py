"""What is checked and said of the data before training: their ends, what was left out, what normalisation would magnify."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from eosjax.config import TrainConfig
from eosjax.data.labels.advice import advise_positives
from eosjax.data.labels.plausibility import Finding, check_dataset, refuse_impossible
from eosjax.data.samples.mixture import LabelledDataset
from eosjax.data.samples.source import SampleSource
from eosjax.data.sources import statistics_warnings
from eosjax.data.stats import describe
from eosjax.data.targets import learnt_actions
from eosjax.flag_values import ConfigError
from eosjax.names import is_blank
from eosjax.runs.data import RunData, share_of_ends


def describe_data(data: RunData, data_root: Path) -> list[str]:
    """Lines for the console: what is trained on, what was left out, dimensions that normalisation would blow up, statistics that differ.

    Args:
        data: of the run.
        data_root: folder of its datasets.
    """
    lines = []
    for split, kind in ((data.train, "training"), (data.val, "validation")):
        if split is not None:
            lines.append(f"{len(split)} {kind} samples of {len(split.episodes)} episodes of {data.mixture.name}")
    weighted = [(dataset, dataset.weight * size) for dataset, size in zip(data.mixture.datasets, _sizes(data.train), strict=True)]
    for dataset, size in weighted if len(weighted) > 1 else []:
        lines.append(f"{dataset.name}: {size / sum(size for _, size in weighted):.1%} of the samples (weight {dataset.weight:g})")
    for dataset in data.mixture.datasets:
        lines.extend(_left_out(dataset))
        lines.extend(unlikely_labels(dataset))
        lines.extend(_near_constant(dataset))
        found = statistics_warnings(data_root, dataset.name, dataset.spec, dataset.stats)
        lines.extend(f"warning: {dataset.name}: {line}" for line in found)
    return lines


def unlikely_labels(dataset: LabelledDataset) -> list[str]:
    """Lines for the console: what is unlikely in the labels of a dataset."""
    return [f"warning: {dataset.name}: {finding.what}" for finding in _findings(dataset) if not finding.impossible]


def _findings(dataset: LabelledDataset) -> list[Finding]:
    return check_dataset(dataset.labels, dataset.store, dataset.store.actions[:, -1], dataset.spec.control_hz)


def _left_out(dataset: LabelledDataset) -> list[str]:
    store = dataset.store
    empty = np.diff(store.episode_starts) == 0
    blank = np.array([is_blank(task) for task in store.tasks]) & ~empty
    reasons = {"no steps": empty, "no task instruction": blank, "no labels": ~(dataset.labels.labelled | empty | blank)}
    return [
        f"{dataset.name}: {int(np.sum(episodes))} of {store.num_episodes} episodes have {reason} and are left out"
        for reason, episodes in reasons.items()
        if episodes.any()
    ]


def _sizes(source: SampleSource) -> list[int]:
    return np.diff(source.first_samples).tolist()


def _near_constant(dataset: LabelledDataset) -> list[str]:
    actions = learnt_actions(dataset.store, dataset.spec)
    fields = (("action", actions, dataset.stats.action), ("proprio", dataset.store.proprio, dataset.stats.proprio))
    found = [(name, np.flatnonzero(describe(values, stats, dataset.spec.normalisation).near_constant)) for name, values, stats in fields]
    return [
        f"warning: {dataset.name}: {name} dimension(s) {', '.join(map(str, where))} hardly vary: normalisation magnifies what may be noise"
        for name, where in found
        if where.size
    ]


def check_ends(data: RunData) -> None:
    """Raises `ConfigError` if a split has no end of a sub-step or nothing else: there would be nothing to learn, or nothing to measure."""
    for name, split in (("training", data.train), ("validation", data.val)):
        share = 0.5 if split is None else share_of_ends(split)
        if share in (0, 1):
            what = "no end of a sub-step" if share == 0 else "nothing but ends of sub-steps"
            raise ConfigError(f"the {name} split ({len(split.episodes) if split else 0} episodes) has {what}; check the labels")


def check_plausible(dataset: LabelledDataset) -> None:
    """Raises `ImplausibleError` if the labels of a dataset cannot be those of a robot."""
    refuse_impossible(_findings(dataset), f"the labels of {dataset.name}")


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
