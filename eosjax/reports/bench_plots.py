"""Curves of the bench: of heads over their updates, and of policies over their training; lines are means over seeds, bands all seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from eosjax.config import METRICS_FILE
from eosjax.ends.events import MAIN_COLLAR
from eosjax.reports.plots import INK, RULE, new_figure, style

_PANELS = (("frame_ap", "frame average precision"), ("event_f1", f"best event F1 ±{MAIN_COLLAR}"))
_CURVES = (
    ("action loss", ("train/action_loss", "val/action_loss")),
    ("EOS loss on drawn rows", ("train/eos_loss",)),
    ("event F1 within 2 steps, held-out episodes", ("val/event/f1@2", "val/deployed/event/f1@2")),
)


@style()
def head_curves(columns: Mapping[str, Sequence[Mapping[str, Any]]], reference: str) -> Figure:
    """How well heads tell ends on the validation episodes: a row for each figure.

    Args:
      columns: by title, results as `eosjax.bench.sweep.run_method` returns them.
      reference: the method that is drawn in black.
    """
    figure = new_figure(1000, 660, layout="constrained")
    axes = figure.subplots(len(_PANELS), len(columns), sharex=True, sharey="row", squeeze=False)
    for column, (title, shown) in enumerate(columns.items()):
        for row, (name, label) in enumerate(_PANELS):
            _draw(axes[row, column], shown, name, reference)
            axes[row, column].set(ylabel=label if column == 0 else "", title=title if row == 0 else "")
            axes[row, column].grid(color=RULE, lw=0.8)
        axes[-1, column].set_xlabel("updates of the head")
        if shown:
            axes[-1, column].legend(fontsize=9, loc="lower right")
    figure.suptitle("Validation episodes; lines are means over seeds, bands reach from the lowest to the highest seed")
    return figure


def _draw(axes: Any, results: Sequence[Mapping[str, Any]], name: str, reference: str) -> None:
    colours = matplotlib.colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    others = 0
    for each in results:
        is_reference = each["method"] == reference
        colour = INK if is_reference else colours[others % len(colours)]
        others += not is_reference
        updates, seeds = each["curve"]["updates"], np.array(each["curve"][name])
        axes.plot(
            updates, seeds.mean(0), color=colour, lw=2.2 if is_reference else 1.4, label=each["title"], zorder=3 if is_reference else 2
        )
        axes.fill_between(updates, seeds.min(0), seeds.max(0), color=colour, alpha=0.12, lw=0)


@style()
def policy_curves(runs: Sequence[Path], title: str) -> Figure:
    """The losses and event F1 over training: mean over the runs, and the band between the lowest and the highest.

    Args:
      runs: folders of runs that differ in their seed only.
      title: above the plots.
    """
    rows = [[json.loads(line) for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()] for run in runs]
    figure = new_figure(1100, 330, layout="constrained")
    for axes, (what, names) in zip(figure.subplots(1, len(_CURVES)), _CURVES, strict=True):
        for name in names:
            steps, values = _curve(rows, name)
            axes.plot(steps, values.mean(0), lw=1.8, label=name)
            axes.fill_between(steps, values.min(0), values.max(0), alpha=0.25)
        axes.set(title=what, xlabel="update", ylim=(0, None))
        axes.legend(fontsize=9)
    figure.suptitle(f"{title}: mean and range of {len(runs)} seed(s)")
    return figure


def _curve(runs: Sequence[Sequence[Mapping[str, float]]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps i64 [n] and values f64 [runs, n] of a column, where it is defined in every run."""
    found = [{int(row["step"]): float(row[name]) for row in rows if row.get(name) is not None} for rows in runs]
    steps = sorted(set.intersection(*(set(each) for each in found)))
    return np.array(steps), np.array([[each[step] for step in steps] for each in found])
