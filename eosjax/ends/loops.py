"""The compiled loops of this package. Importing this module loads numba, so the functions that call the loops import it themselves."""

from __future__ import annotations

import numpy as np

from eosjax.njit import compiled


@compiled
def best_worths(sets: np.ndarray, steps: np.ndarray, true: np.ndarray, collar: int, worth: int) -> np.ndarray:
    """The best matching of each of many sets of firings with the first j true ends, by dynamic programming over both in time order.

    A pair is worth `worth` minus its delay. Only ends within the collar of a firing change with it, so that a set costs
    O(steps + ends + pairs within the collar).

    Args:
      sets: bool [s, n]: whether each set has a firing at each step.
      steps: i64 [n], ascending.
      true: i64 [m], ascending.
      collar: greatest delay of a pair.
      worth: more than the delays of any matching add up to, so that the best matching has the most pairs, and then the least delay.

    Returns:
      i64 [s, m + 1]: total worth of the best matching, for j = 0 … m.
    """
    best = np.zeros((len(sets), true.size + 1), np.int64)
    for row in range(len(sets)):
        first = 0  # the first end within the collar of the current firing, or after it
        filled = 0  # best[row] is final up to here for the firings so far, and constant from here on
        for place in range(steps.size):
            if not sets[row, place]:
                continue
            step = steps[place]
            while first < true.size and true[first] < step - collar:
                first += 1
            while filled < first:
                best[row, filled + 1] = best[row, filled]
                filled += 1
            end = first
            before = best[row, end]  # without this firing, for the ends before `end`
            while end < true.size and true[end] <= step + collar:
                without = best[row, end + 1] if end < filled else before
                best[row, end + 1] = max(without, before + worth - abs(true[end] - step), best[row, end])
                before = without
                end += 1
            filled = end
        best[row, filled + 1 :] = best[row, filled]
    return best


@compiled
def replays(scores: np.ndarray, thresholds: np.ndarray, debounce: int, min_steps: int, time_out: int) -> np.ndarray:
    """What `protocols.replay` fires at each threshold: bool [n, t] from scores f64 [t, k], thresholds f64 [n]; `time_out` 0: never."""
    length, chunk = scores.shape
    fired = np.zeros((thresholds.size, length), np.bool_)
    for row, threshold in enumerate(thresholds):
        anchor = steps = crossings = 0
        for step in range(length):
            steps += 1
            crossings = crossings + 1 if scores[anchor, step - anchor] >= threshold else 0
            ended = (crossings >= debounce and steps >= min_steps) or steps == time_out  # never at 0
            fired[row, step] = ended
            if ended:
                steps = crossings = 0
            if ended or step - anchor == chunk - 1:
                anchor = step + 1
    return fired
