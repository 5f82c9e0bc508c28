"""Datasets joined with their labels, and several of them combined: one numbering of frames and episodes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from eosjax.data.frames.store import FrameStore
from eosjax.data.labels import Labels
from eosjax.data.specs import UNSCALED_LIMIT, DatasetSpec
from eosjax.data.stats import DatasetStats, compute_stats, normalise
from eosjax.data.targets import learnt_actions, to_differences
from eosjax.types import UserError

_SHARED_SIZES = ("chunk", "action_size", "proprio_size")


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledDataset:
    """A member of a mixture: frames, their description, labels and statistics, and its weight in the training order."""

    store: FrameStore
    spec: DatasetSpec
    labels: Labels
    stats: DatasetStats
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.store.name


class Mixture:
    """D datasets under one numbering of N frames and E episodes, dataset by dataset. Thread-safe and picklable.

    Actions and proprio are normalised by the statistics of their own dataset.

    Attributes:
        datasets: the datasets, in order.
        name: their names, joined by " + ".
        frame_starts: i64 [D + 1]; dataset d has the frames `frame_starts[d]` to `frame_starts[d + 1]` (exclusive).
        first_episodes: i64 [D + 1]; the same for episodes.
        episode_starts: i64 [E + 1]; the same for the frames of an episode.
        tasks: E task instructions.
        labels: of all frames and episodes; an instruction that several datasets have is listed once.
    """

    def __init__(self, datasets: Sequence[LabelledDataset]):
        """Joins the datasets.

        Raises:
            UserError: no dataset, or two whose chunk, action or proprio sizes differ.
        """
        if not datasets:
            raise UserError("--dataset_name: expected at least one dataset")
        _check_sizes(datasets)
        self.datasets = tuple(datasets)
        self.name = " + ".join(dataset.name for dataset in datasets)
        stores = [dataset.store for dataset in datasets]
        self.frame_starts = _starts([store.num_frames for store in stores])
        self.first_episodes = _starts([store.num_episodes for store in stores])
        self.episode_starts = _starts(np.concatenate([np.diff(store.episode_starts) for store in stores]))
        self.tasks = [task for store in stores for task in store.tasks]
        self.labels = merge_labels([dataset.labels for dataset in datasets])

    @property
    def spec(self) -> DatasetSpec:
        """The description of the first dataset; its chunk, action and proprio sizes are those of all."""
        return self.datasets[0].spec

    @property
    def num_cameras(self) -> int:
        """Cameras that every dataset has."""
        return min(len(dataset.spec.image_keys) for dataset in self.datasets)

    @property
    def num_frames(self) -> int:
        """N."""
        return int(self.frame_starts[-1])

    @property
    def num_episodes(self) -> int:
        """E."""
        return int(self.first_episodes[-1])

    @property
    def stats(self) -> dict[str, DatasetStats]:
        """The statistics of each dataset, by name."""
        return {dataset.name: dataset.stats for dataset in self.datasets}

    @functools.cached_property
    def gripper(self) -> np.ndarray:
        """f32 [N]: the gripper command, 1 = open."""
        return np.concatenate([dataset.store.actions[:, -1] for dataset in self.datasets])

    def action_chunks(self, anchors: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """The actions of the chunks at `anchors` i64 [b], those of the `frames` i64 [b k]: f32 [b k a], normalised."""
        chunks = self._actions[frames]
        for first, last, dataset in zip(self.frame_starts, self.frame_starts[1:], self.datasets, strict=False):
            rows = (anchors >= first) & (anchors < last)
            if dataset.spec.from_anchor and rows.any():
                targets, state = dataset.store.actions[frames[rows] - first], dataset.store.proprio[anchors[rows] - first]
                chunks[rows] = normalise(to_differences(targets, state[:, None]), dataset.stats.action, dataset.spec.normalisation)
        return chunks

    @functools.cached_property
    def _actions(self) -> np.ndarray:
        """f32 [N a], normalised; of use where they do not depend on the anchor."""
        return np.concatenate([normalise(d.store.actions, d.stats.action, d.spec.normalisation) for d in self.datasets])

    @functools.cached_property
    def proprio(self) -> np.ndarray:
        """f32 [N p], normalised."""
        return np.concatenate([normalise(d.store.proprio, d.stats.proprio, d.spec.normalisation) for d in self.datasets])

    @functools.cached_property
    def episode_of(self) -> np.ndarray:
        """i64 [N]: the episode of each frame."""
        return np.repeat(np.arange(self.num_episodes), np.diff(self.episode_starts))

    def images(self, frame: int) -> tuple[bytes, ...]:
        """The encoded images of a frame, in the order of its dataset's `image_keys`; `IndexError` for no frame."""
        dataset = self._dataset_of(frame)
        return self.datasets[dataset].store.images(frame - int(self.frame_starts[dataset]))

    def describe(self, frame: int, view: int | None = None) -> str:
        """Where a frame is, for messages: dataset, episode and step, and the camera if a view is given."""
        number = self._dataset_of(frame)
        dataset = self.datasets[number]
        episode, step = dataset.store.locate(frame - int(self.frame_starts[number]))
        camera = "" if view is None else f", {dataset.spec.image_keys[view]}"
        return f"{dataset.name}: episode {episode}, step {step}{camera}"

    def _dataset_of(self, frame: int) -> int:
        if not 0 <= frame < self.num_frames:
            raise IndexError(f"frame {frame} of {self.name}: expected 0 to {self.num_frames - 1}")
        return int(np.searchsorted(self.frame_starts, frame, side="right")) - 1


