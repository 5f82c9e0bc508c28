"""Scores that any EOS head must beat: from a clock, the gripper command or the state of the robot, never from an image.

Everything is fitted on training episodes. What a score at a step knows of its episode is what a running system knows there: the ends
before that step, the sub-step that it is told to do, and its own state and commands up to now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from eosjax.ends.events import ScoredEpisode

ALWAYS_OFF = "always off"
TIME = "time since the sub-step began"
GRIPPER = "gripper just changed"
CLOCK_TREES = "boosted trees: gripper lag, time, sub-step"
STATE_TREES = "boosted trees: robot state, sub-step"
ORACLE = "oracle"
CHANCE = "chance (random scores)"
_LONGEST = 400  # steps; more are not told apart
_PSEUDO_COUNT = 5.0  # steps of average share of ends that each bin starts with
_DIFFERENCES = (1, 2, 4, 8)  # steps back
_CATEGORIES = 250  # instructions that trees tell apart; scikit-learn takes at most 255


class BaselineInputs(NamedTuple):
    """What the baselines look at: the N frames of E episodes, in order."""

    ends: np.ndarray  # bool [N]
    gripper: np.ndarray  # f32 [N]: command; values on either side of the middle of its range are open and closed
    proprio: np.ndarray  # f32 [N p]
    instruction_ids: np.ndarray  # i32 [N], not negative: what the policy is told
    episode_starts: np.ndarray  # i64 [E + 1]: first frame of each episode, and N


def baseline_scores(inputs: BaselineInputs, train: np.ndarray) -> Mapping[str, np.ndarray]:
    """The probability of an end at every frame, by name of the baseline.

    Args:
      inputs: all frames.
      train: bool [N], the frames to fit on: whole episodes, with and without ends among their frames.

    Returns:
      f64 [N] each, between 0 and 1. Of the frames outside `train` only the oracle's depend on labels of the same or later frames.

    Raises:
      ValueError: all training frames are ends, or none is.
    """
    ends, starts = inputs.ends.astype(bool), inputs.episode_starts
    if not 0 < ends[train].mean() < 1:
        raise ValueError(
            f"baselines: expected ends and other steps to fit on, got {int(ends[train].sum())} ends in {int(train.sum())} steps"
        )
    time, place = steps_since_substep(ends, starts), places(ends, starts)
    lag = steps_since_gripper(_closed(inputs.gripper, train), starts)
    told = np.column_stack([place, instruction_codes(inputs.instruction_ids, train)])
    state = np.column_stack([inputs.proprio, past_differences(inputs.proprio, starts), told])

    return {
        ALWAYS_OFF: np.zeros(ends.size),
        TIME: fitted_scores(place * (_LONGEST + 1) + time, ends, train),
        GRIPPER: fitted_scores(lag, ends, train),
        CLOCK_TREES: boosted_scores(np.column_stack([lag, time, told]), ends, train),
        STATE_TREES: boosted_scores(state, ends, train),
        ORACLE: ends.astype(np.float64),
    }


def baselines_on(data: Any, train: np.ndarray, episodes: np.ndarray) -> dict[str, list[ScoredEpisode]]:
    """What each baseline, and chance, says of some episodes, in their order.

    Args:
      data: all frames, with `labels`, `gripper`, `proprio` and `episode_starts` (see `eosjax.data.samples.mixture.Mixture`).
      train: i64 [n], the frames to fit on.
      episodes: i64 [e], numbers of the episodes to score.
    """
    ends, starts = data.labels.ends.astype(bool), data.episode_starts
    fitted = np.zeros(ends.size, bool)
    fitted[train] = True
    inputs = BaselineInputs(ends, data.gripper, data.proprio, data.labels.instruction_ids, starts)
    scores = dict(baseline_scores(inputs, fitted)) | {CHANCE: np.random.default_rng(0).random(ends.size)}
    spans = [slice(*starts[[number, number + 1]].tolist()) for number in episodes.tolist()]
    return {name: [ScoredEpisode(str(span.start), each[span], ends[span]) for span in spans] for name, each in scores.items()}


def steps_since_substep(ends: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """Steps since the running sub-step began, i64 [N], at most 400: 0 at an episode's first step and at the step after an end.

    Args:
      ends: bool [N].
      episode_starts: i64 [E + 1], first frame of each episode, and N.
    """
    begins = np.concatenate([[True], ends[:-1]]) | _opens_episode(episode_starts)
    return _steps_since(begins, episode_starts)


def steps_since_gripper(closed: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """Steps since the gripper command last changed, i64 [N]: 0 where it differs from the step before.

    It is 400 at most, and before the first change of an episode.

    Args:
      closed: bool [N], the command.
      episode_starts: i64 [E + 1], first frame of each episode, and N.
    """
    changed = np.concatenate([[False], closed[1:] != closed[:-1]]) & ~_opens_episode(episode_starts)
    return _steps_since(changed, episode_starts)


def past_differences(values: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """What each value has changed by in the last 1, 2, 4 and 8 steps, f32 [N 4p]; since the episode's first step where that is later.

    Args:
      values: f32 [N p].
      episode_starts: i64 [E + 1], first frame of each episode, and N.
    """
    first = _first_frames(episode_starts)
    frames = np.arange(len(values))
    return np.concatenate([values - values[np.maximum(frames - back, first)] for back in _DIFFERENCES], axis=1)


def places(ends: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """Place of the running sub-step in its episode, i64 [N], from 0; the step of an end still belongs to its sub-step.

    Args:
      ends: bool [N].
      episode_starts: i64 [E + 1], first frame of each episode, and N.
    """
    before = np.cumsum(ends) - ends  # in all episodes
    return before - before[_first_frames(episode_starts)]


def instruction_codes(instruction_ids: np.ndarray, train: np.ndarray) -> np.ndarray:
    """A small number for each instruction, f64 [N]: 0 has most training frames; beyond 250 of them, and without training frames, NaN.

    With the place of the sub-step it says what the policy is told. The instruction alone would not do where there are hundreds ("reach for
    the red cube", "reach for the blue cylinder"), which have only their place in common; the place alone would not where plans differ.

    Args:
      instruction_ids: i32 [N], not negative.
      train: bool [N].
    """
    frames = np.bincount(instruction_ids[train], minlength=instruction_ids.max() + 1)
    order = np.argsort(-frames, kind="stable")[:_CATEGORIES]
    codes = np.full(frames.size, np.nan)
    codes[order] = np.arange(order.size)
    codes[frames == 0] = np.nan
    return codes[instruction_ids]


def fitted_scores(numbers: np.ndarray, ends: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Scores every step with the share of ends that training steps with the same number had.

    Args:
      numbers: i64 [N], not negative.
      ends: bool [N].
      train: bool [N], the steps to fit on.

    Returns:
      f64 [N], shares between 0 and 1.
    """
    prior, size = ends[train].mean(), numbers.max() + 1
    hits = np.bincount(numbers[train], weights=ends[train], minlength=size)
    total = np.bincount(numbers[train], minlength=size)
    return ((hits + _PSEUDO_COUNT * prior) / (total + _PSEUDO_COUNT))[numbers]


def boosted_scores(features: np.ndarray, ends: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The probability of an end by gradient-boosted trees on the log loss (Friedman 2001, Annals of Statistics 29(5)).

    The log loss needs no balancing of the classes to be a probability; slow learning and leaves that are not too small keep the rare ends
    from being learnt by heart. Nothing is tuned to a dataset.

    Args:
      features: f64 [N f]; the last is a category, 0 to 249 or NaN.
      ends: bool [N].
      train: bool [N], the steps to fit on.

    Returns:
      f64 [N].
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # takes a second to import
    from threadpoolctl import threadpool_limits

    trees = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=200,
        max_leaf_nodes=15,
        l2_regularization=1.0,
        early_stopping=False,  # pyright: ignore[reportArgumentType]
        categorical_features=[features.shape[1] - 1],  # pyright: ignore[reportArgumentType]
        random_state=0,
    )
    # One thread: threads that wait for a core which others use took a hundred times as long, and the order of sums stays the same.
    with threadpool_limits(1, user_api="openmp"):
        return trees.fit(features[train], ends[train]).predict_proba(features)[:, 1]


def _closed(gripper: np.ndarray, train: np.ndarray) -> np.ndarray:
    """bool [N]: whether the command is above the middle of the range that it has in training (which side is closed does not matter)."""
    return gripper > (gripper[train].min() + gripper[train].max()) / 2


def _first_frames(episode_starts: np.ndarray) -> np.ndarray:
    """i64 [N]: the first frame of the episode of each frame."""
    return np.repeat(episode_starts[:-1], np.diff(episode_starts))


def _opens_episode(episode_starts: np.ndarray) -> np.ndarray:
    """bool [N]: whether a frame is the first of its episode; there may be episodes without frames."""
    return np.arange(episode_starts[-1]) == _first_frames(episode_starts)


def _steps_since(marks: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
    """Steps since the last mark within the episode; `_LONGEST` at most, and before the first."""
    frames = np.arange(marks.size)
    last_mark = np.maximum.accumulate(np.where(marks, frames, -1))
    return np.where(last_mark < _first_frames(episode_starts), _LONGEST, np.minimum(frames - last_mark, _LONGEST))
