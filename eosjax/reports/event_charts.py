"""Charts of a report about ends, on the parts of `eosjax.reports.svg`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eosjax.ends.events import MAIN_COLLAR
from eosjax.reports import svg
from eosjax.reports.evaluation import Shown

STYLE = """
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); }
.dot { stroke: var(--card); stroke-width: 1; }
.dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); } .dot.s3 { fill: var(--s3); }
:root { --s0: #9db8d6; --s1: #2f6fb7; --s2: #b36b00; --s3: #657184; }
@media (prefers-color-scheme: dark) { :root { --s0: #4a6b92; --s1: #74aef0; --s2: #f0b45a; --s3: #97a3b6; } }
.guide { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4; }
.collar { fill: var(--band1); } .pointed { fill: transparent; }
.hit { fill: var(--good); } .false { fill: var(--amber); } .missed { stroke-dasharray: 3 3; }
.legend .s0::before { color: var(--s0); } .legend .s1::before { color: var(--s1); }
.legend .s2::before { color: var(--s2); } .legend .s3::before { color: var(--s3); }
.legend .hits::before { color: var(--good); } .legend .alarms::before { color: var(--amber); }
"""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 280, 48, 410, 26, 238


class Series(NamedTuple):
    """A line, or dots."""

    x: np.ndarray
    y: np.ndarray
    kind: str  # s0 … s3, the colour
    dots: bool = False
    title: str = ""  # of a dot, when pointed at


def chart(
    title: str, x_name: str, y_name: str, series: Sequence[Series], x_end: float = 1.0, y_end: float = 1.0, diagonal: bool = False
) -> str:
    """Lines and dots over axes that begin at 0, 420 x 280. What lies beyond an axis is left out; a line is cut off there.

    Args:
      title: for those who cannot see it.
      x_name, y_name: of the axes.
      series: the last one in front.
      x_end, y_end: where the axes end.
      diagonal: a dashed line from 0, 0 to where both are equal.
    """

    def place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _LEFT + (_RIGHT - _LEFT) * x / x_end, _BOTTOM - (_BOTTOM - _TOP) * y / y_end

    parts = [svg.line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, "axis"), svg.line(_LEFT, _TOP, _LEFT, _BOTTOM, "axis")]
    for share, anchor in ((0.0, "middle"), (0.5, "middle"), (1.0, "end")):
        at_x, at_y = place(np.array(share * x_end), np.array(share * y_end))
        parts.append(svg.text(float(at_x), _BOTTOM + 16, f"{share * x_end:.2g}", anchor))
        parts.append(svg.text(_LEFT - 6, float(at_y) + 4, f"{share * y_end:.2g}", "end"))
    parts.append(svg.text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, x_name, "middle"))
    parts.append(svg.text(8, _TOP - 14, y_name, "start"))
    if diagonal:
        both = np.array([0.0, min(x_end, y_end)])
        xs, ys = place(both, both)
        parts.append(svg.line(xs[0], ys[0], xs[1], ys[1], "guide"))
    for each in series:
        inside = np.isfinite(each.x) & np.isfinite(each.y) & (each.x <= x_end) & (each.y <= y_end)
        xs, ys = place(each.x[inside], each.y[inside])
        if each.dots:
            parts += [svg.dot(x, y, 4.5, f"dot {each.kind}", each.title) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]
        elif xs.size:
            parts.append(svg.polyline(*_thinned(xs, ys), f"line {each.kind}"))
    return svg.drawing(_WIDTH, _HEIGHT, title, "".join(parts))


def _thinned(xs: np.ndarray, ys: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Without the points that would be drawn where the one before is: long curves have many."""
    rounded = np.round(np.stack([xs, ys]))
    new = np.any(np.diff(rounded, axis=1, prepend=-1) != 0, axis=0)
    return xs[new].tolist(), ys[new]


def _two_digits(value: float) -> float:
    """A positive number rounded up to two significant digits, so that the label of an axis is where it ends."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(round(value / unit, 9)) * unit


def timeline(shown: Shown, threshold: float) -> str:
    """An episode over its steps, 1000 x 200: the score, the threshold, the true ends within their collar, and what fired.

    The scale ends a little above the highest score and the threshold: probabilities of rare ends are low.
    """
    width, height, left, right, top, bottom = 1000, 200, 46, 986, 30, 164
    highest = min(_two_digits(1.1 * max(float(shown.episode.scores.max()), threshold, 0.01)), 1.0)
    steps = shown.episode.scores.size
    scale = (right - left) / steps

    def x(step: float) -> float:
        return left + (step + 0.5) * scale

    def y(score: float) -> float:
        return bottom - (bottom - top) * min(score / highest, 1.0)

    parts = [svg.line(left, bottom, right, bottom, "axis"), svg.line(left, y(threshold), right, y(threshold), "guide")]
    missed = set(shown.misses.tolist())
    for step in shown.episode.true.tolist():
        first, last = max(x(step - MAIN_COLLAR - 0.5), left), min(x(step + MAIN_COLLAR + 0.5), right)
        parts.append(svg.box(first, top, last - first, bottom - top, "collar"))
        name = f"true end at {step}" + (", missed" if step in missed else "")
        parts.append(svg.line(x(step), top, x(step), bottom, "end missed" if step in missed else "end"))
        parts.append(svg.text(x(step), top - 8, str(step), "middle", "endlabel"))
        parts.append(svg.box(first, top, last - first, bottom - top, "pointed", name))
    parts.append(svg.polyline([x(step) for step in range(steps)], np.array([y(score) for score in shown.episode.scores.tolist()])))
    false_alarms = set(shown.false_alarms.tolist())
    for step in shown.fired.tolist():
        name = f"fired at {step}" + (", a false alarm" if step in false_alarms else "")
        parts.append(svg.dot(x(step), y(float(shown.episode.scores[step])), 4.5, "false" if step in false_alarms else "hit", name))
    parts += [svg.text(left - 6, top + 8, f"{highest:.2g}", "end"), svg.text(left - 6, bottom, "0", "end")]
    parts += [svg.text(x(step), bottom + 18, str(step), "middle") for step in svg.ticks(steps)]
    parts.append(svg.text(left - 12, bottom + 18, "step", "end"))
    return svg.drawing(width, height, f"scores and ends of episode {shown.episode.name}", "".join(parts))
