"""The closed-loop table for the terminal, the page of `eosjax rollout`, and that of a robot's decision log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eosjax.ends.closed_loop import Episode
from eosjax.ends.decision_file import Decided
from eosjax.reports.episode_plots import rollout_timeline
from eosjax.reports.pages import Frame, Picture, Tile, render_page
from eosjax.reports.plots import inline_svg
from eosjax.reports.tables import Row, table

_STRIP = 10  # pictures of a filmstrip, at least; those at a switch come on top
_DECIDED = 50  # episodes of a decision log whose steps are shown
Who = tuple[str, str]  # switcher and executor


def closed_loop_rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The table of `eosjax.ends.closed_loop.rows`, the header first."""
    head = (
        "executor",
        "switch",
        "episodes",
        "success",
        "regret",
        "delay",
        "early",
        "false alarms/1,000",
        "in failed",
        "time-outs",
        "steps",
    )
    return [head, *(_row(each) for each in rows)]


def substep_rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """How often the goal of each sub-step held while it ran, the header first."""
    shown = [each for each in rows if each["substep_success"]]
    count = max((len(each["substep_success"]) for each in shown), default=0)
    head = ("executor", "switch", *(f"sub-step {number + 1}" for number in range(count)))
    return [head, *((each["executor"], each["switch"], *(f"{share:.2f}" for share in each["substep_success"])) for each in shown)]


def closed_loop_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Both tables for the terminal."""
    found = [closed_loop_rows(rows), substep_rows(rows)]
    return "\n\n".join(table(each, "ll" + "r" * (len(each[0]) - 2)) for each in found)


def _row(each: Mapping[str, Any]) -> Row:
    delay = _number(each["delay_median"], 1)
    if each["delay_median"] is not None:
        delay += f" [{each['delay_p10']:.1f}, {each['delay_p90']:.1f}]"
    return (
        each["executor"],
        each["switch"],
        str(each["episodes"]),
        _number(each["success"]) + _interval(each["success_interval_95"]),
        _number(each["regret"], sign=True) + _interval(each["regret_interval_95"]),
        delay,
        _number(each["early_share"]),
        _number(each["false_alarms_per_1000_steps"], 1),
        _number(each["false_alarms_per_1000_steps_on_failed"], 1),
        _number(each["time_out_share"]),
        _number(each["steps_to_success"], 0),
    )


def _number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _interval(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f" [{pair[0]:.2f}, {pair[1]:.2f}]"


def rollout_page(title: str, rows: Sequence[Mapping[str, Any]], shown: Sequence[tuple[Who, Episode]], threshold: float | None) -> str:
    """The page of `eosjax rollout`.

    Args:
      title: of the page.
      rows: of `eosjax.ends.closed_loop.rows`.
      shown: episodes with a film.
      threshold: probability from which the EOS head ends a sub-step; None where it is not compared with single probabilities.
    """
    episodes = []
    for number, (who, episode) in enumerate(shown):
        assert episode.film is not None
        switch, executor = who
        outcome = "success" if episode.trace.success else "failure"
        name = f"{executor} acts, {switch} switches: episode {episode.trace.episode}, {outcome}"
        episodes.append(_episode(number, name, episode, threshold) | {"film": _film(episode), "steps": episode.trace.steps})
    return render_page(
        "rollout.html",
        "eosjax rollout",
        title,
        figures=_tiles(rows),
        rows=closed_loop_rows(rows),
        substeps=substep_rows(rows),
        episodes=episodes,
    )


def _episode(number: int, name: str, episode: Episode, threshold: float | None) -> dict[str, Any]:
    """What both pages show of an episode; a threshold is None where single probabilities are not compared with it."""
    timeline = inline_svg(rollout_timeline(episode, threshold), f"episode{number}", name)
    return {"name": name, "timeline": timeline, "threshold": threshold is not None}


def decisions_page(title: str, decided: Sequence[Decided]) -> str:
    """The page of a robot's decision log.

    Args:
      title: of the page.
      decided: its episodes.
    """
    rows: list[Row] = [("episode", "steps", "ends seen", "timed out", "lost", "outcome")]
    seen = late = 0
    for each in decided:
        by_time = sum(switch.timed_out for switch in each.episode.trace.switches)
        ends = len(each.episode.trace.switches) - by_time
        seen, late = seen + ends, late + by_time
        rows.append((each.name, str(each.episode.trace.steps), str(ends), str(by_time), str(each.lost), each.outcome or "–"))
    episodes = []
    for number, each in enumerate(decided[:_DECIDED]):
        name = f"episode {each.name}: {each.outcome or 'not over'}"
        episodes.append(_episode(number, name, each.episode, each.threshold))
    completed = sum(each.outcome == "completed" for each in decided)
    figures = [
        Tile("episodes", str(len(decided)), f"{completed} in which all sub-steps ended"),
        Tile("ends seen", str(seen), "sub-steps whose end the rule saw"),
        Tile("time-outs", str(late), "sub-steps whose time was up"),
        Tile("lost", str(sum(each.lost for each in decided)), "attempts to plan without a server"),
    ]
    hidden = max(len(decided) - _DECIDED, 0)
    return render_page("decisions.html", "eosjax score", title, figures=figures, rows=rows, episodes=episodes, hidden=hidden)


def _tiles(rows: Sequence[Mapping[str, Any]]) -> list[Tile]:
    return [
        Tile(
            f"{each['executor']}, {each['switch']}",
            _number(each["success"]),
            f"success of {each['episodes']} episodes{_interval(each['success_interval_95'])}",
        )
        for each in rows
    ]


def _film(episode: Episode) -> list[Frame]:
    """Pictures spread over the episode, and the first after each switch."""
    film = episode.film
    assert film is not None
    spread = set(np.unique(np.linspace(0, len(film.at) - 1, _STRIP).round().astype(int)).tolist())
    switched = [switch.step + 1 for switch in episode.trace.switches]
    after = {next((place for place, step in enumerate(film.at) if step >= wanted), None): wanted for wanted in switched}
    frames = []
    for place in sorted(spread | {place for place in after if place is not None}):
        step = film.at[place]
        pictures = [Picture(f"camera {number}", data) for number, data in enumerate(film.pictures[place])]
        told = film.instruction[min(step, len(film.instruction) - 1)]
        frames.append(Frame(step, f"step {step}: {told}", "end" if place in after else "", pictures))
    return frames
