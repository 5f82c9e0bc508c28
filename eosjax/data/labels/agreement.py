"""Agreement of detected ends with true ends: one-to-one matches within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

COLLARS = (2, 4, 8)


class Match(NamedTuple):
    """A detected end and the true end that it matches, as indices into the two lists."""

    found: int
    true: int


def match_ends(found: Sequence[int], true: Sequence[int], collar: int) -> list[Match]:
    """The largest set of pairs of a detected and a true end at most `collar` steps apart. Each end is in at most one pair.

    Args:
        found, true: steps, rising.
        collar: tolerance in control steps.
    """
    pairs: list[Match] = []
    i = j = 0
    # Of two sorted lists, pairing the earliest that fit leaves the most for the others.
    while i < len(found) and j < len(true):
        if abs(found[i] - true[j]) <= collar:
            pairs.append(Match(i, j))
            i, j = i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    return pairs
