"""Rules that any EOS head must beat: they look at a clock or at the gripper command, never at an image.

A rule reduces each step to a small whole number (steps since something happened) and scores it with the share of ends that the training
episodes had at that number.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

ALWAYS_OFF = "always off"
_LONGEST = 400  # steps; larger numbers share one bin
_PSEUDO_COUNT = 5.0  # steps of average share of ends that each bin starts with


def steps_since_substep(ends: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """Steps since the running sub-step began, i64 [N]: 0 at an episode's first step and at the step behind an end.

    Args:
      ends: bool [N].
      episode_starts: i64 [E + 1], first frame of each episode, and N.
    """
    begins = np.concatenate([[True], ends[:-1]])
    begins[episode_starts[:-1]] = True
    return _steps_since(begins, episode_starts)


def steps_since_gripper(gripper: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """Steps since the gripper command last changed, i64 [N]: 0 where it differs from the step before.

    Before the first change of an episode the number is the largest that the rules tell apart.

    Args:
      gripper: f32 [N], command; values on either side of the middle of its range are open and closed.
      episode_starts: i64 [E + 1], first frame of each episode, and N.
    """
    closed = gripper > (gripper.min() + gripper.max()) / 2
    changed = np.concatenate([[False], closed[1:] != closed[:-1]])
    changed[episode_starts[:-1]] = False
    return _steps_since(changed, episode_starts)


def _steps_since(marks: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """Steps since the last mark within the episode; `_LONGEST` before the first."""
    frames = np.arange(marks.size)
    last_mark = np.maximum.accumulate(np.where(marks, frames, -1))
    start = np.repeat(episode_starts[:-1], np.diff(episode_starts))
    return np.where(last_mark < start, _LONGEST, frames - last_mark)


def fitted_scores(numbers: np.ndarray, ends: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Scores every step with the share of ends that training steps with the same number had.

    Args:
      numbers: i64 [N], not negative.
      ends: bool [N].
      train: bool [N], the steps to fit on.

    Returns:
      f64 [N], shares between 0 and 1.
    """
    bins = np.minimum(numbers, _LONGEST)
    prior = ends[train].mean()
    hits = np.bincount(bins[train], weights=ends[train], minlength=_LONGEST + 1)
    total = np.bincount(bins[train], minlength=_LONGEST + 1)
    return ((hits + _PSEUDO_COUNT * prior) / (total + _PSEUDO_COUNT))[bins]


def rule_scores(ends: np.ndarray, gripper: np.ndarray, episode_starts: np.ndarray, train: np.ndarray) -> Mapping[str, np.ndarray]:
    """Scores of the three rules for every step, by name; arguments as in the functions above."""
    return {
        ALWAYS_OFF: np.zeros(ends.size),
        "time since the sub-step began": fitted_scores(steps_since_substep(ends, episode_starts), ends, train),
        "gripper just changed": fitted_scores(steps_since_gripper(gripper, episode_starts), ends, train),
    }
