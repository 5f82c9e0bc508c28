"""The data of a run, opened and joined with their labels; and other labelled data, to evaluate a run on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eosjax.config import DEMO_DATASET, TrainConfig
from eosjax.data.frames.store import FrameStore, open_store
from eosjax.data.labels import Labels, import_labels, join_labels, task_labels
from eosjax.data.samples.mixture import LabelledDataset, Mixture, check_conventions, check_unscaled, stats_of
from eosjax.data.samples.source import SampleSource, split_mixture
from eosjax.data.samples.tokens import PromptTokenizer
from eosjax.data.sources import describe, own_labels
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import DatasetStats
from eosjax.data.targets import learnt_actions
from eosjax.demo.dataset import ensure_demo
from eosjax.runs.policy_source import PolicySource
from eosjax.runs.record import DatasetRecord, RunRecord, describe_differences, differences, fingerprint
from eosjax.types import UserError

# Fields of a description that say where things are in the files of a dataset, and nothing of what a policy sees or does.
_PLACES = ("image_keys", "state_keys", "action_key", "instruction_key", "skip_first")


class RunData(NamedTuple):
    """The data of a run, read and joined."""

    mixture: Mixture
    train: SampleSource
    val: SampleSource | None


def open_data(config: TrainConfig, policy: PolicySource) -> RunData:
    """Opens the datasets (the demo is generated and frame stores are built on first use) and joins them with their labels.

    Args:
      config: says which data, where they are, and where they are described.
      policy: that is to be trained on them.

    Raises:
      eosjax.data.specs.SpecError: a dataset that nobody has described.
      eosjax.data.episode.DatasetError: a dataset cannot be read.
      eosjax.data.labels.LabelError: the labels do not fit a dataset; lists the episodes.
      UserError: datasets that cannot be mixed, or have fewer cameras than `num_images_in_input`; actions that are far from -1 to 1 and
        not normalised.
    """
    specs = {member.name: describe(config.data_root_dir, member.name, config.dataset_specs) for member in config.mixture}
    model = policy.vla_config(config, specs[config.mixture[0].name])
    return _open(config, specs, policy.tokenizer, model.dino.image_size)


def _open(config: TrainConfig, specs: Mapping[str, DatasetSpec], tokenizer: PromptTokenizer, image_size: int) -> RunData:
    sources = zip(config.mixture, config.label_paths, strict=True)
    mixture = Mixture([_open_dataset(config, member.name, member.weight, specs[member.name], labels) for member, labels in sources])
    if "mixed_conventions" not in config.allowances:
        check_conventions(mixture.datasets)
    train, val = split_mixture(mixture, config.val_share if config.use_val_set else 0.0, config.seed)
    source = _source(config, mixture, train, tokenizer, image_size)
    return RunData(mixture, source, dataclasses.replace(source, episodes=val) if len(val) else None)


def reopen_data(config: TrainConfig, record: RunRecord, tokenizer: PromptTokenizer) -> RunData:
    """The data of a run as it was trained on, with the recorded descriptions and statistics.

    Args:
      config: that of the run, with the places where the data are now.
      record: of the run.
      tokenizer: of the run.

    Raises:
      UserError: the data are not those of the run; names every difference. Otherwise as `open_data`.
    """
    return _reopen(config, record, tokenizer, ("name", "frames", "labels", "held_out"))


def relabel_data(config: TrainConfig, record: RunRecord, tokenizer: PromptTokenizer) -> RunData:
    """The frames of a run, normalised as they were, with other labels.

    Episodes that the run held out stay held out; those that have no labels now are left out.

    Args:
      config: says which labels, and where the data are now.
      record: of the run.
      tokenizer: of the run.

    Raises:
      UserError: the frames are not those of the run, or no episode is held out, or none is left to train on. Otherwise as `open_data`.
    """
    data = _reopen(dataclasses.replace(config, use_val_set=False), record, tokenizer, ("name", "frames"))
    firsts = data.mixture.first_episodes
    held_out = np.concatenate([first + np.asarray(each.held_out, np.int64) for first, each in zip(firsts, record.datasets, strict=False)])
    kept = np.isin(data.train.episodes, held_out)
    if not kept.any():
        why = "none of those that the run held out has labels" if held_out.size else "the run held out none (--use_val_set False)"
        raise UserError(f"there are no episodes to measure on: {why}")
    if kept.all():
        raise UserError("there are no episodes to train on: only those that the run held out have labels")
    train, val = (dataclasses.replace(data.train, episodes=data.train.episodes[side]) for side in (~kept, kept))
    return RunData(data.mixture, train, val)


def _reopen(config: TrainConfig, record: RunRecord, tokenizer: PromptTokenizer, compared: tuple[str, ...]) -> RunData:
    """The data with the recorded descriptions and statistics; `compared`: fields of their records that must be as they were."""
    specs = {each.name: each.spec for each in record.datasets}
    data = _open(config, specs, tokenizer, record.model.dino.image_size)
    found = differences(*(_contents(each, compared) for each in (record.datasets, dataset_records(data))))
    if found:
        raise UserError(f"the data are not those that the run was trained on:\n{describe_differences(found)}")
    statistics = {each.name: each.statistics for each in record.datasets}
    mixture = Mixture([dataclasses.replace(each, stats=statistics[each.name]) for each in data.mixture.datasets])
    return RunData(mixture, *(split and dataclasses.replace(split, data=mixture) for split in data[1:]))  # pyright: ignore[reportArgumentType]


def open_other_data(config: TrainConfig, record: RunRecord, like: DatasetRecord, tokenizer: PromptTokenizer) -> SampleSource:
    """All labelled episodes of a dataset that the run was not trained on, normalised with the statistics of one that it was.

    Args:
      config: that of the run, with name, place, description and labels of the other dataset.
      record: of the run.
      like: the dataset of the run whose description must fit and whose statistics are taken.
      tokenizer: of the run.

    Raises:
      UserError: several datasets, data that the run was trained on, no labels, or a description that does not fit (names the fields).
        Otherwise as `open_data`.
    """
    if len(config.mixture) != 1:
        raise UserError(f"--dataset_name {config.dataset_name}: expected one dataset to evaluate on, got {len(config.mixture)}")
    name = config.mixture[0].name
    spec = describe(config.data_root_dir, name, config.dataset_specs)
    found = [each for each in differences(like.spec, spec) if each.what.partition(".")[0] not in _PLACES]
    if found:
        raise UserError(
            f"--dataset_name {name}: its description does not fit {like.name}, which the run was trained on:\n{describe_differences(found)}"
        )
    dataset = _open_dataset(config, name, 1.0, spec, config.label_paths[0], like.statistics)
    own = next((each.name for each in record.datasets if each.frames == dataset.store.fingerprint), None)
    if own is not None:
        raise UserError(
            f"--dataset_name {name}: these are the data of {own}, which the run was trained on; leave --dataset_name out to measure on them"
        )
    episodes = np.flatnonzero(dataset.labels.labelled)
    return _source(config, Mixture([dataset]), episodes, tokenizer, record.model.dino.image_size)


def _source(config: TrainConfig, mixture: Mixture, episodes: np.ndarray, tokenizer: PromptTokenizer, image_size: int) -> SampleSource:
    return SampleSource(
        data=mixture,
        tokenizer=tokenizer,
        episodes=episodes,
        image_size=image_size,
        num_images=config.num_images_in_input,
        use_proprio=config.use_proprio,
        image_aug=config.image_aug,
        rephrase=config.rephrase,
        seed=config.seed,
    )


def _open_dataset(
    config: TrainConfig, name: str, weight: float, spec: DatasetSpec, labels_path: Path | None, stats: DatasetStats | None = None
) -> LabelledDataset:
    data_root = config.data_root_dir
    if name == DEMO_DATASET:
        generated = ensure_demo(config.data_root_dir)
        data_root, labels_path = generated.data_root, labels_path or generated.labels
    store = open_store(data_root, name, spec, config.cache_dir)
    check_unscaled(name, learnt_actions(store, spec), spec, config.predicts_tokens)
    labels = read_labels(config, name, store, labels_path or own_labels(data_root, name), spec)
    return LabelledDataset(store, spec, labels, stats or stats_of(store, spec), weight)


def read_labels(config: TrainConfig, name: str, store: FrameStore, path: Path | None, spec: DatasetSpec) -> Labels:
    """The labels of a dataset that a run with this configuration is trained on; `path` is where they are; None where the tasks are all."""
    if not config.use_substep_eos:
        return task_labels(store, config.allowances)
    if path is None:
        raise UserError(f"--substep_labels_path is missing: the ends of the sub-steps of {name} come from it")
    return join_labels(import_labels(path, name, config.substep_labels_format, spec.kept_steps), store, config.allowances)


def dataset_records(data: RunData) -> tuple[DatasetRecord, ...]:
    """What the record of a run says of its datasets."""
    held_out = np.zeros(0, np.int64) if data.val is None else data.val.episodes
    starts = data.mixture.first_episodes
    return tuple(
        DatasetRecord(
            each.name,
            each.weight,
            each.spec,
            each.stats,
            each.store.fingerprint,
            label_fingerprint(each.labels),
            tuple((held_out[(held_out >= first) & (held_out < behind)] - first).tolist()),
        )
        for each, first, behind in zip(data.mixture.datasets, starts[:-1], starts[1:], strict=True)
    )


def label_fingerprint(labels: Labels) -> str:
    """SHA-256 of the instruction of every frame, of which frames are ends, and of which episodes are labelled."""
    texts = "\n".join(labels.instructions).encode()
    columns = (labels.instruction_ids.astype("<i4"), labels.ends.astype(np.uint8), labels.labelled.astype(np.uint8))
    return fingerprint(texts, *(column.tobytes() for column in columns))


def _contents(datasets: tuple[DatasetRecord, ...], names: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Some fields of the records of datasets."""
    return {"datasets": [{name: getattr(each, name) for name in names} for each in datasets]}


def share_of_ends(source: SampleSource) -> float:
    """Share of the steps of a split that are ends."""
    return float(np.mean(source.data.labels.ends[source.anchors]))


def episode_ends(source: SampleSource) -> list[np.ndarray]:
    """For each episode of a split bool [t]: whether a sub-step ends at each step."""
    ends, starts = source.data.labels.ends, source.data.episode_starts
    return [ends[starts[number] : starts[number + 1]] for number in source.episodes]
