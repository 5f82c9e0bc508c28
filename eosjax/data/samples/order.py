"""The training order: endless, with random access to any position."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import grain
import numpy as np

from eosjax.data.samples.mixture import LabelledDataset
from eosjax.types import UserError


def interleave(position: int, shares: Sequence[int]) -> tuple[int, int]:
    """Which of several endless sequences provides the element at `position` of their mixture, and its position in that sequence.

    Every `sum(shares)` elements hold exactly `shares[d]` of sequence d, spread evenly. The first sequence takes its share of the
    positions; the remaining positions are the mixture of the other sequences, in order.
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
    """The endless order of samples in training. Every epoch of a dataset is a new permutation of its samples.

    A dataset's share of the samples is proportional to its weight times its number of samples, so datasets of equal weight
    finish their epochs together. (The original's meaning of weights; there the order is drawn at random.)
    """

    def __init__(self, datasets: Sequence[LabelledDataset], first_samples: np.ndarray, seed: int):
        """Orders samples that are numbered dataset by dataset.

        Args:
            datasets: D datasets.
            first_samples: i64 [D + 1]; dataset d has the samples `first_samples[d]` to `first_samples[d + 1]` (exclusive).
            seed: of the permutations.

        Raises:
            UserError: a dataset has no sample.
        """
        bounds = first_samples.tolist()
        self._sizes = np.diff(bounds).tolist()
        for dataset, size in zip(datasets, self._sizes, strict=True):
            if not size:
                raise UserError(f"{dataset.name}: no sample in the episodes to train on")
        self._permutations = [
            grain.MapDataset.range(first, last).shuffle(seed=(seed + number) % 2**32).repeat()
            for number, (first, last) in enumerate(itertools.pairwise(bounds))
        ]
        self._shares = _whole_shares([dataset.weight for dataset in datasets], self._sizes)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The sample at a position, and the epoch of its dataset."""
        dataset, place = interleave(position, self._shares)
        sample: Any = self._permutations[dataset][place]
        return sample, place // self._sizes[dataset]


def _whole_shares(weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Samples of each dataset in the shortest period with a whole number of each."""
    shares = [Fraction(weight).limit_denominator(10**6) * size for weight, size in zip(weights, sizes, strict=True)]
    unit = math.lcm(*(share.denominator for share in shares))
    whole = [int(share * unit) for share in shares]
    return [share // math.gcd(*whole) for share in whole]
