"""The two ways to get firings out of the chunks that a policy predicts. Their figures must not be compared with each other.

*Dense*: the policy is asked at every step of an episode, and the votes of all chunks that cover a step are merged. It tells how well
the head sees an end: `merge_votes`, then `eosjax.ends.measure.measure_scores`.

*Deployed*: as on the robot. The policy is asked only where it plans; the first step of its chunk at which the sub-step is said to end
cuts the chunk, and it plans again at the next step. Otherwise the whole chunk is executed. It tells what a user gets: `replay`, then
`eosjax.ends.measure.measure_decisions`.

A replay reads predictions that were made along a recorded episode, each under the instruction of the sub-step that really ran. After a
false alarm a robot would follow the wrong instruction; a replay goes on under the right one.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from eosjax.ends.frame import merge_chunks
from eosjax.types import UserError


class RuleError(UserError):
    """A decision rule that makes no sense."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """When a sub-step is said to end.

    Attributes:
      threshold: a score from here on is a crossing; on the scale of the scores that it is applied to.
      debounce: crossings at so many executed steps in a row, the last of which is the end. The row goes on from chunk to chunk.
      min_steps: a sub-step is not said to end before it has so many steps.
      time_out: a sub-step that has so many steps ends without a crossing; None for never.
      cumulative: what is compared with the threshold is the probability that the sub-step has ended since the chunk began (`read`). Where
        the head knows that the end is near, but not at which slot, no slot alone may reach a threshold. Scores must be probabilities then.

    Raises:
      RuleError: a number is out of its range.
    """

    threshold: float
    debounce: int = 1
    min_steps: int = 1
    time_out: int | None = None
    cumulative: bool = False

    def __post_init__(self) -> None:
        if np.isnan(self.threshold):
            raise RuleError("threshold: expected a number, got NaN")
        for name in ("debounce", "min_steps"):
            if getattr(self, name) < 1:
                raise RuleError(f"{name}: expected 1 step or more, got {getattr(self, name)}")
        if self.time_out is not None and self.time_out < self.min_steps:
            raise RuleError(f"time_out: expected min_steps ({self.min_steps}) or more, got {self.time_out}")

    @property
    def of_one_slot(self) -> float | None:
        """The threshold, where single scores are compared with it, as pages draw it beside them; else None."""
        return None if self.cumulative else self.threshold

    def read(self, scores: np.ndarray) -> np.ndarray:
        """What is compared with the threshold.

        Args:
          scores: f[..., k], of chunks. If `cumulative`, their probabilities p are taken as the hazard of an end in discrete time, as in
            survival analysis (Singer and Willett 1993): the sub-step has ended by slot i with the probability 1 - Π (1 - p), over the
            slots up to i.
        """
        return 1 - np.cumprod(1 - scores, axis=-1) if self.cumulative else scores


class ChunkedEpisode(NamedTuple):
    """What a policy says along a recorded episode of t steps, asked at every step."""

    name: str
    logits: np.ndarray  # f[t, k], raw; row s is about the steps s … s + k - 1, and what lies past the episode means nothing
    ends: np.ndarray  # bool [t], truth

    @property
    def votes(self) -> tuple[np.ndarray, np.ndarray]:
        """f[n] raw logits and bool [n] whether the step of each is an end: all slots of all chunks that do not lie past the episode."""
        step = np.add.outer(np.arange(self.logits.shape[0]), np.arange(self.logits.shape[1]))
        within = step < self.ends.size
        return self.logits[within], self.ends[step[within]]


class Clock(NamedTuple):
    """What a rule remembers of the running sub-step."""

    steps: int = 0  # executed so far
    crossings: int = 0  # executed in a row, up to now


class Cut(NamedTuple):
    """What a rule says about one chunk."""

    slot: int | None  # the last action to execute; None: all of them, and the sub-step goes on
    timed_out: bool  # it ends there only because its time is up
    clock: Clock  # after what is executed; a new one after an end


def cut_chunk(scores: np.ndarray, rule: Rule, clock: Clock) -> Cut:
    """The first slot of a chunk at which the sub-step ends.

    Args:
      scores: f[k], of the actions that would be executed, in order.
      rule: when a sub-step ends.
      clock: of the running sub-step; a new `Clock()` at its first step.
    """
    steps, crossings = clock
    for slot, crossed in enumerate((rule.read(scores) >= rule.threshold).tolist()):
        steps, crossings = steps + 1, crossings + 1 if crossed else 0
        seen = crossings >= rule.debounce and steps >= rule.min_steps
        if seen or steps == rule.time_out:
            return Cut(slot, not seen, Clock())
    return Cut(None, False, Clock(steps, crossings))


class Replay(NamedTuple):
    """What the deployed protocol makes of an episode."""

    fired: np.ndarray  # i64 [n], steps at which a sub-step is said to end, ascending
    timed_out: np.ndarray  # bool [n], those that only the time-out made
    anchors: np.ndarray  # i64 [p], steps at which the policy planned, ascending


def replay(scores: np.ndarray, rule: Rule) -> Replay:
    """Plays an episode as a robot would.

    Args:
      scores: f[t, k], of every anchor of an episode of t steps; row s is about the steps s … s + k - 1, and what lies past the episode is
        not read. Logits or probabilities (for a cumulative rule, probabilities); the threshold of the rule is on the same scale.
      rule: when a sub-step ends.
    """
    length, chunk = scores.shape
    fired, timed_out, anchors = [], [], []
    step, clock = 0, Clock()
    while step < length:
        anchors.append(step)
        cut = cut_chunk(scores[step, : length - step], rule, clock)
        clock = cut.clock
        if cut.slot is None:
            step += chunk
        else:
            fired.append(step + cut.slot)
            timed_out.append(cut.timed_out)
            step += cut.slot + 1
    return Replay(np.array(fired, np.int64), np.array(timed_out, bool), np.array(anchors, np.int64))


def merge_votes(logits: np.ndarray) -> np.ndarray:
    """One logit for each step of an episode: the mean of all chunks that cover it.

    Args:
      logits: f[t, k], of every anchor of an episode of t steps; row s is about the steps s … s + k - 1, and what lies past the episode is
        not read.

    Returns:
      f64 [t].
    """
    length, chunk = logits.shape
    anchors = np.arange(length)
    within = anchors[:, None] + np.arange(chunk) < length
    return merge_chunks(anchors, logits, within, np.zeros(length, bool)).logits
