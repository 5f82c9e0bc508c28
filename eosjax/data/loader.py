"""Batches of training samples from a frame store, in an order that any batch number can be found in at once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import grain
import numpy as np

from eosjax.data import images, tokens
from eosjax.data.frames import FrameStore
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import DatasetStats, normalise
from eosjax.data.substeps import Labels
from eosjax.types import Batch

_BATCHES_AHEAD = 4


def split_episodes(num_episodes: int, val_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train and validation episodes, i64 each, sorted and disjoint; together all episodes.

    A share above 0 gives each side at least one episode.

    Raises:
        ValueError: a share outside [0, 1), or a share above 0 of fewer than two episodes.
    """
    if not 0.0 <= val_share < 1.0:
        raise ValueError(f"val_share: expected 0 <= val_share < 1, got {val_share}")
    num_val = 0
    if val_share > 0.0:
        if num_episodes < 2:
            raise ValueError(f"val_share: {val_share} of {num_episodes} episode(s) cannot be set aside; expected at least 2 episodes")
        num_val = min(max(round(num_episodes * val_share), 1), num_episodes - 1)
    order = np.random.default_rng(seed).permutation(num_episodes)
    return np.sort(order[num_val:]), np.sort(order[:num_val])


@dataclasses.dataclass(frozen=True, eq=False)
class SampleSource:
    """The samples of some episodes of a store: one for every frame (anchor), also the last of an episode.

    Attributes:
        store, labels, stats, spec: the dataset, its labels, statistics and description.
        tokenizer: of the prompts.
        episodes: i64 [e]: the episodes of this split.
        image_size: height and width of the images in a batch.
        num_images: cameras in a batch, the first ones of the description.
        use_proprio: False leaves `Batch.proprio` empty.
        image_aug: random augmentation in training, and the centre crop in evaluation.
        rephrase: random wording of the prompt in training.
        seed: of augmentation and wording.
        prompt_length: l, ids in a row; None for the shortest that fits every prompt of the labels.
    """

    store: FrameStore
    labels: Labels
    stats: DatasetStats
    tokenizer: tokens.PromptTokenizer
    spec: DatasetSpec
    episodes: np.ndarray
    image_size: int
    num_images: int = 1
    use_proprio: bool = False
    image_aug: bool = False
    rephrase: bool = False
    seed: int = 0
    prompt_length: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_images <= len(self.spec.image_keys):
            raise ValueError(f"num_images_in_input: {self.store.name}: expected 1 to {len(self.spec.image_keys)}, got {self.num_images}")

    def __len__(self) -> int:
        return len(self.anchors)

    @functools.cached_property
    def anchors(self) -> np.ndarray:
        """i64 [n]: the frame of each sample, episode by episode."""
        return np.flatnonzero(np.isin(self._episode_of, self.episodes))

    @functools.cached_property
    def length(self) -> int:
        """l, ids in a row."""
        if self.prompt_length is not None:
            return self.prompt_length
        return self.tokenizer.required_length(self.labels.instructions, self._num_placeholders, self.rephrase)

    def batch(self, indices: np.ndarray, epoch: np.ndarray | None = None) -> Batch:
        """The samples `indices` i64 [b] of this split.

        With `epoch` i64 [b] (training) they are augmented and reworded as the source says, by a generator seeded with
        (seed, epoch, index); without (evaluation) nothing is random. An index of -1 gives a row that is nowhere valid.
        """
        anchors = self.anchors[indices]  # -1 takes the last one
        real = indices >= 0
        episode_last = self.store.episode_starts[self._episode_of[anchors] + 1] - 1
        frames = anchors[:, None] + np.arange(self.spec.chunk)
        valid = (frames <= episode_last[:, None]) & real[:, None]
        frames = np.minimum(frames, episode_last[:, None])
        epochs = [None] * len(indices) if epoch is None else epoch
        rngs = [self._rng(*sample) for sample in zip(epochs, indices, strict=True)]
        wordings = np.array([self._draw_wording(rng) for rng in rngs])
        input_ids, attn_mask = self._prompts
        prompts = self.labels.instruction_ids[anchors]
        return Batch(
            images=np.stack([self._images(frame, rng) for frame, rng in zip(anchors, rngs, strict=True)]),
            input_ids=input_ids[prompts, wordings],
            attn_mask=attn_mask[prompts, wordings],
            proprio=self._proprio[anchors],
            actions=self._actions[frames],
            eos=(self.labels.ends[frames] & valid).astype(np.float32),
            valid=valid,
            key=np.where(real, indices, -1).astype(np.int32),
        )

    @property
    def _num_placeholders(self) -> int:
        return self.spec.chunk * self.spec.action_size

    @functools.cached_property
    def _episode_of(self) -> np.ndarray:
        return np.repeat(np.arange(self.store.num_episodes), np.diff(self.store.episode_starts))

    @functools.cached_property
    def _actions(self) -> np.ndarray:
        return normalise(self.store.actions, self.stats.action)

    @functools.cached_property
    def _proprio(self) -> np.ndarray:
        if not self.use_proprio:
            return np.zeros((self.store.num_frames, 0), np.float32)
        return normalise(self.store.proprio, self.stats.proprio)

    @functools.cached_property
    def _prompts(self) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attn_mask [instructions, wordings, l]; wording 0 is the evaluation prompt."""
        texts = [text for instruction in self.labels.instructions for text in tokens.wordings(instruction, self.rephrase)]
        input_ids, attn_mask = self.tokenizer.encode(texts, self.length, self._num_placeholders)
        shape = (len(self.labels.instructions), -1, self.length)
        return input_ids.reshape(shape), attn_mask.reshape(shape)

    def _rng(self, epoch: int | None, index: int) -> np.random.Generator | None:
        return None if epoch is None else np.random.default_rng((self.seed, int(epoch), int(index)))

    def _draw_wording(self, rng: np.random.Generator | None) -> int:
        if rng is None or not self.rephrase:
            return 0
        return 1 + int(rng.integers(len(tokens.REPHRASINGS)))

    def _images(self, frame: int, rng: np.random.Generator | None) -> np.ndarray:
        """u8 [v h w 3] of a frame."""
        views = []
        for key, data in zip(self.spec.image_keys[: self.num_images], self.store.images(int(frame)), strict=False):
            try:
                image = images.resize(images.decode(data), self.image_size)
            except images.ImageError as error:
                episode, step = self.store.locate(frame)
                raise images.ImageError(f"{self.store.name}: episode {episode}, step {step}, {key}: {error}") from error
            if self.image_aug:
                image = images.centre_crop(image) if rng is None else images.augment(image, rng)
            views.append(image)
        return np.stack(views)


@dataclasses.dataclass(frozen=True)
class TrainLoader:
    """Batches without end: every epoch is a permutation of all samples, another one each time.

    Each iteration begins at batch `start_batch` without reading what comes before it, and gives from there on the
    batches of an uninterrupted run, bit for bit. Several processes take consecutive parts of each global batch, so that
    the sequence of global batches does not depend on their number.

    Attributes:
        source: the samples.
        batch_size: samples in a batch of this process.
        seed: of the order.
        start_batch: number of batches taken before.
        process_index, process_count: which part of the global batch is this process'.
        threads: that read, decode and augment samples.
    """

    source: SampleSource
    batch_size: int
    seed: int
    start_batch: int = 0
    process_index: int = 0
    process_count: int = 1
    threads: int = 4

    def __post_init__(self) -> None:
        if not len(self.source):
            raise ValueError(f"{self.source.store.name}: no sample in the {len(self.source.episodes)} episodes to train on")

    def __iter__(self) -> Iterator[Batch]:
        num_samples = len(self.source)
        dataset = (
            grain.MapDataset.range(num_samples)
            .shuffle(seed=self.seed)
            .repeat()
            .map_with_index(lambda position, index: np.array([index, position // num_samples]))
            .batch(self.batch_size * self.process_count)
            .map(self._local_batch)
        )
        iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(self.threads, _BATCHES_AHEAD)))
        iterator.set_state({"next_index": self.start_batch})
        return iterator

    def _local_batch(self, rows: np.ndarray) -> Batch:
        mine = rows[self.process_index * self.batch_size :][: self.batch_size]
        return self.source.batch(mine[:, 0], epoch=mine[:, 1])


@dataclasses.dataclass(frozen=True)
class EvalLoader:
    """All samples in order, in batches of one size; rows of key -1, nowhere valid, fill up the last one."""

    source: SampleSource
    batch_size: int
    threads: int = 4

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        dataset = grain.MapDataset.range(len(self)).map(self._batch)
        return iter(dataset.to_iter_dataset(grain.ReadOptions(self.threads, _BATCHES_AHEAD)))

    def _batch(self, number: int) -> Batch:
        indices = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        return self.source.batch(np.where(indices < len(self.source), indices, -1))
