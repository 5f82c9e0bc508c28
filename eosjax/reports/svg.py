"""Small charts as inline SVG; colours and fonts come from the style sheet of the page (classes `bar`, `line`, `band`, …)."""

from __future__ import annotations

from html import escape

import numpy as np

from eosjax.reports.episode_view import EpisodeView
from eosjax.reports.survey import Histogram

_WIDTH, _LEFT, _RIGHT = 1000, 46, 986  # of the timeline: its width, and where step 0 begins and the last one ends


def histogram(values: Histogram, unit: str, title: str) -> str:
    """A bar chart of a histogram, 420 x 170."""
    width, height, left, bottom = 420, 170, 40, 34
    top = max(values.counts)
    step = (width - left - 8) / len(values.counts)
    tall = height - bottom - 14
    bars = []
    for number, count in enumerate(values.counts):
        low, high = values.edges[number], values.edges[number + 1] - 1
        bar = tall * count / top
        span = f"{low}" if low == high else f"{low} to {high}"
        bars.append(
            f'<rect class="bar" x="{left + number * step:.1f}" y="{height - bottom - bar:.1f}" width="{max(step - 1.5, 1):.1f}" '
            f'height="{bar:.1f}"><title>{span} {escape(unit)}: {count}</title></rect>'
        )
    middle = len(values.counts) // 2
    ticks = {0: "start", middle: "middle", len(values.counts): "end"}
    labels = "".join(text(left + at * step, height - bottom + 15, str(values.edges[at]), anchor) for at, anchor in ticks.items())
    axis = line(left, height - bottom, width - 8, height - bottom, "axis")
    names = text(left - 6, 20, f"{top}", "end") + text(left - 6, height - bottom, "0", "end") + text(width / 2, height - 3, unit, "middle")
    return drawing(width, height, title, axis + "".join(bars) + labels + names)


def timeline(view: EpisodeView) -> str:
    """An episode over its steps: bands of the sub-steps, the speed of the hand, the gripper command, and a line at each end."""
    height, chart_top, chart_bottom, grip_top, grip_bottom = 236, 40, 160, 176, 204
    steps = len(view.gripper)
    scale = (_RIGHT - _LEFT) / max(steps, 1)

    def x(step: float) -> float:
        return _LEFT + step * scale

    parts = []
    for number, substep in enumerate(view.substeps):
        begin, end = x(substep.first), x(substep.last + 1)
        name = f"{number + 1}. {substep.instruction}: steps {substep.first} to {substep.last}"
        parts.append(
            f'<rect class="band band{number % 2}" x="{begin:.1f}" y="{chart_top - 14}" width="{end - begin:.1f}" '
            f'height="{grip_bottom - chart_top + 14}"><title>{escape(name)}</title></rect>'
        )
        parts.append(text((begin + end) / 2, chart_top - 2, str(number + 1), "middle", "number"))
    fastest = max(float(view.speed.max(initial=0.0)), 1e-9)
    heights = chart_bottom - (chart_bottom - chart_top - 6) * view.speed / fastest
    parts += [line(_LEFT, chart_bottom, _RIGHT, chart_bottom, "axis"), polyline([x(t + 0.5) for t in range(steps)], heights)]
    command = np.clip(view.gripper, 0.0, 1.0)
    levels = np.repeat(grip_bottom - (grip_bottom - grip_top) * command, 2)
    corners = [x(edge) for t in range(steps) for edge in (t, t + 1)]
    parts += [line(_LEFT, grip_bottom, _RIGHT, grip_bottom, "axis"), polyline(corners, levels, "line grip")]
    for substep in view.substeps:
        if substep.is_end:
            at = x(substep.last + 0.5)
            parts.append(line(at, chart_top - 14, at, grip_bottom, "end"))
            parts.append(text(at, chart_top - 20, str(substep.last), "middle", "endlabel"))
    parts += [
        text(_LEFT - 6, chart_top + 8, f"{fastest:.2g}", "end"),
        text(_LEFT - 6, chart_bottom, "0", "end"),
        text(_LEFT - 6, grip_top + 8, "open", "end"),
        text(_LEFT - 6, grip_bottom, "closed", "end"),
        *(text(x(step), height - 14, str(step), "middle") for step in ticks(steps)),
        text(_LEFT - 12, height - 14, "step", "end"),
    ]
    return drawing(_WIDTH, height, f"speed of the hand and gripper command in episode {view.episode}", "".join(parts))


def ticks(steps: int) -> range:
    """At most thirteen round numbers from 0 on, below `steps`."""
    every = next(size for size in (5, 10, 20, 25, 50, 100, 200, 500, 1000, 5000, steps + 1) if steps / size <= 12 or size > steps)
    return range(0, steps, every)


def polyline(xs: list[float], ys: np.ndarray, kind: str = "line") -> str:
    """A line through points, in the units of the drawing."""
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys.tolist(), strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line between two points."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    """A text whose `anchor` (start, middle, end) is at a point."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def drawing(width: float, height: float, title: str, body: str) -> str:
    """The SVG element round the parts."""
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'


def dot(x: float, y: float, radius: float, kind: str, title: str = "") -> str:
    """A filled circle, with a text for when it is pointed at."""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{_title(title)}</circle>'


def box(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    """A filled rectangle, with a text for when it is pointed at."""
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">{_title(title)}</rect>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
