"""The samples of some episodes of a mixture, and which episodes those are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from eosjax.data.images import transforms
from eosjax.data.samples import tokens
from eosjax.data.samples.mixture import Mixture
from eosjax.types import Batch, UserError


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
            images=self._images(anchors, rngs),
            input_ids=input_ids[prompts, wordings],
            attn_mask=attn_mask[prompts, wordings],
            proprio=data.proprio[anchors][:, : None if self.use_proprio else 0],
            actions=data.action_chunks(anchors, frames),
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
        if epoch is None or not (self.image_aug or self.rephrase):
            return None
        return np.random.default_rng((self.seed, int(epoch), int(index)))

    def _draw_wording(self, rng: np.random.Generator | None) -> int:
        if rng is None or not self.rephrase:
            return 0
        return 1 + int(rng.integers(len(tokens.REPHRASINGS)))

    def _images(self, frames: np.ndarray, rngs: Sequence[np.random.Generator | None]) -> np.ndarray:
        """u8 [b v h w 3] of frames."""
        result = np.empty((len(frames), self.num_images, self.image_size, self.image_size, 3), np.uint8)
        for frame, rng, views in zip(frames.tolist(), rngs, result, strict=True):
            encoded = self.data.images(frame)
            for view in range(self.num_images):
                try:
                    views[view] = self._prepared(transforms.decode(encoded[view]), rng)
                except transforms.ImageError as error:
                    raise transforms.ImageError(f"{self.data.describe(frame, view)}: {error}") from error
        return result

    def _prepared(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        if not self.image_aug:
            return transforms.resize(image, self.image_size)
        return transforms.centre_crop(image, self.image_size) if rng is None else transforms.augment(image, self.image_size, rng)
