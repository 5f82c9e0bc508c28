"""Tables of the bench: of heads that were trained on cached hidden states, and of policies that were trained with their heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eosjax.ends.comparison import HEAD
from eosjax.ends.events import MAIN_COLLAR
from eosjax.reports.tables import Row

Result = Mapping[str, Any]  # of a head, as `eosjax.bench.sweep.run_method` returns it
PolicyResults = Mapping[str, Sequence[Mapping[str, Any]]]  # of `eosjax.bench.full.look`, by method, one a seed
_F1, _AP = f"event/f1@{MAIN_COLLAR}", f"event/ap@{MAIN_COLLAR}"
HEAD_QUALITY = (
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
HEAD_TRAINING = (
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
POLICY_QUALITY = (
    ("event AP ±2", "event/ap@2"),
    ("F1 ±2", "event/f1@2"),
    ("frame AP", "frame/average_precision"),
    ("deployed F1 ±2", "deployed/event/f1@2"),
    ("NLL, exact", "exact/frame/nll"),
    ("NLL, fitted", "fitted/frame/nll"),
    ("ECE, exact", "exact/frame/ece"),
    ("ECE, fitted", "fitted/frame/ece"),
    ("action loss", "val/action_loss"),
)
BUFFER = (
    ("age of ends", "age_positive"),
    ("age of others", "age_negative"),
    ("class from age", "class_from_age"),
    ("age from hidden", "age_from_hidden"),
    ("drift, ends", "drift_positive"),
    ("drift, others", "drift_negative"),
    ("loss, buffered", "loss_buffered"),
    ("loss, fresh", "loss_fresh"),
)
_WITH_INTERVAL = (_F1, _AP)


def head_quality(results: Sequence[Result], baselines: Mapping[str, Result]) -> list[Row]:
    """How well heads and baselines without images do on the test episodes, the header first.

    A cell is mean ± spread over seeds [95 % interval over episodes]; the best event F1 comes first.
    """
    rows: list[Row] = [("method", "learning rate", *(title for title, _, _ in HEAD_QUALITY))]
    for each in sorted(results, key=lambda result: -_number(result["mean"][_F1])):
        rows.append((each["title"], f"{each['learning_rate']:g}", *(_cell(each, name, digits) for _, name, digits in HEAD_QUALITY)))
    for title, each in sorted(baselines.items(), key=lambda item: -_number(item[1]["mean"][_F1])):
        rows.append((title, "", *(_cell(each, name, digits) for _, name, digits in HEAD_QUALITY)))
    return rows


def head_training(results: Sequence[Result]) -> list[Row]:
    """What the methods did to get there, the header first: means over seeds."""
    rows: list[Row] = [("method", *(title for title, _, _ in HEAD_TRAINING))]
    for each in results:
        rows.append((each["title"], *(_plain(each["mean"][name], digits) for _, name, digits in HEAD_TRAINING)))
    return rows


def edge_of_grid(results: Sequence[Result], rates: Sequence[float]) -> list[str]:
    """Lines that name the methods whose best learning rate is the lowest or the highest of the grid; none of those trained by mistake."""
    edge = [each["title"] for each in results if each["learning_rate"] in (min(rates), max(rates)) and each["method"] != "detached"]
    return [f"learning rate at an edge of the grid: {', '.join(edge)}"] if edge else []


def policy_quality(results: PolicyResults, reference: str) -> list[Row]:
    """A row for each method, then one for each baseline without images, the header first; mean ± standard deviation over the seeds.

    With the reference among the methods the last column has the difference from it. A seed chooses the held-out episodes and the
    weights at the start of all methods, so that differences of the same seed do not depend on how hard its episodes are.

    Args:
      results: by method.
      reference: the method that the others are compared with.
    """
    figures = {method: [each["held_out"][HEAD] for each in seeds] for method, seeds in results.items()}
    first = next(iter(results.values()))
    baselines = {name: [each["held_out"][name] for each in first] for name in first[0]["held_out"] if name != HEAD}
    columns = list(POLICY_QUALITY)
    if reference in figures:
        key, title = POLICY_QUALITY[0][1], f"{POLICY_QUALITY[0][0]} above {reference}, seed by seed"
        for method, seeds in figures.items():
            if method != reference:
                pairs = zip(seeds, figures[reference], strict=True)
                figures[method] = [{**each, title: _difference(each[key], other[key])} for each, other in pairs]
        columns.append((title, title))
    return _rows({**figures, **baselines}, columns, first="method")


def _difference(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def buffer_rows(results: PolicyResults) -> list[Row]:
    """Two rows for each method with a buffer, at half time and at the end, the header first; ages in updates."""
    rows = {
        f"{method}, {when}": [each["buffer"][when] for each in seeds]
        for method, seeds in results.items()
        if "buffer" in seeds[0]
        for when in ("half", "end")
    }
    return _rows(rows, BUFFER, first="method, when")


def _rows(seeds_of: Mapping[str, Sequence[Mapping[str, float | None]]], columns: Sequence[tuple[str, str]], first: str) -> list[Row]:
    header = (first, *(head for head, _ in columns))
    return [header, *((name, *(_spread([seed.get(key) for seed in seeds]) for _, key in columns)) for name, seeds in seeds_of.items())]


def _spread(values: Sequence[float | None]) -> str:
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    if np.isnan(numbers).all():
        return "–"
    digits = 1 if np.nanmax(np.abs(numbers)) >= 10 else 3
    spread = f" ± {np.nanstd(numbers, ddof=1):.{digits}f}" if np.isfinite(numbers).sum() > 1 else ""
    return f"{np.nanmean(numbers):.{digits}f}{spread}"


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
