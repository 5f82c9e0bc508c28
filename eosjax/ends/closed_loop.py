"""What a rollout is, and the figures of many: success, regret against the oracle, delay and false alarms of who switches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eosjax.ends.bootstrap import bootstrap

ORACLE = "oracle"


class Switch(NamedTuple):
    """Where a sub-step was said to end."""

    place: int  # of the sub-step in the plan
    step: int  # the last one of the sub-step, counted from the start of the episode
    held: int  # first step of the sub-step whose observation shows its goal; -1 for none
    timed_out: bool  # it was not detected: its time was up


class Trace(NamedTuple):
    """One episode, up to its success, the last sub-step or the limit."""

    episode: int  # its start state has this number
    steps: int
    success: bool  # at the end
    success_step: int  # the first step after which the task was done; -1 for none
    reached: tuple[bool, ...]  # whether the goal of each sub-step held while it ran
    switches: tuple[Switch, ...]
    held: int = -1  # as of `Switch`, of the sub-step that ran at the end and was not said to end


class Film(NamedTuple):
    """What a page shows of an episode of t steps."""

    instruction: list[str]  # [t], that ran
    eos: np.ndarray  # f32 [t], probability of an end, NaN without an EOS head
    holds: np.ndarray  # bool [t], whether the goal of the running sub-step held
    at: list[int]  # steps of the pictures
    pictures: list[list[bytes]]  # JPEG, one a camera


class Episode(NamedTuple):
    """One finished episode."""

    trace: Trace
    film: Film | None
    fault: str | None = None  # why it broke off, if its environment failed


def figures(traces: Sequence[Trace], oracle: Sequence[Trace] | None) -> dict[str, Any]:
    """The figures of one switcher with one executor; what is not defined is None.

    Args:
      traces: of its episodes.
      oracle: of the oracle's episodes with the same executor; regret is over the start states that both have. None: no regret.

    Returns:
      `episodes`, `success`, `success_interval_95` (Wilson), `substep_success` (share of the episodes in which the goal of each sub-step
      held while it ran), `regret` (success of the oracle minus this, paired by start state) and `regret_interval_95` (bootstrap over start
      states), `delay_median`, `delay_p10`, `delay_p90` (steps from the first whose observation shows the goal to the last of the sub-step,
      of detections after that), `early_share` (of the detections, those before the goal held), `false_alarms_per_1000_steps` (those, a
      thousand steps), `false_alarms_per_1000_steps_on_failed` (in the episodes that failed), `time_out_share` (of the switches),
      `steps_to_success` (median).
    """
    failed = [trace for trace in traces if not trace.success]
    detected = [switch for trace in traces for switch in trace.switches if not switch.timed_out]
    delays = [switch.step - switch.held for switch in detected if switch.held >= 0]
    quantiles = dict(
        zip(("delay_median", "delay_p10", "delay_p90"), np.percentile(delays, (50, 10, 90)) if delays else [None] * 3, strict=True)
    )
    switches = sum(len(trace.switches) for trace in traces)
    regret, interval = _regret(traces, oracle)
    return {
        "episodes": len(traces),
        "success": _mean([trace.success for trace in traces]),
        "success_interval_95": wilson(sum(trace.success for trace in traces), len(traces)),
        "substep_success": np.mean([trace.reached for trace in traces], axis=0).tolist() if _same_plan(traces) else None,
        "regret": regret,
        "regret_interval_95": interval,
        **{name: None if value is None else float(value) for name, value in quantiles.items()},
        "early_share": _mean([switch.held < 0 for switch in detected]),
        "false_alarms_per_1000_steps": _false_alarms(traces),
        "false_alarms_per_1000_steps_on_failed": _false_alarms(failed),
        "time_out_share": (switches - len(detected)) / switches if switches else None,
        "steps_to_success": _median([trace.success_step + 1 for trace in traces if trace.success_step >= 0 and trace.success]),
    }


def rows(traces: Mapping[tuple[str, str], Sequence[Trace]]) -> list[dict[str, Any]]:
    """`figures` for each (switcher, executor), with their names."""
    return [
        {"switch": switch, "executor": executor, **figures(found, traces.get((ORACLE, executor)))}
        for (switch, executor), found in traces.items()
    ]


def wilson(hits: int, tries: int) -> list[float] | None:
    """The 95 % interval of a share (Wilson 1927, JASA 22(158)); unlike a bootstrap, it has a width where all or none are hits."""
    if not tries:
        return None
    z, share = 1.959964, hits / tries
    middle = (share + z * z / (2 * tries)) / (1 + z * z / tries)
    half = z / (1 + z * z / tries) * np.sqrt(share * (1 - share) / tries + z * z / (4 * tries * tries))
    return [float(max(0.0, middle - half)), float(min(1.0, middle + half))]


def _regret(traces: Sequence[Trace], oracle: Sequence[Trace] | None) -> tuple[float | None, list[float] | None]:
    reference = {trace.episode: trace.success for trace in oracle or ()}
    lost = np.array([float(reference[trace.episode]) - trace.success for trace in traces if trace.episode in reference])
    if not lost.size:
        return None, None
    measured = bootstrap([lambda weights: {"regret": float(np.average(lost, weights=weights))}], lost.size)
    return measured.values["regret"], list(measured.intervals["regret"]) if measured.intervals else None


def _false_alarms(traces: Sequence[Trace]) -> float | None:
    steps = sum(trace.steps for trace in traces)
    early = sum(switch.held < 0 and not switch.timed_out for trace in traces for switch in trace.switches)
    return 1000.0 * early / steps if steps else None


def _same_plan(traces: Sequence[Trace]) -> bool:
    return bool(traces) and len({len(trace.reached) for trace in traces}) == 1


def _mean(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def _median(values: Sequence[int]) -> float | None:
    return float(np.median(values)) if values else None
