"""What collecting needs of an environment: attempts of a scripted expert, those that succeed and those that go wrong on purpose."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from eosjax.data.rlds.write import Recorded
from eosjax.demo.dataset import LUCK
from eosjax.demo.expert import Style
from eosjax.demo.recordings import record, recorded
from eosjax.demo.render import SIZE
from eosjax.demo.table import Luck

DEMONSTRATION = "demonstration"
FAILURES = ("missed", "lost", "beside")  # a grasp of nothing, one that holds for a while, a thing that is put beside its place


class Source(Protocol):
    """Attempts in one environment. Processes get copies of it.

    Attributes:
      dataset: name of the dataset of its episodes.
      size: height and width of their pictures.
    """

    dataset: str
    size: int

    def make(self, seed: tuple[int, int], kind: str, rng: np.random.Generator, file_path: str) -> tuple[bool, Recorded]:
        """One attempt: whether it succeeded, and the episode.

        Args:
          seed: of the collection, and number of the attempt; they decide everything.
          kind: `DEMONSTRATION` or one of `FAILURES`.
          rng: of what the kind leaves open.
          file_path: names the episode.
        """
        ...


class DemoSource:
    """Attempts on the demo's table. See `Source`."""

    dataset = "demo_table"
    size = SIZE

    def make(self, seed: tuple[int, int], kind: str, rng: np.random.Generator, file_path: str) -> tuple[bool, Recorded]:
        """See `Source`."""
        luck, style = {
            DEMONSTRATION: lambda: (LUCK, Style()),
            "missed": lambda: (Luck(slip=1.0), Style(tries=int(rng.integers(1, 3)))),
            "lost": lambda: (Luck(slip=0.0, lose=1.0), Style()),
            "beside": lambda: (Luck(), Style(beside=True)),
        }[kind]()
        recording = record(seed, luck, style)
        return recording.success, recorded(recording, file_path)
