"""Tables as text and as Markdown, and the figures of ends as rows of tables and as JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eosjax.ends.bootstrap import Measured
from eosjax.ends.comparison import FIGURES, Comparison
from eosjax.ends.events import COLLARS, MAIN_COLLAR
from eosjax.reports.texts import literal

Row = tuple[str, ...]


def table(rows: Iterable[Sequence[object]], right: str = "") -> str:
    """Lines of aligned columns, each cell on one line; `right` has an `r` for each column that is set to the right."""
    cells = [[literal(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [">" if side == "r" else "<" for side in right.ljust(len(widths))]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip() for row in cells
    )


def markdown(rows: Sequence[Row]) -> str:
    """A table in Markdown, the header first."""
    header, *body = [[literal(cell).replace("|", r"\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def named(measured: Measured, prefix: str = "") -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
    """Figures and intervals by name, for a JSON file: None where not defined.

    Args:
      measured: the figures.
      prefix: in front of the names.
    """
    values = {f"{prefix}{name}": _defined(value) for name, value in measured.values.items()}
    return values, {f"{prefix}{name}": [_defined(low), _defined(high)] for name, (low, high) in measured.intervals.items()}


def event_rows(measured: Measured) -> list[Row]:
    """A table of the collars, the header first; average precision only if it was measured (dense protocol)."""
    names = ["precision", "recall", "f1", "ap", "misses_per_episode", "false_alarms_per_episode", "false_alarms_per_1000_steps"]
    heads = ["precision", "recall", "F1", "AP", "misses/episode", "false alarms/episode", "/1,000 steps"]
    ranked = f"event/ap@{MAIN_COLLAR}" in measured.values
    columns = [(name, head) for name, head in zip(names, heads, strict=True) if ranked or name != "ap"]
    digits = {"misses_per_episode": 2, "false_alarms_per_episode": 2, "false_alarms_per_1000_steps": 1}
    rows = [("collar", *(head for _, head in columns))]
    for collar in COLLARS:
        rows.append((f"±{collar}", *(figure(measured, f"event/{name}@{collar}", digits.get(name, 3)) for name, _ in columns)))
    if ranked:
        rows.append(("mean", *(figure(measured, "event/ap_mean") if name == "ap" else "" for name, _ in columns)))
    return rows


def delay_row(measured: Measured) -> Row:
    """Name and figures of the signed delays of the pairs at the largest collar."""
    low, high = (_number(measured.values[f"event/delay_{name}"], 1, sign=True) for name in ("p10", "p90"))
    median, early = figure(measured, "event/delay_median", 1, sign=True), figure(measured, "event/early_share", 2)
    return "delay", f"median {median} steps, 10 % {low}, 90 % {high}; share early {early} (pairs at ±{COLLARS[-1]}; + is late)"


def frame_rows(measured: Measured) -> list[Row]:
    """Names and figures of the frames."""
    return [
        (
            "frame average precision",
            f"{figure(measured, 'frame/average_precision')} (share of ends {figure(measured, 'frame/share_of_ends')})",
        ),
        ("negative log likelihood", figure(measured, "frame/nll")),
        ("Brier score", figure(measured, "frame/brier", 4)),
        ("calibration error", figure(measured, "frame/ece", 4)),
    ]


def figure(measured: Measured, name: str, digits: int = 3, sign: bool = False) -> str:
    """A figure with its interval in brackets if there is one."""
    value = measured.values[name]
    if np.isnan(value) or name not in measured.intervals:
        return _number(value, digits, sign)
    low, high = measured.intervals[name]
    return f"{_number(value, digits, sign)} [{_number(low, digits, sign)}, {_number(high, digits, sign)}]"


def _number(value: float, digits: int, sign: bool = False) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


def comparison_rows(comparison: Comparison) -> list[Row]:
    """A table of the methods, the header first."""
    rows = [("method", "frame AP", f"event AP ±{MAIN_COLLAR}", f"F1 ±{MAIN_COLLAR}")]
    return rows + [(name, *(figure(each, name_of) for name_of in FIGURES)) for name, each in comparison.measured.items()]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """By method: the figures, and `intervals_95` by the same names; None where not defined."""
    parts = {name: named(each) for name, each in comparison.measured.items()}
    return {name: {**values, "intervals_95": intervals} for name, (values, intervals) in parts.items()}
