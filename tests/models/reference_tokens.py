"""Actions as tokens: 256 bins at the end of the vocabulary, as in OpenVLA's `ActionTokenizer`."""

from __future__ import annotations

import dataclasses

import numpy as np

NUM_BINS = 256
_EDGES = np.linspace(-1.0, 1.0, NUM_BINS)
_CENTRES = (_EDGES[:-1] + _EDGES[1:]) / 2.0  # one fewer than there are edges


@dataclasses.dataclass(frozen=True)
class ActionTokenizer:
    """Actions in [-1, 1] to the last ids of a vocabulary: the smallest value has the largest id.

    Attributes:
        vocab_size: of the text vocabulary without padding rows and added tokens (32,000 for Llama 2).
    """

    vocab_size: int = 32_000

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Ids i64 of the shape of `actions`, from vocab_size - 256 (1.0 alone) to vocab_size - 1; values beyond [-1, 1] are clipped.

        Raises:
            ValueError: NaN, which is in no bin.
        """
        actions = np.asarray(actions)
        if np.isnan(actions).any():
            raise ValueError(f"actions: expected numbers, got NaN at {np.argwhere(np.isnan(actions))[0].tolist()}")
        return self.vocab_size - np.digitize(np.clip(actions, -1.0, 1.0), _EDGES)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Centres of the bins of `ids`, f64 of their shape. The two smallest ids share a centre; ids outside the bins take the nearest."""
        return _CENTRES[np.clip(self.vocab_size - np.asarray(ids) - 1, 0, len(_CENTRES) - 1)]
