"""Ends of sub-steps as events: what fires, and which firing answers which true end.

Times are whole control steps. A firing p may answer a true end g if |g - p| <= *collar*, and each answers at most one (the event-based
metrics of sound event detection: Mesaros, Heittola, Virtanen 2016, Applied Sciences 6(6)).
"""

from __future__ import annotations

import numpy as np

COLLARS = (1, 2, 4, 8)  # control steps
MAIN_COLLAR = 2  # of what is shown where there is room for one


def match(fired: np.ndarray, true: np.ndarray, collar: int) -> np.ndarray:
    """As many one-to-one pairs of firings and true ends as the collar allows, and of all such sets one of least total delay.

    Pairs that cross can be uncrossed without losing one or adding delay, so that a dynamic programme over both in order of time finds
    it, in O(n m). Of equally good ones it takes the earlier firing.

    Args:
      fired: i64 [n], steps, in any order.
      true: i64 [m], steps, in any order.
      collar: greatest distance of a pair, in steps.

    Returns:
      i64 [pairs, 2], in order of time: the firing and its true end.
    """
    fired, true = np.sort(fired), np.sort(true)
    worth = min(fired.size, true.size) * collar + 1  # one pair more outweighs all delays
    best = np.zeros((fired.size + 1, true.size + 1), np.int64)  # of the first i firings and the first j true ends
    for row, step in enumerate(fired):
        delay = np.abs(true - step)
        paired = best[row, :-1] + np.where(delay <= collar, worth - delay, 0)
        best[row + 1, 1:] = np.maximum.accumulate(np.maximum(best[row, 1:], paired))
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


def hits(fired: np.ndarray, scores: np.ndarray, true: np.ndarray, collar: int) -> np.ndarray:
    """Which firings enlarge the maximum matching when they come in by descending score.

    At any threshold that separates two scores, the hits above it number as many as `match` has pairs there: the sets of firings that
    can all be matched form a matroid. So one pass gives the counts of every threshold. (Object detection pairs each with the best true
    event that is still free instead, which may waste one.)

    Args:
      fired: i64 [n], steps.
      scores: f64 [n].
      true: i64 [m], steps, ascending.
      collar: greatest distance of a pair, in steps.

    Returns:
      bool [n].
    """
    first = np.searchsorted(true, fired - collar, side="left").tolist()
    behind = np.searchsorted(true, fired + collar, side="right").tolist()
    owner: dict[int, int] = {}  # true end -> its firing
    held: dict[int, int] = {}  # firing -> its true end

    def augment(start: int) -> bool:
        """Finds room for one more firing, moving others if need be (an augmenting path, breadth first)."""
        reached: dict[int, int] = {}  # true end -> firing that could take it
        queue = [start]
        for firing in queue:
            for end in range(first[firing], behind[firing]):
                if end in reached:
                    continue
                reached[end] = firing
                if end in owner:
                    queue.append(owner[end])
                    continue
                free: int | None = end
                while free is not None:  # back along the path: each takes the end it reached and frees the one it held
                    taker = reached[free]
                    owner[free] = taker
                    free, held[taker] = held.get(taker), free
                return True
        return False

    found = np.zeros(fired.size, bool)
    for firing in np.argsort(-scores, kind="stable").tolist():
        found[firing] = augment(firing)
    return found
