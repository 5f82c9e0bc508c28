"""The goals that are set, and whether the measured rows reach them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.on_gpu.rows import Row


class _Goal(NamedTuple):
    name: str
    measured: list[float]  # of which the largest counts: the best speed, and the worst of all else
    bound: float
    at_least: bool = False  # otherwise: at most
    note: str = ""


def goal_rows(rows: list[Row]) -> list[Row]:
    """A row for each goal that something was measured for."""
    cases = [row for row in rows if row.section == "speed"]
    wide = [row for row in cases if row.figures.get("images") == 2 and _number(row, "batch") >= 8]
    eos = [row for row in rows if row.section == "eos"]
    goals = [
        _Goal("samples/s, two images, batch 8 or more", _all(wide, "samples/s"), 12.0, True, "on an H100; 18 is excellent"),
        _Goal("MFU %, two images, batch 8 or more", _all(wide, "MFU %"), 40.0, True),
        _Goal("difference of a peak from its plan, %", [100 * abs(ratio - 1) for ratio in _all(cases, "peak / plan")], 10.0),
        _Goal("EOS part of an update, %", _all(eos, "share %"), 2.0),
        _Goal("inference, ms a chunk", _all((row for row in eos if row.name.startswith("inference")), "ms"), 50.0),
    ]
    return [_row(goal) for goal in goals if goal.measured]


def _row(goal: _Goal) -> Row:
    value = max(goal.measured)
    reached = value >= goal.bound if goal.at_least else value <= goal.bound
    sign = ">=" if goal.at_least else "<="
    return Row("goal", goal.name, {"goal": f"{sign} {goal.bound:g}", "measured": value}, reached, goal.note)


def _number(row: Row, what: str) -> float:
    value = row.figures[what]
    assert isinstance(value, int | float), (row, what)
    return float(value)


def _all(rows: Iterable[Row], what: str) -> list[float]:
    return [_number(row, what) for row in rows if row.figures.get(what) is not None]
