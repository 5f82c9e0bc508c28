"""What a run of the benchmark reports: rows, written as they come, and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROWS, TABLES = "rows.jsonl", "tables.md"
SECTIONS = {
    "device": "Device",
    "check": "Correctness",
    "speed": "Speed and memory of an update",
    "eos": "Share of the EOS part, and inference",
    "buffer": "Buffer alone",
    "goal": "Goals",
}
Figure = float | int | str | None


class Row(NamedTuple):
    """One line of a table."""

    section: str  # a key of `SECTIONS`
    name: str
    figures: dict[str, Figure]
    ok: bool | None = None  # whether a check passed or a goal is reached; None of what can do neither
    note: str = ""


def check(name: str, figures: Mapping[str, float], limits: Mapping[str, float] | float, note: str = "") -> Row:
    """The row of a check: passed if each figure is a number no larger than its limit, or than the limit of all."""
    if not isinstance(limits, Mapping):
        limits = dict.fromkeys(figures, limits)
    passed = all(value <= limits[what] for what, value in figures.items())  # False for NaN, too
    shown: dict[str, Figure] = {what: f"{value:.3g} (at most {limits[what]:.3g})" for what, value in figures.items()}
    return Row("check", name, shown, passed, note)


def differing(one: dict[str, int], other: dict[str, int]) -> int:
    """How many arrays do not have the same fingerprint."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


class Rows:
    """The rows in a folder. Several processes may write, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def clear(self) -> None:
        """Starts anew."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / ROWS).write_text("", encoding="utf-8")

    def add(self, row: Row) -> None:
        """Appends a row to the file, makes the tables again, and prints the row."""
        with open(self._folder / ROWS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row._asdict()) + "\n")
        (self._folder / TABLES).write_text(tables(self.read()), encoding="utf-8")
        print(f"{row.section} | {row.name} | {' | '.join(_cells(row, row.figures))}", flush=True)

    def read(self) -> list[Row]:
        """All rows so far."""
        return [Row(**json.loads(line)) for line in (self._folder / ROWS).read_text(encoding="utf-8").splitlines()]


def failed(rows: Iterable[Row]) -> list[Row]:
    """Checks that did not pass. A goal that is not reached is none."""
    return [row for row in rows if row.ok is False and row.section != "goal"]


def tables(rows: Iterable[Row]) -> str:
    """A Markdown table a section."""
    by_section: dict[str, list[Row]] = {}
    for row in rows:
        by_section.setdefault(row.section, []).append(row)
    return "\n".join(_table(SECTIONS[section], by_section[section]) for section in SECTIONS if section in by_section)


def _table(title: str, rows: list[Row]) -> str:
    if rows[0].section == "check":  # each has figures of its own
        header = ["check", "figures", "result", "note"]
        lines = [[row.name, "; ".join(f"{what} {value}" for what, value in row.figures.items()), *_cells(row, ())] for row in rows]
    else:
        columns = list(dict.fromkeys(what for row in rows for what in row.figures))
        header = [rows[0].section, *columns, "result", "note"]
        lines = [[row.name, *_cells(row, columns)] for row in rows]
    return "\n".join([f"## {title}\n", *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))]) + "\n"


def _cells(row: Row, columns: Iterable[str]) -> list[str]:
    return [*(_shown(row.figures.get(what)) for what in columns), {True: "ok", False: "FAILED", None: ""}[row.ok], row.note]


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
