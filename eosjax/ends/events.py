"""Ends of sub-steps as events: which steps may fire, and the one matcher of firings and true ends.

Pairs (`match`), counts of many sets of firings (`count_pairs`) and ranked hits (`hits`) come from one compiled loop (`eosjax.ends.loops`).

Times are whole control steps. A firing p may answer a true end g if |g - p| <= *collar*, and each answers at most one (the event-based
metrics of sound event detection: Mesaros, Heittola, Virtanen 2016, Applied Sciences 6(6)).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

COLLARS = (1, 2, 4, 8)  # control steps
NMS_WINDOW = 2  # control steps on either side; see `candidates`
MAIN_COLLAR = 2  # of what is shown where there is room for one


class Decisions(NamedTuple):
    """What fired in an episode, and what should have."""

    fired: np.ndarray  # i64 [n], steps
    true: np.ndarray  # i64 [m], steps
    steps: int  # of the episode


class ScoredEpisode(NamedTuple):
    """An episode with a probability for every step."""

    name: str
    scores: np.ndarray  # f64 [t], probability that a sub-step ends at this step
    ends: np.ndarray  # bool [t]

    @property
    def true(self) -> np.ndarray:
        """i64 [m]: steps of the true ends."""
        return np.flatnonzero(self.ends)

    def decisions(self, threshold: float, window: int) -> Decisions:
        """What fires in the dense protocol: the candidates of non-maximum suppression from `threshold` on."""
        steps = candidates(self.scores, window)
        return Decisions(steps[self.scores[steps] >= threshold], self.true, self.scores.size)


def match(fired: np.ndarray, true: np.ndarray, collar: int) -> np.ndarray:
    """The largest set of one-to-one pairs of firings and true ends within the collar, and of all largest sets one of least total delay.

    Pairs that cross can be uncrossed without losing a pair or adding delay, so that dynamic programming over both in time order finds this
    set. Of equally good sets it takes the one with earlier firings.

    Args:
      fired: i64 [n], steps, in any order.
      true: i64 [m], steps, in any order.
      collar: greatest distance of a pair, in steps.

    Returns:
      i64 [pairs, 2], in time order: the firing and its true end.
    """
    fired, true = np.sort(fired), np.sort(true)
    prefixes = np.tri(fired.size + 1, fired.size, -1, dtype=bool)
    best, _ = _best_worths(prefixes, fired, true, collar)  # of the first i firings and the first j true ends
    pairs = []
    row, column = fired.size, true.size
    while row and column:
        if best[row, column] == best[row - 1, column]:
            row -= 1
        elif best[row, column] == best[row, column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            pairs.append((fired[row], true[column]))
    return np.array(pairs[::-1], np.int64).reshape(-1, 2)


def count_pairs(sets: np.ndarray, steps: np.ndarray, true: np.ndarray, collar: int) -> np.ndarray:
    """How many pairs `match` finds, for each of many sets of firings.

    Args:
      sets: bool [s, n]: whether each set has a firing at each step.
      steps: i64 [n], ascending.
      true: i64 [m], ascending.
      collar: greatest distance of a pair, in steps.

    Returns:
      i64 [s].
    """
    best, worth = _best_worths(sets, steps, true, collar)
    return -(-best[:, -1] // worth)  # the delays add up to less than one pair


def hits(fired: np.ndarray, scores: np.ndarray, true: np.ndarray, collar: int) -> np.ndarray:
    """Which firings enlarge the matching when they are added by descending score.

    At any threshold that separates two scores, as many hits lie above it as `match` has pairs there: the sets of firings that can all be
    matched form a matroid. So one pass gives the counts of every threshold. (Object detection instead pairs each detection with the best
    free true event, which may waste one.)

    Args:
      fired: i64 [n], steps, ascending.
      scores: f64 [n].
      true: i64 [m], steps, ascending.
      collar: greatest distance of a pair, in steps.

    Returns:
      bool [n].
    """
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(fired.size, np.int64)
    rank[order] = np.arange(fired.size)
    counts = count_pairs(rank <= np.arange(fired.size)[:, None], fired, true, collar)  # of the best 1, 2, … n firings
    return np.diff(counts, prepend=0)[rank] > 0


def _best_worths(sets: np.ndarray, steps: np.ndarray, true: np.ndarray, collar: int) -> tuple[np.ndarray, int]:
    """`loops.best_worths`, and what one pair is worth there."""
    from eosjax.ends.loops import best_worths

    worth = min(steps.size, true.size) * collar + 1
    return best_worths(sets, steps.astype(np.int64), true.astype(np.int64), collar, worth), worth


def candidates(scores: np.ndarray, window: int) -> np.ndarray:
    """Steps that may fire, by non-maximum suppression: the highest score is one and rules out all steps within `window`, and so on.

    Of equal scores the earlier step goes first, as it would in a running system. A score of 0 says that there is no end, and is never a
    candidate. A threshold may be applied before or after: the result is the same.

    Args:
      scores: f64 [t], probability of an end at each step of an episode.
      window: steps on either side; 0 makes every step a candidate.

    Returns:
      i64 [n], ascending.
    """
    free = scores > 0
    chosen = []
    for step in np.argsort(-scores, kind="stable"):
        if free[step]:
            chosen.append(step)
            free[max(step - window, 0) : step + window + 1] = False
    return np.sort(np.array(chosen, np.int64))