def stats_of(store: FrameStore, spec: DatasetSpec) -> DatasetStats:
    """Statistics of all episodes of a store, as in the original. Computed at each start (0.8 s for a million steps): nothing gets stale."""
    return compute_stats(learnt_actions(store, spec), store.proprio, store.num_episodes, spec.action_mask)


def check_conventions(datasets: Sequence[LabelledDataset]) -> None:
    """Raises a `UserError` if the actions of the datasets do not mean the same (see `DatasetSpec.conventions`)."""
    first = datasets[0]
    for other in datasets[1:]:
        for name, expected in first.spec.conventions.items():
            got = other.spec.conventions[name]
            if expected != got:
                raise UserError(
                    f"--dataset_name: {first.name} has {name} {expected} and {other.name} has {got}: one policy would learn both as one; "
                    "--allow mixed_conventions mixes them all the same"
                )


def check_unscaled(name: str, actions: np.ndarray, spec: DatasetSpec, predicts_tokens: bool) -> None:
    """Raises a `UserError` for a dimension of the actions that is not normalised and far from the range of those that are.

    In an L1 loss it would outweigh all others; as tokens, which stand for -1 to 1, its values would be cut off.

    Args:
        name: of the dataset.
        actions: f32 [N a], not normalised.
        spec: of the dataset.
        predicts_tokens: whether the actions are learnt as tokens.
    """
    limit = 1.0 if predicts_tokens else UNSCALED_LIMIT
    for dimension in np.flatnonzero(~np.array(spec.action_mask)):
        low, high = float(actions[:, dimension].min()), float(actions[:, dimension].max())
        if max(-low, high) > limit:
            raise UserError(
                f"{name}: action dimension {dimension} is not normalised and ranges from {low:g} to {high:g}: expected -1 to 1; set "
                "action_mask to normalise it, or the convention of the gripper, in --dataset_specs"
            )


def merge_labels(parts: Sequence[Labels]) -> Labels:
    """Labels of several datasets one after the other, the instructions sorted and each one once."""
    instructions = sorted({text for part in parts for text in part.instructions})
    number = {text: index for index, text in enumerate(instructions)}
    renumbered = [np.array([number[text] for text in part.instructions], np.int32)[part.instruction_ids] for part in parts]
    return Labels(
        instruction_ids=np.concatenate(renumbered),
        instructions=instructions,
        ends=np.concatenate([part.ends for part in parts]),
        labelled=np.concatenate([part.labelled for part in parts]),
    )


def _check_sizes(datasets: Sequence[LabelledDataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        for size in _SHARED_SIZES:
            expected, got = getattr(first.spec, size), getattr(other.spec, size)
            if expected != got:
                raise UserError(f"--dataset_name: {first.name} has {size} {expected} and {other.name} has {got}: they cannot be mixed")


def _starts(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
