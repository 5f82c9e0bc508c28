"""Which rows each update brings: numbers drawn on the host, the same for every method. A row is slot j of frame i: i * k + j."""

from __future__ import annotations

import dataclasses

import numpy as np

from eosjax.runs.hidden import HiddenCache
from eosjax.types import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """The episodes of a cache in three parts, i64 each.

    Attributes:
      train: that the policy was trained on.
      val: half of those held out: learning rates, thresholds and calibration are chosen there.
      test: the other half, where everything is measured.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, cache: HiddenCache, seed: int = 0) -> Split:
        """Splits the episodes that were held out at random.

        Raises:
          UserError: a part has no end of a sub-step.
        """
        held_out = cache.columns.held_out
        order = np.random.default_rng(seed).permutation(np.flatnonzero(held_out))
        split = cls(np.flatnonzero(~held_out), np.sort(order[: order.size // 2]), np.sort(order[order.size // 2 :]))
        for field in dataclasses.fields(split):
            episodes = getattr(split, field.name)
            if not cache.columns.ends[cache.columns.frames_of(episodes)].any():
                raise UserError(
                    f"--cache: expected ends of sub-steps in every part, got none in the {episodes.size} {field.name} episodes; train the "
                    "policy with a larger --val_share"
                )
        return split


def stream(frames: np.ndarray, chunk: int, updates: int, batch: int, seed: int) -> np.ndarray:
    """i32 [updates, batch * chunk]: whole chunks in the order of training, each epoch another permutation.

    Args:
      frames: i64 [n], of the training episodes.
      chunk: k.
      updates: batches.
      batch: chunks in each.
      seed: of the order.
    """
    rng = np.random.default_rng(seed)
    epochs = -(-updates * batch // frames.size)
    anchors = np.concatenate([rng.permutation(frames) for _ in range(epochs)])[: updates * batch].reshape(updates, batch, 1)
    return (anchors * chunk + np.arange(chunk)).reshape(updates, -1).astype(np.int32)


def balanced(labels: np.ndarray, valid: np.ndarray, updates: int, counts: tuple[int, int], seed: int) -> np.ndarray:
    """i32 [updates, positives + negatives]: rows drawn with replacement from all training rows of each class.

    Args:
      labels: bool [n], of all rows; False for those that are not of training.
      valid: bool [n], False for those that are not of training.
      updates: draws.
      counts: of positives and of negatives in each.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    rows = (np.flatnonzero(labels & valid), np.flatnonzero(~labels & valid))
    drawn = [rng.choice(each, (updates, count)) for each, count in zip(rows, counts, strict=True)]
    return np.concatenate(drawn, axis=1).astype(np.int32)


def tiles(episode_starts: np.ndarray, episodes: np.ndarray, chunk: int) -> np.ndarray:
    """i64: one row for each frame of some episodes, in order: of the chunks that tile an episode, as a policy without cuts plans.

    Args:
      episode_starts: i64 [E + 1].
      episodes: i64 [e].
      chunk: k.
    """
    rows = []
    for episode in episodes:
        steps = np.arange(int(episode_starts[episode + 1] - episode_starts[episode]))
        rows.append((episode_starts[episode] + steps - steps % chunk) * chunk + steps % chunk)
    return np.concatenate(rows)
