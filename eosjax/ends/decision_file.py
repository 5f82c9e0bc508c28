"""The decision log of a robot (`eosjax.serving.decisions`) as episodes in the loop, for the page that shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eosjax.ends.closed_loop import Episode, Film, Switch, Trace
from eosjax.ends.protocols import Rule, RuleError
from eosjax.types import UserError


class Decided(NamedTuple):
    """One episode of a log."""

    name: str
    outcome: str | None  # None: the log ends before it
    threshold: float | None  # of single slots; None where there is no rule, or one that reads them together
    lost: int  # attempts to plan without a server
    episode: Episode  # its film has no pictures


class DecisionFileError(UserError):
    """A decision log that cannot be read."""


def read_decisions(path: Path) -> list[Decided]:
    """The episodes of a decision log that have steps, in order; the goal of a sub-step holds from its true end on, where one is marked.

    Raises:
      DecisionFileError: the file cannot be read, or a line of it is not as `DecisionLog` and `Broker` write it.
    """
    entries: dict[str, list[dict[str, Any]]] = {}
    try:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(text)
                entries.setdefault(str(entry["episode"]), []).append(entry)
                _ = entry["event"]
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise DecisionFileError(f"{path}, line {number}: expected an object with event and episode, got {text!r:.60}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DecisionFileError(f"{path}: cannot be read: {error}") from error
    found = []
    for name, rows in entries.items():
        try:
            if any(row["event"] == "step" for row in rows):
                found.append(_decided(len(found), name, rows))
        except (KeyError, TypeError, ValueError, RuleError) as error:
            raise DecisionFileError(f"{path}, episode {name!r}: expected entries as a broker writes them: {error!r:.80}") from error
    return found


def _decided(number: int, name: str, rows: list[dict[str, Any]]) -> Decided:
    by_event = {event: [row for row in rows if row["event"] == event] for event in ("episode", "step", "end", "truth", "lost", "done")}
    steps = by_event["step"]
    true = sorted(row["step"] for row in by_event["truth"] if row["step"] is not None)
    holds = np.zeros(len(steps), bool)
    switches, begin = [], 0
    for end in by_event["end"]:
        held = next((step for step in true if begin <= step <= end["at"]), -1)
        if held >= 0:
            holds[held : end["at"] + 1] = True
        switches.append(Switch(int(end["sub_step"]), int(end["at"]), held, end["how"] == "timed_out"))
        begin = end["at"] + 1
    scores = np.array([np.nan if row["score"] is None else row["score"] for row in steps], np.float32)
    rule = by_event["episode"][0].get("rule") if by_event["episode"] else None
    outcome = by_event["done"][-1]["outcome"] if by_event["done"] else None
    trace = Trace(number, len(steps), outcome == "completed", -1, (), tuple(switches))
    film = Film([row["instruction"] for row in steps], scores, holds, [], [])
    return Decided(name, outcome, rule and Rule(**rule).of_one_slot, len(by_event["lost"]), Episode(trace, film))
