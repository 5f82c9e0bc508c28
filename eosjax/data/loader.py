"""Batches of training samples, in an order that any batch number can be found in at once."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import grain
import numpy as np

from eosjax.data import images, tokens
from eosjax.data.mixture import Mixture
from eosjax.types import Batch, UserError

_BATCHES_AHEAD = 4
_SAMPLES_AT_ONCE = 8  # that a thread makes for a training batch, at most


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


def split_mixture(mixture: Mixture, val_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train and validation episodes of a mixture, i64 each, sorted: each dataset's labelled episodes are split by themselves.

    Raises:
        UserError: a dataset has too few labelled episodes for its share to be set aside.
    """
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for first, dataset in zip(mixture.first_episodes, mixture.datasets, strict=False):
        labelled = np.flatnonzero(dataset.labels.labelled)
        try:
            parts = split_episodes(len(labelled), val_share, seed)
        except ValueError as error:
            raise UserError(f"{dataset.name}: {error}") from error
        for side, part in zip(sides, parts, strict=True):
            side.append(first + labelled[part])
    return np.concatenate(sides[0]), np.concatenate(sides[1])


@dataclasses.dataclass(frozen=True, eq=False)
class SampleSource:
    """The samples of some episodes of a mixture: one for every frame (anchor), also the last of an episode.

    Attributes:
        data: the datasets (or the one), joined with their labels.
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

    data: Mixture
    tokenizer: tokens.PromptTokenizer
    episodes: np.ndarray
    image_size: int
    num_images: int = 1
    use_proprio: bool = False
    image_aug: bool = False
    rephrase: bool = False
    seed: int = 0
    prompt_length: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_images <= self.data.num_cameras:
            raise UserError(f"--num_images_in_input: {self.data.name}: expected 1 to {self.data.num_cameras}, got {self.num_images}")

    def __len__(self) -> int:
        return len(self.anchors)

    @functools.cached_property
    def anchors(self) -> np.ndarray:
        """i64 [n]: the frame of each sample, episode by episode."""
        return np.flatnonzero(np.isin(self.data.episode_of, self.episodes))

    @functools.cached_property
    def first_samples(self) -> np.ndarray:
        """i64 [D + 1]: dataset d of the mixture has the samples `first_samples[d]` to `first_samples[d + 1]` (exclusive)."""
        return np.searchsorted(self.anchors, self.data.frame_starts)

    @functools.cached_property
    def length(self) -> int:
        """l, ids in a row."""
        if self.prompt_length is not None:
            return self.prompt_length
        return self.tokenizer.required_length(self.data.labels.instructions, self._num_placeholders, self.rephrase)

    def batch(self, indices: np.ndarray, epoch: np.ndarray | None = None) -> Batch:
        """The samples `indices` i64 [b] of this split.

        With `epoch` i64 [b] (training) they are augmented and reworded as the source says, by a generator seeded with
        (seed, epoch, index); without (evaluation) nothing is random. An index of -1 gives a row that is nowhere valid.
        """
        data = self.data
        anchors = self.anchors[indices]  # -1 takes the last one
        real = indices >= 0
        episode_last = data.episode_starts[data.episode_of[anchors] + 1] - 1
        frames = anchors[:, None] + np.arange(data.spec.chunk)
        valid = (frames <= episode_last[:, None]) & real[:, None]
        frames = np.minimum(frames, episode_last[:, None])
        epochs = [None] * len(indices) if epoch is None else epoch
        rngs = [self._rng(*sample) for sample in zip(epochs, indices, strict=True)]
        wordings = np.array([self._draw_wording(rng) for rng in rngs])
        input_ids, attn_mask = self._prompts
        prompts = data.labels.instruction_ids[anchors]
        return Batch(
            images=np.stack([self._images(frame, rng) for frame, rng in zip(anchors, rngs, strict=True)]),
            input_ids=input_ids[prompts, wordings],
            attn_mask=attn_mask[prompts, wordings],
            proprio=data.proprio[anchors][:, : None if self.use_proprio else 0],
            actions=data.actions[frames],
            eos=(data.labels.ends[frames] & valid).astype(np.float32),
            valid=valid,
            key=np.where(real, indices, -1).astype(np.int32),
        )

    @property
    def _num_placeholders(self) -> int:
        return self.data.spec.chunk * self.data.spec.action_size

    @functools.cached_property
    def _prompts(self) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attn_mask [instructions, wordings, l]; wording 0 is the evaluation prompt."""
        texts = [text for instruction in self.data.labels.instructions for text in tokens.wordings(instruction, self.rephrase)]
        input_ids, attn_mask = self.tokenizer.encode(texts, self.length, self._num_placeholders)
        shape = (len(self.data.labels.instructions), -1, self.length)
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
        for view, encoded in enumerate(self.data.images(int(frame))[: self.num_images]):
            try:
                image = images.decode(encoded)
            except images.ImageError as error:
                raise images.ImageError(f"{self.data.describe(int(frame), view)}: {error}") from error
            if not self.image_aug:
                views.append(images.resize(image, self.image_size))
            elif rng is None:
                views.append(images.centre_crop(image, self.image_size))
            else:
                views.append(images.augment(image, self.image_size, rng))
        return np.stack(views)


