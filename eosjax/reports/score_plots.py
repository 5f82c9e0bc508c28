"""Plots of scores: what they find at every threshold, when it fires, and whether the scores are probabilities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eosjax.ends.events import COLLARS, MAIN_COLLAR
from eosjax.ends.frame import Reliability, frame_curve
from eosjax.ends.ranking import Curve
from eosjax.reports.plots import AMBER, BLUE, CARD, PALE, RULE, SOFT, add_tooltip, new_figure, style
from eosjax.reports.survey import Histogram

_WIDTH, _HEIGHT = 340, 240  # of a chart in a page
COLLAR_COLOURS: dict[int, str] = dict(zip(COLLARS, (PALE, BLUE, AMBER, SOFT), strict=True))
Curves = Mapping[int, Curve]  # of events, by collar


@style()
def event_precision_recall(curves: Curves, threshold: float) -> Figure:
    """Precision against recall of events, a curve a collar, a dot at the threshold."""
    figure, axes = _chart("recall", "precision")
    for collar, curve in curves.items():
        _curve(axes, collar, curve.recall, curve.precision, _place(curve, threshold))
    return figure


@style()
def event_f1(curves: Curves, threshold: float) -> Figure:
    """F1 of events against the threshold, a curve a collar, a dot at the threshold in use."""
    figure, axes = _chart("threshold", "F1")
    for collar, curve in curves.items():
        axes.plot(curve.thresholds, curve.f1, color=COLLAR_COLOURS[collar])
        place = _place(curve, threshold)
        if place is not None:
            _dot(axes, collar, threshold, curve.f1[place])
    return figure


@style()
def event_errors(curves: Curves, threshold: float, episodes: int, most_false_alarms: float) -> Figure:
    """False alarms an episode against misses an episode as the threshold moves, a curve a collar, a dot at the threshold.

    Args:
      curves: by collar.
      threshold: in use.
      episodes: that the curves are of.
      most_false_alarms: what the axis has room for at least; curves are cut off at twice as many as there are ends if that is more.
    """
    ends = next(iter(curves.values())).positives
    most_misses = ends / episodes or 1.0
    figure, axes = _chart("misses in an episode", "false alarms in an episode", most_misses, max(2 * most_misses, most_false_alarms, 1.0))
    for collar, curve in curves.items():
        misses, false_alarms = (ends - curve.hits) / episodes, (curve.fired - curve.hits) / episodes
        _curve(axes, collar, misses, false_alarms, _place(curve, threshold))
    return figure


@style()
def reliability(bins: Reliability) -> Figure:
    """The share of ends against the score, a dot a bin; on the dashed line scores are probabilities."""
    end = min(1.0, 1.1 * float(max(bins.said.max(), bins.came.max(), 0.01)))
    figure, axes = _chart("score", "share of ends", end, end)
    axes.plot([0, end], [0, end], color=SOFT, lw=1, ls=(0, (4, 4)))
    axes.plot(bins.said, bins.came, color=BLUE)
    for said, came, steps in zip(bins.said.tolist(), bins.came.tolist(), bins.steps.tolist(), strict=True):
        (dot,) = axes.plot(said, came, "o", color=BLUE, markeredgecolor=CARD, ms=7, clip_on=False)
        add_tooltip(dot, f"{steps:g} steps: said {said:.3f}, came {came:.3f}")
    return figure


@style()
def histogram(values: Histogram, unit: str) -> Figure:
    """How often whole numbers fall into bins, a bar a bin."""
    height = 180
    figure = new_figure(_WIDTH, height)
    axes = figure.add_axes((50 / _WIDTH, 44 / height, 276 / _WIDTH, 124 / height))
    left, right = np.array(values.edges[:-1]), np.array(values.edges[1:])
    for bar, low, high, count in zip(
        axes.bar(left, values.counts, 0.94 * (right - left), align="edge", color=BLUE), left, right - 1, values.counts, strict=True
    ):
        add_tooltip(bar, f"{low if low == high else f'{low} to {high}'} {unit}: {count}")
    axes.set(xlim=(left[0], right[-1]), xlabel=unit, ylim=(0, max(values.counts)))
    axes.set_xticks([values.edges[0], values.edges[len(values.counts) // 2], values.edges[-1]])
    axes.set_yticks([0, max(values.counts)])
    return figure


@style()
def frame_precision_recall(ends: np.ndarray, scores: Mapping[str, np.ndarray]) -> Figure:
    """Precision against recall of single steps, a curve a method.

    Args:
      ends: bool [n], truth.
      scores: f64 [n] by name of the method; the first one is drawn in front.
    """
    figure = new_figure(860, 420, layout="constrained")
    axes = figure.add_subplot()
    lines, names = [], []
    for order, (name, values) in enumerate(scores.items()):
        curve = frame_curve(ends, values)
        recall, precision = np.append(0.0, curve.recall), np.append(curve.precision[:1], curve.precision)
        lines += axes.plot(recall, precision, lw=2.6 if order == 0 else 1.4, zorder=10 - order, drawstyle="steps-pre")
        names.append(f"{name} ({curve.average_precision(interpolated=False):.2f})")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Ends of sub-steps, step by step")
    axes.grid(color=RULE, lw=0.8)
    figure.legend(lines, names, title="average precision", fontsize=9, title_fontsize=9, loc="outside right upper")
    return figure


def _chart(x_name: str, y_name: str, x_end: float = 1.0, y_end: float = 1.0) -> tuple[Figure, Axes]:
    """A figure with axes that begin at 0 and have a number at their middle and their end."""
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.add_axes((50 / _WIDTH, 44 / _HEIGHT, 276 / _WIDTH, 184 / _HEIGHT))
    axes.set(xlim=(0, x_end), ylim=(0, y_end), xlabel=x_name, ylabel=y_name)
    axes.set_xticks([0, x_end / 2, x_end], [f"{value:.2g}" for value in (0, x_end / 2, x_end)])
    axes.set_yticks([0, y_end / 2, y_end], [f"{value:.2g}" for value in (0, y_end / 2, y_end)])
    axes.grid(color=RULE, lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _place(curve: Curve, threshold: float) -> int | None:
    """Where in a curve the last score stands that still fires; None if nothing does."""
    place = int(np.searchsorted(-curve.thresholds, -threshold, side="right")) - 1
    return place if place >= 0 else None


def _curve(axes: Axes, collar: int, x: np.ndarray, y: np.ndarray, place: int | None) -> None:
    axes.plot(x, y, color=COLLAR_COLOURS[collar], zorder=3 if collar == MAIN_COLLAR else 2)
    if place is not None:
        _dot(axes, collar, x[place], y[place])


def _dot(axes: Axes, collar: int, x: float, y: float) -> None:
    (dot,) = axes.plot(x, y, "o", color=COLLAR_COLOURS[collar], markeredgecolor=CARD, ms=8, zorder=4, clip_on=False)
    add_tooltip(dot, f"±{collar} steps: {x:.3g}, {y:.3g}")
