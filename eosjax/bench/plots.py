"""Curves of a comparison: how well the heads tell ends on the validation episodes, over the updates, with a band of all seeds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eosjax.bench.methods import REFERENCE
from eosjax.ends.events import MAIN_COLLAR

_PANELS = (("frame_ap", "frame average precision"), ("event_f1", f"best event F1 ±{MAIN_COLLAR}"))


def curves(results: Sequence[dict[str, Any]]) -> Figure:
    """A row for each figure; on the left what learns from fresh rows, on the right what keeps rows. The reference is in both.

    Args:
      results: as `sweep.run_method` returns them.
    """
    keeps = [_keeps_rows(each["method"]) for each in results]
    columns = [
        ("without a memory", [each for each, kept in zip(results, keeps, strict=True) if not kept or each["method"] == REFERENCE]),
        ("with a memory", [each for each, kept in zip(results, keeps, strict=True) if kept]),
    ]
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(len(_PANELS), len(columns), sharex=True, sharey="row", squeeze=False)
    for column, (title, shown) in enumerate(columns):
        for row, (name, label) in enumerate(_PANELS):
            _draw(axes[row, column], shown, name)
            axes[row, column].set(ylabel=label if column == 0 else "", title=title if row == 0 else "")
            axes[row, column].grid(alpha=0.3)
        axes[-1, column].set_xlabel("updates of the head")
        if shown:
            axes[-1, column].legend(fontsize="small", loc="lower right")
    figure.suptitle("Validation episodes; lines are means over seeds, bands reach from the lowest to the highest seed")
    return figure


def encode(figure: Figure, kind: str) -> bytes:
    """The figure as a file, `png` or `svg`; the same bytes each time."""
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "eosjax"}):
        figure.savefig(file, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def _keeps_rows(method: str) -> bool:
    return method.startswith(("buffer", "draw", "emptied", "detached"))


def _draw(axes: Any, results: Sequence[dict[str, Any]], name: str) -> None:
    colours = matplotlib.colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    others = 0
    for each in results:
        reference = each["method"] == REFERENCE
        colour = "black" if reference else colours[others % len(colours)]
        others += not reference
        updates, seeds = each["curve"]["updates"], np.array(each["curve"][name])
        axes.plot(updates, seeds.mean(0), color=colour, lw=2.2 if reference else 1.4, label=each["title"], zorder=3 if reference else 2)
        axes.fill_between(updates, seeds.min(0), seeds.max(0), color=colour, alpha=0.12, lw=0)
