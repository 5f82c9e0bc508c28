"""The report about ends as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from eosjax.ends.events import COLLARS, MAIN_COLLAR
from eosjax.reports import page, svg
from eosjax.reports.evaluation import ScoreEvaluation, Shown
from eosjax.reports.event_charts import STYLE, Series, chart, timeline
from eosjax.reports.survey import Histogram
from eosjax.reports.tables import delay_row, event_rows, figure, frame_rows

Pictures = Callable[[int, int], Sequence[bytes]]  # (number of the episode, step) -> an encoded picture for each camera


def render(command: str, report: ScoreEvaluation, pictures: Pictures | None = None, more: Sequence[str] = ()) -> str:
    """The page.

    Args:
      command: what makes it, such as `eosjax score`.
      report: the numbers.
      pictures: of the true ends and firings of the episodes that are shown; None for no pictures.
      more: sections as HTML, to stand in front of the charts.
    """
    sections = [
        _tiles(report),
        f"<p>{escape(report.sentence())}. In brackets: 95 % intervals, from a bootstrap over episodes.</p>",
        page.section("Ends", figure_table(event_rows(report.measured))),
        page.section("Delays and frames", page.table(("", "figures"), [delay_row(report.measured), *frame_rows(report.measured)])),
        *more,
        page.section("Charts", f'{_collar_legend()}<div class="charts">{"".join(_charts(report))}</div>'),
        *(_episode(shown, report.threshold, pictures) for shown in report.shown),
    ]
    return page.document(command, report.title, "".join(sections), STYLE)


def figure_table(rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML, the header first."""
    header, *others = rows
    return page.table(header, [[_kept_together(cell) for cell in row] for row in others])


def _kept_together(cell: str) -> str:
    """A figure whose interval is never torn apart at the end of a line."""
    return cell.replace(", ", ",\N{NO-BREAK SPACE}")


def _tiles(report: ScoreEvaluation) -> str:
    names = {"F1": "event/f1", "precision": "event/precision", "recall": "event/recall", "average precision": "event/ap"}
    cells = [
        (name, figure(report.measured, f"{key}@{MAIN_COLLAR}"), f"of ends, within ±{MAIN_COLLAR} steps") for name, key in names.items()
    ]
    cells.append(("delay", figure(report.measured, "event/delay_median", 1, sign=True), f"steps, median, within ±{COLLARS[-1]}"))
    parts = []
    for name, text, note in cells:
        value, _, interval = text.partition(" ")
        parts.append(f"<div><dt>{name}</dt><dd>{value}</dd><small>{_kept_together(interval)} {escape(note)}</small></div>")
    return f'<dl class="tiles">{"".join(parts)}</dl>'


def _collar_legend() -> str:
    names = "".join(f'<span class="s{order}">±{collar} steps</span>' for order, collar in enumerate(COLLARS))
    return f'<p class="legend">{names} a dot: the threshold of this report</p>'


def _charts(report: ScoreEvaluation) -> list[str]:
    curves = [report.curve(collar) for collar in COLLARS]
    # The last score that still fires; before the first one nothing does.
    place = int(np.searchsorted(-curves[0].thresholds, -report.threshold, side="right")) - 1
    episodes, ends = report.counts["episodes"], report.counts["ends"]
    charts = {"precision": [], "f1": [], "errors": []}
    dots = {"precision": [], "f1": [], "errors": []}
    for order, curve in enumerate(curves):
        misses, false_alarms = (ends - curve.hits) / episodes, (curve.fired - curve.hits) / episodes
        points = {"precision": (curve.recall, curve.precision), "f1": (curve.thresholds, curve.f1), "errors": (misses, false_alarms)}
        for name, (x, y) in points.items():
            charts[name].append(Series(x, y, f"s{order}"))
            if place >= 0:
                at = (np.array([report.threshold]) if name == "f1" else x[[place]], y[[place]])
                dots[name].append(Series(*at, f"s{order}", dots=True, title=f"±{COLLARS[order]} steps"))
    most_misses = max(ends / episodes, 1e-9)
    most_alarms = max(2 * most_misses, 1.2 * report.measured.values[f"event/false_alarms_per_episode@{COLLARS[0]}"], 1.0)
    drawn = {name: charts[name] + dots[name] for name in charts}
    return [
        _figure("Precision against recall", "", chart("precision against recall", "recall", "precision", drawn["precision"])),
        _figure("F1 against threshold", "", chart("F1 against threshold", "threshold", "F1", drawn["f1"])),
        _figure(
            "False alarms against misses",
            "of an episode, as the threshold moves",
            chart("false alarms against misses", "misses", "false alarms", drawn["errors"], most_misses, most_alarms),
        ),
        _delays(report),
        _reliability(report),
    ]