def interleave(position: int, shares: Sequence[int]) -> tuple[int, int]:
    """Which of several endless sequences gives the element at `position` of their mixture, and its place there.

    Every `sum(shares)` elements hold exactly `shares[d]` of sequence d, spread evenly: the first sequence takes its share of the
    positions, and what it leaves is one position after the other of the mixture of the rest.
    """
    rest = sum(shares)
    for number, share in enumerate(shares):
        taken = position * share // rest  # of this sequence, before `position`
        if (position + 1) * share // rest > taken:
            return number, taken
        position -= taken
        rest -= share
    raise ValueError(f"shares: expected whole numbers above 0, got {list(shares)}")


class TrainingOrder:
    """The endless order of a source's samples. Every epoch of a dataset is a permutation of its samples, another one each time.

    A dataset's share of the samples is proportional to its weight times its number of samples, so that datasets of equal weight
    come to the ends of their epochs together. (The original's meaning of weights; there the order is drawn at random.)
    """

    def __init__(self, source: SampleSource, seed: int):
        """Raises `UserError` if a dataset has no sample in the source."""
        bounds = source.first_samples.tolist()
        self._sizes = np.diff(bounds).tolist()
        for dataset, size in zip(source.data.datasets, self._sizes, strict=True):
            if not size:
                raise UserError(f"{dataset.name}: no sample in the episodes to train on")
        self._permutations = [
            grain.MapDataset.range(first, last).shuffle(seed=(seed + number) % 2**32).repeat()
            for number, (first, last) in enumerate(itertools.pairwise(bounds))
        ]
        self._shares = _whole_shares([dataset.weight for dataset in source.data.datasets], self._sizes)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The sample at a position, and the epoch of its dataset."""
        dataset, place = interleave(position, self._shares)
        sample: Any = self._permutations[dataset][place]
        return sample, place // self._sizes[dataset]


def _whole_shares(weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Samples of each dataset in the shortest stretch that has whole numbers of them."""
    shares = [Fraction(weight).limit_denominator(10**6) * size for weight, size in zip(weights, sizes, strict=True)]
    unit = math.lcm(*(share.denominator for share in shares))
    whole = [int(share * unit) for share in shares]
    return [share // math.gcd(*whole) for share in whole]


@dataclasses.dataclass(frozen=True)
class TrainLoader:
    """Batches without end, in the `TrainingOrder` of the source.

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

    def __iter__(self) -> Iterator[Batch]:
        order = TrainingOrder(self.source, self.seed)
        # A thread makes a part of a batch at a time: the first batch is there as soon as all of them have worked on it.
        size = math.gcd(self.batch_size, _SAMPLES_AT_ONCE)
        parts = self.batch_size // size

        def part(number: int) -> Batch:
            batch, within = divmod(number, parts)
            first = (batch * self.process_count + self.process_index) * self.batch_size + within * size
            samples = np.array([order[position] for position in range(first, first + size)])
            return self.source.batch(samples[:, 0], epoch=samples[:, 1])

        dataset = grain.MapDataset.range(self.start_batch * parts, sys.maxsize).map(part)
        ahead = grain.ReadOptions(self.threads, _BATCHES_AHEAD * parts)
        return iter(dataset.to_iter_dataset(ahead).batch(parts, batch_fn=_concatenate))


def _concatenate(parts: Sequence[Batch]) -> Batch:
    return Batch(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


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
