"""Wall time of training, without what is not training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Lap(NamedTuple):
    """Updates between two log lines, and the time they took."""

    steps: int
    seconds: float
    waited: float  # seconds spent waiting for data


class Clock:
    """Wall time between log lines, without validation and saving."""

    def __init__(self) -> None:
        self.steps, self._waited, self._mark = 0, 0.0, time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves the time inside out."""
        before = time.perf_counter()
        yield
        self._mark += time.perf_counter() - before

    def lap(self) -> Lap:
        """The time since the lap before."""
        now = time.perf_counter()
        lap = Lap(self.steps, now - self._mark, self._waited)
        self.steps, self._waited, self._mark = 0, 0.0, now
        return lap