def _delays(report: ScoreEvaluation) -> str:
    values = Histogram.of(report.tables.decisions.delays)
    note = f"fired minus true step, of the pairs within ±{COLLARS[-1]}; negative is early"
    return _figure("Delay", note, svg.histogram(values, "steps", "delays") if values else "<p>Nothing was matched.</p>")


def _reliability(report: ScoreEvaluation) -> str:
    bins = report.tables.frames.reliability(np.ones(report.counts["episodes"], np.int64))
    end = min(1.0, 1.1 * float(max(bins.said.max(), bins.came.max(), 0.01)))
    series = [Series(bins.said, bins.came, "s1")]
    for said, came, steps in zip(bins.said.tolist(), bins.came.tolist(), bins.steps.tolist(), strict=True):
        title = f"{steps:g} steps: said {said:.3f}, came {came:.3f}"
        series.append(Series(np.array([said]), np.array([came]), "s1", dots=True, title=title))
    drawing = chart("reliability", "score", "share of ends", series, end, end, diagonal=True)
    return _figure("Reliability", "bins of about as many steps each; on the dashed line scores are probabilities", drawing)


def _figure(title: str, note: str, body: str) -> str:
    return f"<figure><figcaption><b>{title}</b> {note}</figcaption>{body}</figure>"


def _episode(shown: Shown, threshold: float, pictures: Pictures | None) -> str:
    legend = (
        f'<p class="legend"><span class="s1">score</span> <span class="last">true end, its collar of ±{MAIN_COLLAR} shaded; dashed where '
        'missed</span> <span class="hits">fired, a hit</span> <span class="alarms">fired, a false alarm</span> dashed across: threshold</p>'
    )
    facts = f"F1 {shown.f1:.2f}: {len(shown.pairs)} hit, {shown.misses.size} missed, {shown.false_alarms.size} false alarms"
    strip = "" if pictures is None else _pictures(shown, pictures)
    return page.section(f"The {shown.rank} episode: {shown.episode.name}", f"<p>{facts}</p>{legend}{timeline(shown, threshold)}{strip}")


def _pictures(shown: Shown, pictures: Pictures) -> str:
    """What the cameras saw at each true end and each firing, in order of time."""
    notes: dict[int, list[str]] = {step: ["true end"] for step in shown.episode.true.tolist()}
    for step in shown.misses.tolist():
        notes[step].append("missed")
    delays = {fired: fired - true for fired, true in shown.pairs.tolist()}
    for step in shown.fired.tolist():
        notes.setdefault(step, []).append(f"fired ({delays[step]:+d})" if step in delays else "false alarm")
    figures = []
    for step, words in sorted(notes.items()):
        images = "".join(
            f'<img src="{page.data_uri(data)}" alt="camera {number}, step {step}">'
            for number, data in enumerate(pictures(shown.number, step))
        )
        kind = ' class="last"' if words[0] == "true end" else ""
        figures.append(f"<figure{kind}><div>{images}</div><figcaption>step {step}: {', '.join(words)}</figcaption></figure>")
    return f'<div class="pictures">{"".join(figures)}</div>'
