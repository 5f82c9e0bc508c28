"""Episodes in the loop: an executor acts, a switcher says when the next sub-step begins, the environment says what is true.

The policy is asked for all running episodes at once. Each gets a chunk of actions, of which it executes those up to the end of its
sub-step, or all. With the expert as executor, the policy is asked at the same steps, but only its EOS head is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from eosjax.data.rlds.write import jpeg
from eosjax.ends.closed_loop import Episode, Film, Switch, Trace
from eosjax.envs.switchers import EOS, NONE, WHOLE, Moment, Switcher
from eosjax.envs.worlds import Worlds

POLICY, EXPERT = "policy", "expert"
EXECUTORS = (POLICY, EXPERT)


class Asked(NamedTuple):
    """What a policy is to follow in one episode."""

    episode: int  # number of the start state
    instruction: str
    begins: bool  # the sub-step begins with this observation
    step: int = 0  # of the episode
    place: int = 0  # of the sub-step in the plan


class End(NamedTuple):
    """Where the EOS head ends a sub-step, by the operating point."""

    slot: int  # of the chunk
    timed_out: bool  # only because the time of the sub-step is up


class Chunks(NamedTuple):
    """What a policy says to n observations."""

    actions: np.ndarray  # f32 [n k a], as the environment takes them
    eos: np.ndarray | None  # f64 [n k], calibrated probability that the sub-step ends with each
    ends: Sequence[End | None]  # n; None where the sub-step goes on


class Planner(Protocol):
    """A policy, as a rollout asks it. It remembers what its rule must know of the running sub-step of each episode."""

    def __call__(self, observation: dict[str, Any], asked: Sequence[Asked]) -> Chunks:
        """The next chunk of each row."""
        ...


@dataclasses.dataclass
class _Running:
    """An episode that is not finished."""

    row: int
    episode: int
    task: str
    plan: Sequence[str]
    reached: list[bool]
    filmed: bool
    place: int = 0
    step: int = 0
    began: int = 0  # step at which the running sub-step began
    begins: bool = True  # the policy has not been asked in it
    held: int = -1
    success_step: int = -1
    closed: bool | None = None  # the gripper command before
    changed_at: int = 0
    changed: bool = False  # within the running sub-step
    ending: int | None = None  # steps until the end that the EOS head has said is acted upon
    by_time: bool = False  # it was its time-out that said so
    switches: list[Switch] = dataclasses.field(default_factory=list)
    shown: Film = dataclasses.field(default_factory=lambda: Film([], np.zeros(0), np.zeros(0), [], []))
    columns: list[tuple[float, bool]] = dataclasses.field(default_factory=list)

    def begin(self, place: int) -> None:
        """Goes on to another sub-step."""
        self.place, self.began, self.held, self.changed, self.begins, self.ending = place, self.step, -1, False, True, None


def play(
    worlds: Worlds,
    episodes: Sequence[int],
    planner: Planner,
    switch: str,
    switcher: Switcher,
    executor: str,
    filmed: Callable[[int], bool],
    extra_steps: int = 0,
    middle: float = 0.0,
) -> Iterator[Episode]:
    """Plays one episode in each environment, and gives each as it finishes.

    Args:
      worlds: at their start.
      episodes: number of the start state of each.
      planner: the policy.
      switch: name of the switcher.
      switcher: who switches.
      executor: who acts.
      filmed: of which episodes pictures are kept.
      extra_steps: that are executed after the one with which the EOS head ends a sub-step.
      middle: between the two sides of the gripper command, the last number of an action.
    """
    live = [
        _Running(row, episode, worlds.tasks[row], worlds.plans[row], [False] * len(worlds.plans[row]), filmed(episode))
        for row, episode in enumerate(episodes)
    ]
    while live:
        rows = [each.row for each in live]
        seen = worlds.observe(rows)
        chunks = planner(seen, [Asked(each.episode, _instruction(each, switch), each.begins, each.step, each.place) for each in live])
        for number, each in enumerate(live):
            each.begins = False
            if each.filmed:
                each.shown.at.append(each.step)
                each.shown.pictures.append([jpeg(camera[number]) for camera in seen["images"]])
        going = list(range(len(live)))
        finished: list[tuple[int, str | None]] = []
        for slot in range(chunks.actions.shape[1]):
            going, over = _one_step(worlds, live, going, slot, chunks, switch, switcher, executor, extra_steps, middle)
            finished += over
            if not going:
                break
        gone = dict(finished)
        for number, fault in sorted(gone.items()):
            yield _finish(live[number], worlds, fault)
        live = [each for number, each in enumerate(live) if number not in gone]


def _one_step(
    worlds: Worlds,
    live: Sequence[_Running],
    going: list[int],
    slot: int,
    chunks: Chunks,
    switch: str,
    switcher: Switcher,
    executor: str,
    extra_steps: int,
    middle: float,
) -> tuple[list[int], list[tuple[int, str | None]]]:
    """Executes one action in each of the episodes `going`; which of them go on with their chunk, and which are over (and the fault)."""
    truth = worlds.truth([live[number].row for number in going])
    actions, lasts = [], []
    for number, goals in zip(going, truth.goals, strict=True):
        each = live[number]
        told = 0 if switch in (NONE, WHOLE) else each.place
        action = worlds.expert(each.row, told) if executor == EXPERT else chunks.actions[number, slot]
        end = chunks.ends[number]
        if end is not None and end.slot == slot and each.ending is None:
            each.ending, each.by_time = extra_steps, end.timed_out
        moment = _moment(each, bool(action[-1] > middle), bool(goals[each.place]), each.ending == 0)
        each.columns.append((float("nan") if chunks.eos is None else float(chunks.eos[number, slot]), moment.holds))
        each.shown.instruction.append(_instruction(each, switch))
        actions.append(action)
        lasts.append(switcher(moment))
    broken = worlds.step([live[number].row for number in going], actions)
    after = worlds.truth([live[number].row for number in going])
    still, over = [], []
    for number, last, success in zip(going, lasts, after.success.tolist(), strict=True):
        each = live[number]
        if each.row in broken:
            over.append((number, broken[each.row]))
            continue
        if success and each.success_step < 0:
            each.success_step = each.step
        each.step += 1
        each.ending = each.ending and each.ending - 1
        if last:
            each.switches.append(Switch(each.place, each.step - 1, each.held, switch == EOS and each.by_time))
            each.begin(each.place + 1)
        done = each.place == len(each.plan) or (success and switch in (NONE, WHOLE))
        if done or each.step >= worlds.limit:
            over.append((number, None))
        elif not last:
            still.append(number)
    return still, over


def _moment(each: _Running, closed: bool, holds: bool, cut: bool) -> Moment:
    """The step that is about to be executed; notes what it shows."""
    if each.closed is not None and closed != each.closed:
        each.changed_at, each.changed = each.step, True
    each.closed = closed
    if holds:
        each.reached[each.place] = True
        each.held = each.step if each.held < 0 else each.held
    return Moment(each.place, each.step - each.began, each.step - each.changed_at, each.changed, holds, cut)


def _instruction(each: _Running, switch: str) -> str:
    return each.task if switch == WHOLE else each.plan[each.place]


def _finish(each: _Running, worlds: Worlds, fault: str | None) -> Episode:
    success = fault is None and bool(worlds.truth([each.row]).success[0])
    trace = Trace(each.episode, each.step, success, each.success_step, tuple(each.reached), tuple(each.switches), each.held)
    if not each.filmed:
        return Episode(trace, None, fault)
    eos, holds = (np.array(column) for column in zip(*each.columns, strict=True))
    return Episode(trace, each.shown._replace(eos=eos.astype(np.float32), holds=holds.astype(bool)), fault)
