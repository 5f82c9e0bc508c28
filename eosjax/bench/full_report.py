"""Tables and curves of the full path."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from eosjax.bench import tables
from eosjax.config import METRICS_FILE
from eosjax.ends.comparison import HEAD

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # of `full.look`, by method, one a seed

HELD_OUT = (
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
REFERENCE = "plain BCE"
PAIRED = ("event/ap@2", "event AP ±2 above plain BCE, seed by seed")
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
CURVES = (
    ("action loss", ("train/action_loss", "val/action_loss")),
    ("EOS loss on drawn rows", ("train/eos_loss",)),
    ("event F1 within 2 steps, held-out episodes", ("val/event/f1@2", "val/deployed/event/f1@2")),
)


def held_out_table(results: Results) -> str:
    """Markdown: a row for each method, then one for each rule that does not look; mean ± standard deviation over the seeds.

    With the reference among the methods the last column has the difference from it. A seed chooses the held-out episodes and the
    weights at the start of all methods, so that differences of the same seed do not depend on how hard its episodes are.
    """
    figures = {method: [each["held_out"][HEAD] for each in seeds] for method, seeds in results.items()}
    first = next(iter(results.values()))
    rules = {name: [each["held_out"][name] for each in first] for name in first[0]["held_out"] if name != HEAD}
    columns = list(HELD_OUT)
    if REFERENCE in figures:
        key, title = PAIRED
        for method, seeds in figures.items():
            if method != REFERENCE:
                figures[method] = [
                    {**each, title: _difference(each[key], at[key])} for each, at in zip(seeds, figures[REFERENCE], strict=True)
                ]
        columns.append((title, title))
    return _table({**figures, **rules}, columns, first="method")


def _difference(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def buffer_table(results: Results) -> str:
    """Markdown: two rows for each method with a buffer, at half time and at the end; ages in updates."""
    rows = {
        f"{method}, {when}": [each["buffer"][when] for each in seeds]
        for method, seeds in results.items()
        if "buffer" in seeds[0]
        for when in ("half", "end")
    }
    return _table(rows, BUFFER, first="method, when")


def _table(rows: Mapping[str, Sequence[Mapping[str, float | None]]], columns: Sequence[tuple[str, str]], first: str) -> str:
    body = [(name, *(_spread([seed.get(key) for seed in seeds]) for _, key in columns)) for name, seeds in rows.items()]
    return tables.markdown([(first, *(head for head, _ in columns)), *body])


def _spread(values: Sequence[float | None]) -> str:
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    if np.isnan(numbers).all():
        return "–"
    digits = 1 if np.nanmax(np.abs(numbers)) >= 10 else 3
    spread = f" ± {np.nanstd(numbers, ddof=1):.{digits}f}" if np.isfinite(numbers).sum() > 1 else ""
    return f"{np.nanmean(numbers):.{digits}f}{spread}"


def curves(runs: Sequence[Path], title: str) -> Figure:
    """The losses and event F1 over training: mean over the runs, and the band between the lowest and the highest.

    Args:
      runs: folders of runs that differ in their seed only.
      title: above the plots.
    """
    rows = [[json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()] for run in runs]
    figure = Figure(figsize=(14, 4), layout="constrained")
    for axes, (what, names) in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for name in names:
            steps, values = _curve(rows, name)
            axes.plot(steps, values.mean(0), lw=1.8, label=name)
            axes.fill_between(steps, values.min(0), values.max(0), alpha=0.25)
        axes.set(title=what, xlabel="update", ylim=(0, None))
        axes.legend(fontsize="small")
    figure.suptitle(f"{title}: mean and range of {len(runs)} seed(s)")
    return figure


def _curve(runs: Sequence[Sequence[Mapping[str, float]]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps i64 [n] and values f64 [runs, n] of a column, where it is defined in every run."""
    found = [{int(row["step"]): float(row[name]) for row in rows if row.get(name) is not None} for rows in runs]
    steps = sorted(set.intersection(*(set(each) for each in found)))
    return np.array(steps), np.array([[each[step] for step in steps] for each in found])
