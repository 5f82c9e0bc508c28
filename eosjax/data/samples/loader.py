"""Batches of training samples, with random access by batch number."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import grain
import numpy as np

from eosjax.data.samples.order import TrainingOrder
from eosjax.data.samples.source import SampleSource
from eosjax.types import Batch

_BATCHES_AHEAD = 1  # batches that are ready while each thread makes another


@dataclasses.dataclass(frozen=True)
class TrainLoader:
    """Endless batches in the `TrainingOrder` of the source.

    Each iteration begins at batch `start_batch` without reading earlier ones, and yields the batches of an uninterrupted
    run, bit for bit. Several processes take consecutive parts of each global batch, so that
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
        order = TrainingOrder(self.source.data.datasets, self.source.first_samples, self.seed)

        def batch(number: int) -> Batch:
            first = (number * self.process_count + self.process_index) * self.batch_size
            samples = np.array([order[position] for position in range(first, first + self.batch_size)])
            return self.source.batch(samples[:, 0], epoch=samples[:, 1])

        return _iterate(grain.MapDataset.range(self.start_batch, sys.maxsize).map(batch), self.threads)


@dataclasses.dataclass(frozen=True)
class EvalLoader:
    """All samples in order, in batches of one size; rows of key -1, nowhere valid, fill up the last ones.

    Several processes take consecutive parts of each global batch, and have as many batches each.
    """

    source: SampleSource
    batch_size: int  # of this process
    threads: int = 4
    process_index: int = 0
    process_count: int = 1

    def __len__(self) -> int:
        return -(-len(self.source) // (self.batch_size * self.process_count))

    def __iter__(self) -> Iterator[Batch]:
        return _iterate(grain.MapDataset.range(len(self)).map(self._batch), self.threads)

    def _batch(self, number: int) -> Batch:
        first = (number * self.process_count + self.process_index) * self.batch_size
        indices = np.arange(first, first + self.batch_size)
        return self.source.batch(np.where(indices < len(self.source), indices, -1))


def _iterate(batches: grain.MapDataset[Batch], threads: int) -> Iterator[Batch]:
    """The batches in order. Each thread makes a whole batch, so the training thread does not assemble batches."""
    return iter(batches.to_iter_dataset(grain.ReadOptions(threads, threads + _BATCHES_AHEAD)))
