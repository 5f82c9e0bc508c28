"""Plots of single episodes over their steps: what a scorer says of the ends, and how the hand moves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eosjax.ends.closed_loop import Episode
from eosjax.ends.events import MAIN_COLLAR
from eosjax.reports.episode_view import EpisodeView
from eosjax.reports.evaluation import Shown
from eosjax.reports.plots import AMBER, BLUE, CARD, GOOD, RED, SOFT, add_tooltip, new_figure, style

_WIDTH = 1000  # of a timeline in a page
_LEFT, _RIGHT = 0.05, 0.985  # where its axes begin and end, as shares of it


@style()
def score_timeline(shown: Shown, threshold: float) -> Figure:
    """The score over the steps, the threshold, the true ends within their collar, and what fired: hits and false alarms.

    The scale ends a little above the highest score and the threshold: probabilities of rare ends are low.
    """
    figure = new_figure(_WIDTH, 210)
    axes = figure.add_axes((_LEFT, 0.22, _RIGHT - _LEFT, 0.65))
    scores, missed, false_alarms = shown.episode.scores, set(shown.misses.tolist()), set(shown.false_alarms.tolist())
    highest = min(_two_digits(1.1 * max(float(scores.max()), threshold, 0.01)), 1.0)
    axes.set(xlim=(-0.5, scores.size - 0.5), ylim=(0, highest), xlabel="step")
    axes.set_yticks([0, highest], ["0", f"{highest:.2g}"])
    for step in shown.episode.true.tolist():
        _end_line(axes, step, missed=step in missed)
        axes.text(step, 1.02, str(step), transform=axes.get_xaxis_transform(), color=RED, weight="bold", ha="center", va="bottom")
        collar = axes.axvspan(step - MAIN_COLLAR - 0.5, step + MAIN_COLLAR + 0.5, color=BLUE, alpha=0.16, lw=0)
        add_tooltip(collar, f"true end at {step}" + (", missed" if step in missed else ""))
    axes.axhline(threshold, color=SOFT, lw=1, ls=(0, (4, 4)))
    axes.plot(scores, color=BLUE)
    for step in shown.fired.tolist():
        is_false = step in false_alarms
        (dot,) = axes.plot(step, scores[step], "o", color=AMBER if is_false else GOOD, markeredgecolor=CARD, ms=8, clip_on=False, zorder=4)
        add_tooltip(dot, f"fired at {step}" + (", a false alarm" if is_false else ""))
    return figure


@style()
def motion_timeline(view: EpisodeView) -> Figure:
    """The speed of the hand above the gripper command, with bands of the numbered sub-steps and a line at each end."""
    steps = view.gripper.size
    figure = new_figure(_WIDTH, 250)
    top = figure.add_axes((_LEFT, 0.4, _RIGHT - _LEFT, 0.44))
    bottom = figure.add_axes((_LEFT, 0.19, _RIGHT - _LEFT, 0.14), sharex=top)
    fastest = max(float(view.speed.max(initial=0.0)), 1e-9)
    top.plot(np.arange(steps) + 0.5, view.speed, color=BLUE)
    top.set(xlim=(0, max(steps, 1)), ylim=(0, 1.05 * fastest))
    top.set_yticks([0, fastest], ["0", f"{fastest:.2g}"])
    top.tick_params(labelbottom=False, bottom=False)
    bottom.stairs(np.clip(view.gripper, 0.0, 1.0), np.arange(steps + 1), baseline=None, color=AMBER, lw=1.8)
    bottom.set(ylim=(-0.1, 1.1), xlabel="step")
    bottom.set_yticks([0, 1], ["closed", "open"])
    above = top.get_xaxis_transform()
    for number, substep in enumerate(view.substeps):
        first, last = substep.first, substep.last
        for axes in (top, bottom):
            band = axes.axvspan(first, last + 1, color=BLUE, alpha=0.07 + 0.1 * (number % 2), lw=0)
            add_tooltip(band, f"{number + 1}. {substep.instruction}: steps {first} to {last}")
            if substep.is_end:
                _end_line(axes, last + 0.5)
        top.text((first + last + 1) / 2, 1.02, str(number + 1), transform=above, weight="bold", ha="center", va="bottom")
        if substep.is_end:
            top.text(last + 0.5, 1.18, str(last), transform=above, color=RED, weight="bold", ha="center", va="bottom")
    return figure


@style()
def rollout_timeline(episode: Episode, threshold: float | None) -> Figure:
    """The probability of an end over the steps of a filmed episode, where the goal of the running sub-step held, and the switches."""
    film = episode.film
    assert film is not None
    figure = new_figure(_WIDTH, 210)
    axes = figure.add_axes((_LEFT, 0.22, _RIGHT - _LEFT, 0.65))
    known = film.eos[~np.isnan(film.eos)]
    highest = min(_two_digits(1.1 * max(float(known.max(initial=0.0)), threshold or 0.0, 0.01)), 1.0)
    axes.set(xlim=(-0.5, max(len(film.holds), 2) - 0.5), ylim=(0, highest), xlabel="step")
    axes.set_yticks([0, highest], ["0", f"{highest:.2g}"])
    for step in np.flatnonzero(film.holds).tolist():
        axes.axvspan(step - 0.5, step + 0.5, color=GOOD, alpha=0.2, lw=0)
    if threshold is not None:
        axes.axhline(threshold, color=SOFT, lw=1, ls=(0, (4, 4)))
    axes.plot(film.eos, color=BLUE)
    for switch in episode.trace.switches:
        colour = RED if switch.timed_out else AMBER if switch.held < 0 else GOOD
        line = axes.axvline(switch.step + 0.5, color=colour, lw=1.6)
        how = (
            "time-out" if switch.timed_out else "too early" if switch.held < 0 else f"{switch.step - switch.held} steps after the goal held"
        )
        add_tooltip(line, f"sub-step {switch.place + 1} ends at step {switch.step}: {how}")
        above = axes.get_xaxis_transform()
        axes.text(switch.step + 0.5, 1.02, str(switch.place + 1), transform=above, color=colour, weight="bold", ha="center", va="bottom")
    return figure


@style()
def picture_timeline(
    title: str, probability: np.ndarray, ends: np.ndarray, instructions: Sequence[str], pictures: Sequence[np.ndarray]
) -> Figure:
    """The probability of an end over the steps of an episode, the true ends, and what the camera saw at each.

    Args:
      title: above the plot.
      probability: f64 [t], corrected.
      ends: bool [t].
      instructions: t instructions, each the running sub-step's.
      pictures: u8 [h w 3], one for each end, in order.
    """
    where: list[int] = np.flatnonzero(ends).tolist()
    columns = max(len(where), 1)
    figure = new_figure(max(640, 180 * columns), 420, layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=[1, 1.6])
    top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    for column, (step, picture) in enumerate(zip(where, pictures, strict=True)):
        axes = top.add_subplot(1, columns, column + 1)
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(f"step {step}", fontsize=9)
    axes = bottom.add_subplot()
    axes.plot(probability, color=BLUE, lw=1.5, label="probability of an end")
    for number, step in enumerate(where):
        axes.axvline(step, color=RED, ls="--", lw=1, label="true end" if number == 0 else None)
    begins = [0, *(step + 1 for step in where)]
    for number, (first, last) in enumerate(zip(begins, [*where, len(ends) - 1], strict=True)):
        if first <= last:
            axes.axvspan(first, last, color=BLUE, alpha=0.04 + 0.06 * (number % 2))
            middle, above = (first + last) / 2, axes.get_xaxis_transform()
            axes.text(middle, 1.02, instructions[first], transform=above, ha="center", va="bottom", fontsize=8, rotation=12)
    axes.set(xlabel="control step", ylim=(0, max(0.05, 1.15 * float(probability.max()))), xlim=(0, len(ends)))
    bottom.legend(fontsize=9, loc="outside lower center", ncols=2)  # below the label of the axis, never over the curve
    figure.suptitle(title)
    return figure


def _end_line(axes: Axes, at: float, missed: bool = False) -> None:
    axes.axvline(at, color=RED, lw=1.6, ls=(0, (2, 2)) if missed else "-")


def _two_digits(value: float) -> float:
    """A positive number rounded up to two significant digits, so that the label of an axis is where it ends."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(round(value / unit, 9)) * unit
