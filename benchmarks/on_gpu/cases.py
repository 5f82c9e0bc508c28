"""The updates to measure, and what is known of them before: without JAX, for the process that starts the others."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

PLANS = "plans.jsonl"


class Case(NamedTuple):
    """An update to measure."""

    attention: str  # "fused" (cudnn; where there is none, blockwise) or "xla"
    remat: str
    images: int
    batch: int  # 0: the largest that the plan fits

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.attention}, {self.remat}, {self.images} image(s), batch {self.batch or 'largest'}"


class Expected(NamedTuple):
    """What the plan says of a case; None where there is no plan."""

    model_flops: float | None = None  # of a sample, without what the backward pass recomputes
    hardware_flops: float | None = None  # with it
    peak: float | None = None  # bytes


class CasePlan(NamedTuple):
    """The plan of a case for all batches; on the line through two of them."""

    attention: str
    remat: str
    images: int
    few: tuple[int, int]  # samples, bytes at the peak
    many: tuple[int, int]
    model_flops: float  # of a sample
    hardware_flops: float

    def peak(self, batch: int) -> float:
        """Bytes."""
        (low, less), (high, more) = self.few, self.many
        return less + (batch - low) * (more - less) / (high - low)

    def largest_batch(self, limit: float) -> int:
        """The most samples whose peak is within `limit` bytes; 0 if not even one is."""
        (low, less), (high, more) = self.few, self.many
        return max(0, math.floor(low + (limit - less) * (high - low) / (more - less)))


def read_plan(folder: Path, case: Case) -> CasePlan | None:
    """The plan of a case, if it is there yet."""
    for line in (folder / PLANS).read_text(encoding="utf-8").splitlines():
        found = CasePlan(*json.loads(line))
        if (found.attention, found.remat, found.images) == case[:3]:
            return found
    return None


def all_cases(batches: tuple[int, ...]) -> list[Case]:
    """Every case, the most valuable first.

    Args:
      batches: samples of a forward pass; 0 for the largest that the plan fits.
    """
    first = [
        Case("fused", "dots", 2, 8),
        Case("fused", "full", 2, 8),
        Case("xla", "full", 2, 8),
        Case("fused", "full", 2, 0),
        Case("fused", "dots", 2, 0),
        Case("fused", "none", 2, 8),
        Case("fused", "full", 2, 16),
        Case("fused", "dots", 1, 8),
    ]
    rest = itertools.product((2, 1), ("fused", "xla"), ("dots", "full", "none"), batches)
    return list(dict.fromkeys([*first, *(Case(attention, remat, images, batch) for images, attention, remat, batch in rest)]))
