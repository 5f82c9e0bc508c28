"""Plots for a person: precision against recall, and what the head says along an episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from eosjax.ends.frame import average_precision


def plot_precision_recall(path: Path, ends: np.ndarray, scores: Mapping[str, np.ndarray]) -> None:
    """Writes a PNG with one precision-recall curve a method.

    Args:
      path: file to write.
      ends: bool [n], truth.
      scores: f64 [n] by name of the method; the first one is drawn in front.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for order, (name, values) in enumerate(scores.items()):
        precision, recall, _ = precision_recall_curve(ends, values)
        label = f"{name} ({average_precision(ends, values):.2f})"
        axes.step(recall, precision, where="post", label=label, lw=2.5 if order == 0 else 1.2, zorder=10 - order)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Ends of sub-steps, frame by frame")
    axes.legend(title="average precision", fontsize="small")
    _save(figure, path)


def plot_timeline(
    path: Path, title: str, probability: np.ndarray, ends: np.ndarray, instructions: Sequence[str], pictures: Sequence[np.ndarray]
) -> None:
    """Writes a PNG of one episode: the probability of an end over its steps, the true ends, and what the camera saw at each.

    Args:
      path: file to write.
      title: above the plot.
      probability: f64 [t], corrected.
      ends: bool [t].
      instructions: t instructions, each the running sub-step's.
      pictures: u8 [h w 3], one for each end, in order.
    """
    where: list[int] = np.flatnonzero(ends).tolist()
    columns = max(len(where), 1)
    figure = Figure(figsize=(max(7, 2.2 * columns), 5), layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=[1, 1.6])
    top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    for column, (step, picture) in enumerate(zip(where, pictures, strict=True)):
        axes = top.add_subplot(1, columns, column + 1)
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(f"step {step}", fontsize="small")
    axes = bottom.add_subplot()
    axes.plot(probability, lw=1.5, label="probability of an end")
    for number, step in enumerate(where):
        axes.axvline(step, color="tab:red", ls="--", lw=1, label="true end" if number == 0 else None)
    begins = [0, *(step + 1 for step in where)]
    for number, (first, last) in enumerate(zip(begins, [*where, len(ends) - 1], strict=True)):
        if first <= last:
            axes.axvspan(first, last, color="tab:blue", alpha=0.04 + 0.06 * (number % 2))
            middle, above = (first + last) / 2, axes.get_xaxis_transform()
            axes.text(middle, 1.02, instructions[first], transform=above, ha="center", va="bottom", fontsize=7, rotation=12)
    axes.set(xlabel="control step", ylim=(0, max(0.05, 1.15 * float(probability.max()))), xlim=(0, len(ends)))
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)  # never over the curve
    figure.suptitle(title)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(str(path))
