"""Plays the chunks of a policy on a robot, and goes from sub-step to sub-step. Needs NumPy alone, beside the policy.

    broker = Broker(RemotePolicy("ws://gpu-machine:8000"), ["pick up the bowl", "place it on the plate"])
    while not broker.done:
        action = broker.act(robot.observe)
        robot.hold() if action is None else robot.step(action)

A sub-step ends with the action at which the rule of the policy says so. What follows in the chunk is dropped, and the next action comes
from a new plan under the next instruction.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from eosjax.ends.protocols import Clock, Rule, cut_chunk
from eosjax.serving.chunk import Chunk
from eosjax.serving.client import ServerLostError
from eosjax.serving.decisions import DecisionLog
from eosjax.types import UserError

CONFIRMED_WITHIN = 1  # slots of the confirming plan: it sees the scene just before the end, or just after it


class Planner(Protocol):
    """What the broker needs of a policy: `eosjax.serving.client.RemotePolicy`, or `eosjax.serving.hosted.HostedPolicy` in the process."""

    @property
    def chunk(self) -> int:
        """Actions of a chunk."""
        ...

    @property
    def rule(self) -> Rule | None:
        """When a sub-step ends; None without an EOS head."""
        ...

    def plan(self, observation: Mapping[str, Any], instruction: str, clock: Clock, execute_steps: int) -> Chunk:
        """The chunk for an observation; `ServerLostError` if there is none in time."""
        ...


@dataclasses.dataclass(frozen=True)
class BrokerSettings:
    """How chunks are played.

    Attributes:
      execute_steps: actions of a chunk that are executed before the next plan; None for all of them.
      rule: when a sub-step ends, instead of the policy's; such as `dataclasses.replace(policy.rule, debounce=3)`.
      confirm: an end that one plan foresees counts only if the next plan, made just before that step, sees it within a step.
      on_time_out: what follows a sub-step that ends only because its time is up: the next one, the end of the episode, or what
        `ask` says.
      on_loss: without a server the robot holds and asks again, or the episode ends. Old actions are never played on.
      give_up_seconds: without a server, until a robot that holds stops.
      overlap: None plays the newest plan. Otherwise an action is the mean of all plans of this sub-step that reach it; one that is n plans
        older weighs exp(-overlap n).
    """

    execute_steps: int | None = None
    rule: Rule | None = None
    confirm: bool = False
    on_time_out: Literal["advance", "stop", "ask"] = "advance"
    on_loss: Literal["hold", "stop"] = "hold"
    give_up_seconds: float = 30.0
    overlap: float | None = None


class _Plan(NamedTuple):
    """A chunk, and how much of it is to be played."""

    start: int  # step of the sub-step at which it was made
    chunk: Chunk
    horizon: int  # actions to execute
    usable: int  # actions that belong to this sub-step, for the mean with later plans
    ends: bool  # the last of the actions to execute ends the sub-step
    timed_out: bool
    clock: Clock  # after them


class Broker:
    """One episode.

    Args:
      policy: makes the plans.
      instructions: of the sub-steps in order; or a function that gets those that have ended and returns the next one, or None at the end.
      settings: the rest.
      log: takes every decision.
      ask: with `on_time_out="ask"`, gets the instruction whose time is up and returns "advance", "stop" or "continue".
      episode: its name in the log.
      now: seconds, of a clock that never goes back.

    Raises:
      UserError: `execute_steps` is no part of a chunk, `ask` is missing, or there is no instruction.
    """

    def __init__(
        self,
        policy: Planner,
        instructions: Sequence[str] | Callable[[Sequence[str]], str | None],
        settings: BrokerSettings | None = None,
        *,
        log: DecisionLog | None = None,
        ask: Callable[[str], str] | None = None,
        episode: str = "0",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings or BrokerSettings()
        self._steps_of_plan = self._settings.execute_steps or policy.chunk
        if not 1 <= self._steps_of_plan <= policy.chunk:
            raise UserError(f"execute_steps: expected 1 to {policy.chunk}, the actions of a chunk; got {self._settings.execute_steps}")
        if self._settings.on_time_out == "ask" and ask is None:
            raise UserError("on_time_out: 'ask' needs the function `ask`")
        self._policy, self._ask, self._episode, self._now = policy, ask, episode, now
        self._next = instructions if callable(instructions) else _in_order(instructions)
        self._log = log or DecisionLog(None)
        self.rule = self._settings.rule or policy.rule
        self.step = 0  # of the episode: actions played so far
        self.outcome: str | None = None  # completed, time_out or lost, once the episode is over
        self.ended: list[str] = []  # instructions of the sub-steps that have ended
        self.instruction = self._next(self.ended)  # of the running sub-step
        if self.instruction is None:
            raise UserError("instructions: expected at least one, got none")
        self._clock = Clock()
        self._plans: list[_Plan] = []  # of this sub-step, the newest last
        self._played = 0  # actions of the newest plan
        self._sub_step_steps = 0
        self._foreseen = False  # the last plan foresaw an end that is not confirmed
        self._lost_since: float | None = None
        rule = self.rule and dataclasses.asdict(self.rule)
        self._write("episode", instruction=self.instruction, rule=rule, settings=dataclasses.asdict(self._settings))

    @property
    def done(self) -> bool:
        """Whether the episode is over: nothing more is to be played."""
        return self.outcome is not None

    def act(self, observe: Callable[[], Mapping[str, Any]]) -> np.ndarray | None:
        """The action of the next control step, or None to hold: the server is lost, or the episode over.

        Args:
          observe: is called only where a new plan is needed.

        Raises:
          eosjax.serving.client.ServerRefusedError: the server says what is wrong with the observation.
        """
        if self.done or (not (self._plans and self._played < self._plans[-1].horizon) and not self._make_plan(observe())):
            return None
        plan = self._plans[-1]
        action = self._action()
        scores = plan.chunk.eos
        self._write("step", score=None if scores is None else float(scores[self._played]))
        self._played += 1
        self.step += 1
        self._sub_step_steps += 1
        if self._played == plan.horizon:
            self._clock = plan.clock
            if plan.ends:
                self._end(plan.timed_out)
        return action

    def mark_end(self) -> None:
        """Tells the log that the sub-step really ended with the last action, as a simulator or an operator knows; for `eosjax score`."""
        self._log.write("truth", episode=self._episode, step=self.step - 1)

    def _make_plan(self, observation: Mapping[str, Any]) -> bool:
        """Whether there is a plan to play."""
        assert self.instruction is not None
        start = self._now()
        try:
            chunk = self._policy.plan(observation, self.instruction, self._clock, self._steps_of_plan)
        except ServerLostError as error:
            self._lose(error)
            return False
        plan = self._read(chunk)
        seen = {} if chunk.eos is None else {"eos": [round(float(score), 6) for score in chunk.eos]}
        kept = self._settings.overlap is not None
        self._plans = [*(self._plans if kept else []), plan]
        self._played, self._lost_since = 0, None
        self._write("plan", seconds=self._now() - start, execute=plan.horizon, ends=plan.ends, foreseen=self._foreseen, **seen)
        return True

    def _read(self, chunk: Chunk) -> _Plan:
        """How much of a chunk is to be played, and whether the sub-step ends with it."""
        start, count, usable = self._sub_step_steps, self._steps_of_plan, len(chunk.actions)
        if self.rule is None or chunk.eos is None:
            return _Plan(start, chunk, count, usable, False, False, Clock(self._clock.steps + count))
        scores = np.asarray(chunk.eos[:count])
        cut = cut_chunk(scores, self.rule, self._clock)
        if cut.slot is None:
            self._foreseen = False
            return _Plan(start, chunk, count, usable, False, False, cut.clock)
        time_is_up = self._clock.steps + cut.slot + 1 == self.rule.time_out
        if not self._settings.confirm or time_is_up or (self._foreseen and cut.slot <= CONFIRMED_WITHIN):
            self._foreseen = False
            return _Plan(start, chunk, cut.slot + 1, cut.slot + 1, True, cut.timed_out, Clock())
        self._foreseen = True
        before = max(cut.slot, 1)  # a plan of the step itself could only repeat what this one says
        return _Plan(start, chunk, before, cut.slot + 1, False, False, _run_on(scores[:before], self.rule, self._clock))

    def _action(self) -> np.ndarray:
        """That of the newest plan, or the mean over those that reach this step."""
        newest = self._plans[-1]
        if self._settings.overlap is None:
            return np.array(newest.chunk.actions[self._played])  # a robot may change it
        self._plans = [plan for plan in self._plans if plan is newest or plan.start + plan.usable > self._sub_step_steps]
        age = np.arange(len(self._plans))[::-1]
        weights = np.exp(-self._settings.overlap * age)
        actions = [plan.chunk.actions[self._sub_step_steps - plan.start] for plan in self._plans]
        return np.average(actions, axis=0, weights=weights)

    def _end(self, timed_out: bool) -> None:
        """The sub-step is over with the action that is being played."""
        assert self.instruction is not None
        answer = "advance"
        if timed_out:
            how = self._settings.on_time_out
            answer = self._ask(self.instruction) if how == "ask" and self._ask else how
            if answer not in ("advance", "stop", "continue"):
                raise UserError(f"ask: expected advance, stop or continue, got {answer!r:.40}")
        self._write("end", how="timed_out" if timed_out else "seen", answer=answer, at=self.step - 1)
        self._plans, self._played, self._clock, self._sub_step_steps, self._foreseen = [], 0, Clock(), 0, False
        if answer == "advance":
            self.ended.append(self.instruction)
            self.instruction = self._next(self.ended)
            if self.instruction is None:
                self._finish("completed")
        elif answer == "stop":
            self._finish("time_out")

    def _lose(self, error: ServerLostError) -> None:
        """There is no server: what was planned is no longer of use."""
        now = self._now()
        self._lost_since = now if self._lost_since is None else self._lost_since
        self._plans, self._played = [], 0
        lost = now - self._lost_since
        self._write("lost", reason=str(error), seconds=lost)
        if self._settings.on_loss == "stop" or lost >= self._settings.give_up_seconds:
            self._finish("lost")

    def _finish(self, outcome: str) -> None:
        self.outcome = outcome
        self._write("done", outcome=outcome)

    def _write(self, event: str, **fields: Any) -> None:
        place = {"episode": self._episode, "step": self.step, "sub_step": len(self.ended), "instruction": self.instruction}
        self._log.write(event, **{**place, **fields})


def _in_order(instructions: Sequence[str]) -> Callable[[Sequence[str]], str | None]:
    listed = [instructions] if isinstance(instructions, str) else list(instructions)
    return lambda ended: listed[len(ended)] if len(ended) < len(listed) else None


def _run_on(scores: np.ndarray, rule: Rule, clock: Clock) -> Clock:
    """The clock after steps that end nothing, whatever their scores."""
    steps, crossings = clock
    for crossed in (rule.read(scores) >= rule.threshold).tolist():
        steps, crossings = steps + 1, crossings + 1 if crossed else 0
    return Clock(steps, crossings)
