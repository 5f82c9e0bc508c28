"""Sweeps over thresholds: what fires at each of many thresholds, and the threshold that a rule prefers. `operating_points` uses them.

A *sweep* counts, in each episode and at each threshold, the firings and those of them that answer a true end: `deployed_sweep` plays the
deployed protocol, `dense_sweep` applies non-maximum suppression. `pick` applies a rule to a sweep:

    false_alarms:k   at most k false alarms an episode, then the fewest misses
    f1:c             the largest event F1 at a collar of c steps
    cost:r           the smallest sum of r * misses + false alarms
    early:s          at most the share s of the firings false alarms, then the fewest misses; a firing before its end is a false alarm

Of thresholds that are equally good by the rule it takes those with the fewest false alarms, and of these the middle one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from eosjax.ends.events import MAIN_COLLAR, NMS_WINDOW, ScoredEpisode, candidates, count_pairs, hits
from eosjax.ends.protocols import Rule
from eosjax.flag_values import OperatingRule

MOST_THRESHOLDS = 512  # of a sweep; where there are more scores, neighbouring thresholds differ by about 2 % in how many scores reach them


class Sweep(NamedTuple):
    """Counts of each of e episodes at n thresholds."""

    thresholds: np.ndarray  # f64 [n], descending
    hits: np.ndarray  # i64 [e, n], firings that answer a true end
    fired: np.ndarray  # i64 [e, n]
    true: np.ndarray  # i64 [e], true ends


class Window(NamedTuple):
    """Which firings answer a true end: those at most `collar` steps from the step that is `delay` steps after it."""

    collar: int
    delay: int = 0


class Pick(NamedTuple):
    """What a rule chose. Smaller is better, element by element."""

    loss: float  # of the rule
    false_alarms: int
    threshold: float


def window_of(rule: OperatingRule) -> Window:
    """Which firings answer an end by the rule.

    In the loop a firing that comes early takes the decisive step away, and one that comes late costs nothing but its steps.
    """
    if rule.kind == "early":
        return Window(MAIN_COLLAR // 2, MAIN_COLLAR // 2)
    return Window(int(rule.value) if rule.kind == "f1" else MAIN_COLLAR)


def pick(sweep: Sweep, rule: OperatingRule) -> Pick:
    """The best threshold of a sweep.

    Raises:
      ValueError: the rule chooses nothing (`fixed`).
    """
    found, fired, true = sweep.hits.sum(0), sweep.fired.sum(0), int(sweep.true.sum())
    alarms, misses = fired - found, true - found
    match rule.kind:
        case "false_alarms":  # the first threshold lies above all scores, and but for a time-out nothing fires there
            loss = np.where(alarms <= rule.value * sweep.true.size, misses, np.inf)
        case "early":
            loss = np.where(alarms <= rule.value * fired, misses, np.inf)
        case "f1":
            loss = 1 - 2 * found / np.maximum(fired + true, 1)
        case "cost":
            loss = rule.value * misses + alarms
        case _:
            raise ValueError(f"rule: expected false_alarms, f1, cost or early, got {rule}")
    best = np.flatnonzero(loss == loss.min())
    best = best[alarms[best] == alarms[best].min()]
    place = best[best.size // 2]
    return Pick(float(loss[place]), int(alarms[place]), float(sweep.thresholds[place]))


def thresholds_between(scores: np.ndarray, most: int = MOST_THRESHOLDS) -> np.ndarray:
    """Thresholds that tell scores apart, descending: one above all, those half-way between neighbours, and the lowest score itself.

    If there are more than `most`, then those at geometrically growing ranks: ends are rare, so that what matters lies near the top.

    Args:
      scores: f64 [n], probabilities, in any order; at least one.
      most: at least 2.
    """
    distinct = np.unique(scores)[::-1]
    higher, lower = distinct[:-1], distinct[1:]
    between = (higher + lower) / 2
    between = np.where(between > lower, between, higher)  # there is no number between the two
    above = max((1 + distinct[0]) / 2, np.nextafter(distinct[0], 2))
    every = np.concatenate([[above], between, distinct[-1:]])
    if every.size <= most:
        return every
    return every[np.unique(np.geomspace(1, every.size, most).round().astype(np.int64)) - 1]


def deployed_sweep(
    scores: Sequence[np.ndarray],
    ends: Sequence[np.ndarray],
    collar: int,
    options: Rule | None = None,
    thresholds: np.ndarray | None = None,
    delay: int = 0,
) -> Sweep:
    """The deployed protocol at many thresholds.

    Args:
      scores: for each episode f64 [t, k], probabilities of every anchor, as in `protocols.replay`.
      ends: for each episode bool [t], truth.
      collar, delay: which firings answer a true end, as in `Window`.
      options: all of it but the threshold. None for no options.
      thresholds: f64 [n], descending; None for those that `thresholds_between` finds.
    """
    options = options or Rule(0.0)
    if thresholds is None:
        within = [np.add.outer(np.arange(len(each)), np.arange(each.shape[1])) < len(each) for each in scores]
        thresholds = thresholds_between(np.concatenate([options.read(each)[valid] for each, valid in zip(scores, within, strict=True)]))
    fired = [replay_at(each, thresholds, options) for each in scores]
    found = [count_pairs(each, np.arange(true.size), np.flatnonzero(true) + delay, collar) for each, true in zip(fired, ends, strict=True)]
    return Sweep(thresholds, np.array(found), np.array([each.sum(1) for each in fired]), np.array([int(each.sum()) for each in ends]))


def dense_sweep(episodes: Sequence[ScoredEpisode], collar: int, window: int = NMS_WINDOW, delay: int = 0) -> Sweep:
    """The dense protocol at many thresholds.

    Args:
      episodes: with their probabilities.
      collar, delay: which firings answer a true end, as in `Window`.
      window: of the non-maximum suppression, in steps.
    """
    steps = [candidates(each.scores, window) for each in episodes]
    scores = [each.scores[chosen] for each, chosen in zip(episodes, steps, strict=True)]
    thresholds = thresholds_between(np.concatenate([*scores, np.zeros(1)]))  # the 0: there may be no candidate at all

    def count(values: np.ndarray) -> np.ndarray:
        return values.size - np.searchsorted(np.sort(values), thresholds, side="left")

    answering = [value[hits(chosen, value, each.true + delay, collar)] for each, chosen, value in zip(episodes, steps, scores, strict=True)]
    found, fired = (np.array([count(value) for value in values]) for values in (answering, scores))
    return Sweep(thresholds, found, fired, np.array([each.true.size for each in episodes]))


def replay_at(scores: np.ndarray, thresholds: np.ndarray, options: Rule) -> np.ndarray:
    """What `protocols.replay` fires at each of many thresholds.

    Args:
      scores: f64 [t, k], of every anchor of an episode.
      thresholds: f64 [n].
      options: all of it but the threshold.

    Returns:
      bool [n, t].
    """
    from eosjax.ends.loops import replays

    read = options.read(np.asarray(scores, np.float64))
    return replays(read, thresholds, options.debounce, options.min_steps, options.time_out or 0)


def option_grid(ends: Sequence[np.ndarray]) -> list[Rule]:
    """Decision options worth trying, the plainest first: debounce 1 to 3; with and without a least length, `cumulative`, and a time-out.

    Args:
      ends: for each training episode bool [t]. The 1 % and 99 % quantiles of the lengths of their sub-steps are the two bounds.
    """
    lengths = np.concatenate([np.diff(np.flatnonzero(each), prepend=-1) for each in ends])
    shortest, longest = np.percentile(lengths, (1, 99)).tolist()
    grid = itertools.product((None, math.ceil(longest)), (False, True), sorted({1, int(shortest)}), (1, 2, 3))
    return [Rule(0.0, debounce, min_steps, time_out, cumulative) for time_out, cumulative, min_steps, debounce in grid]


def tune(scores: Sequence[np.ndarray], ends: Sequence[np.ndarray], rule: OperatingRule, options: Iterable[Rule]) -> Rule:
    """The best of some decision options, each at its own best threshold; of equal ones the first.

    Args:
      scores, ends: as in `deployed_sweep`.
      rule: what is best.
      options: whose thresholds are not used; at least one.
    """
    collar, delay = window_of(rule)
    chosen = [(pick(deployed_sweep(scores, ends, collar, each, delay=delay), rule), each) for each in options]
    best, option = min(chosen, key=lambda pair: pair[0][:2])
    return dataclasses.replace(option, threshold=best.threshold)
