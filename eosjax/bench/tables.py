"""The results of a comparison as tables: for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eosjax.ends.events import MAIN_COLLAR

Result = Mapping[str, Any]  # as `sweep.run_method` returns it
_F1, _AP = f"event/f1@{MAIN_COLLAR}", f"event/ap@{MAIN_COLLAR}"
_QUALITY = (
    (f"F1 ±{MAIN_COLLAR}", _F1, 3),
    ("deployed F1", f"deployed/{_F1}", 3),
    (f"AP ±{MAIN_COLLAR}", _AP, 3),
    ("mean AP", "event/ap_mean", 3),
    ("frame AP", "frame/average_precision", 3),
    ("NLL exact", "exact/frame/nll", 4),
    ("NLL fitted", "frame/nll", 4),
    ("ECE exact", "exact/frame/ece", 4),
    ("ECE fitted", "frame/ece", 4),
)
_TRAINING = (
    ("updates to 90 %", "train/updates_to_90", 0),
    ("share updated", "train/update_share", 2),
    ("first update", "train/first_update", 1),
    ("uses of an end", "train/uses_per_positive", 2),
    ("age of ends", "train/age_positive", 1),
    ("age of others", "train/age_negative", 1),
    ("class from age", "train/class_from_age", 2),
    ("age from states", "train/age_from_hidden", 2),
    ("loss fresh", "train/loss_fresh", 3),
    ("loss buffered", "train/loss_buffered", 3),
)
_WITH_INTERVAL = (_F1, _AP)
Rows = list[tuple[str, ...]]


def quality(results: Sequence[Result], rules: Mapping[str, Result]) -> Rows:
    """How well the heads and the rules do on the test episodes, the header first: mean ± spread over seeds [95 % over episodes]."""
    rows: Rows = [("method", "learning rate", *(title for title, _, _ in _QUALITY))]
    for each in sorted(results, key=lambda result: -_number(result["mean"][_F1])):
        rows.append((each["title"], f"{each['learning_rate']:g}", *(_cell(each, name, digits) for _, name, digits in _QUALITY)))
    for title, each in sorted(rules.items(), key=lambda item: -_number(item[1]["mean"][_F1])):
        rows.append((title, "", *(_cell(each, name, digits) for _, name, digits in _QUALITY)))
    return rows


def training(results: Sequence[Result]) -> Rows:
    """What the methods did to get there, the header first: means over seeds."""
    rows: Rows = [("method", *(title for title, _, _ in _TRAINING))]
    for each in results:
        rows.append((each["title"], *(_plain(each["mean"][name], digits) for _, name, digits in _TRAINING)))
    return rows


def markdown(rows: Rows) -> str:
    """A table in Markdown."""
    header, *body = rows
    lines = [header, ("---",) * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(result: Result, name: str, digits: int) -> str:
    value = result["mean"].get(name)
    if _missing(value):
        return "–"
    text = _plain(value, digits)
    spread = result.get("spread", {}).get(name)
    if not _missing(spread):
        text += f" ± {spread:.{digits}f}"
    low, high = result["intervals"].get(name, (None, None))
    if name in _WITH_INTERVAL and not (_missing(low) or _missing(high)):
        text += f" [{low:.2f}, {high:.2f}]"
    return text


def _plain(value: float | None, digits: int) -> str:
    return "–" if _missing(value) else f"{value:,.{digits}f}"


def _number(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)
