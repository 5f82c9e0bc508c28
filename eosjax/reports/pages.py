"""The pages of `eosjax score`, `eosjax evaluate` and `eosjax inspect`: each one HTML file that loads nothing and runs nothing.

What is on a page is gathered here; how it is laid out stands in `templates`, which escape every text. Charts are inline SVG, pictures data
URIs, and each page forbids by its Content-Security-Policy to load anything else.
"""

from __future__ import annotations

import base64
import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eosjax.data.frames.store import FrameStore
from eosjax.ends.events import COLLARS, MAIN_COLLAR
from eosjax.reports import episode_plots, score_plots
from eosjax.reports.dataset_tables import statistics_rows
from eosjax.reports.episode_view import EpisodeView, Substep
from eosjax.reports.evaluation import PolicyEvaluation, ScoreEvaluation, Shown
from eosjax.reports.plots import COLOURS, inline_svg
from eosjax.reports.survey import Histogram, Survey
from eosjax.reports.tables import comparison_rows, delay_row, event_rows, figure, frame_rows
from eosjax.reports.texts import literal

PicturesOf = Callable[[int, int], Sequence[bytes]]  # (number of the episode, step) -> an encoded picture for each camera
AROUND_END = (-4, -2, 0, 2, 4)  # steps of the pictures in a strip, counted from the end
_LISTED_PROBLEMS = 200
_NUMBER = re.compile(r"[-–]?[0-9.,]*%?")


class Tile(NamedTuple):
    """A figure at the head of a page."""

    name: str
    value: str
    note: str


class Chart(NamedTuple):
    """A small plot with a caption."""

    title: str
    note: str
    svg: str


class Picture(NamedTuple):
    """What a camera saw."""

    camera: str
    data: bytes  # PNG or JPEG


class Frame(NamedTuple):
    """A step in a filmstrip."""

    step: int
    caption: str
    kind: str  # class of its element: `end`, `absent`, or none
    pictures: list[Picture]


def score_page(evaluation: ScoreEvaluation) -> str:
    """The page of `eosjax score`."""
    return render_page("score.html", "eosjax score", evaluation.title, **_score_content(evaluation))


def evaluate_page(evaluation: PolicyEvaluation, pictures: PicturesOf) -> str:
    """The page of `eosjax evaluate`: that of its scores in the dense protocol, with pictures, and what was measured beside.

    Args:
      evaluation: the figures.
      pictures: asked for those of the true ends and firings of the episodes that are shown.
    """
    return render_page(
        "evaluate.html",
        "eosjax evaluate",
        evaluation.dense.title,
        policy=evaluation,
        deployed=event_rows(evaluation.deployed),
        deployed_delays=[delay_row(evaluation.deployed)],
        methods=comparison_rows(evaluation.comparison),
        **_score_content(evaluation.dense, pictures),
    )


def inspect_page(survey: Survey, store: FrameStore, views: Sequence[EpisodeView]) -> str:
    """The page of `eosjax inspect`.

    Args:
      survey: the numbers.
      store: where the pictures are.
      views: the episodes to show in pictures.
    """
    problems = [(each["kind"], "–" if each["episode"] is None else each["episode"], each["what"]) for each in survey.problems]
    episodes = []
    for number, view in enumerate(views):
        title = f"speed of the hand and gripper command in episode {view.episode}"
        drawn = inline_svg(episode_plots.motion_timeline(view), f"episode{number}", title)
        episodes.append({"view": view, "timeline": drawn, "strips": _strips(view, survey.cameras, store)})
    return render_page(
        "inspect.html",
        "eosjax inspect",
        survey.dataset,
        survey=survey,
        figures=_survey_tiles(survey),
        problem_kinds=Counter(each["kind"] for each in survey.problems).most_common(),
        problems=problems[:_LISTED_PROBLEMS],
        charts=_length_charts(survey),
        episodes=episodes,
        instructions=[(each.text, f"{each.steps:,}", f"{each.ends:,}") for each in survey.instructions],
        tasks=[(each.text, each.episodes, each.matched_episodes) for each in survey.tasks],
        statistics={"Actions": statistics_rows(survey.action), "State": statistics_rows(survey.proprio)},
    )


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("eosjax.reports"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": _data_uri, "number_columns": _number_columns, "unbroken": _unbroken}
    environment.globals["colours"] = COLOURS
    return environment


def _shown(value: object) -> object:
    """What stands for a value in a page; texts from outside are escaped behind it."""
    return literal(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render_page(template: str, command: str, title: str, **content: Any) -> str:
    """A page from a template of this package."""
    return _templates().get_template(template).render(command=command, title=title, **content)


def _data_uri(data: bytes) -> str:
    """An encoded picture as the `src` of an image; RLDS datasets have no other kinds."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _number_columns(rows: Sequence[Sequence[object]]) -> list[bool]:
    """Of each column, whether all its cells are numbers: they are set to the right."""
    return [all(_NUMBER.fullmatch(str(cell)) for cell in column) for column in zip(*rows, strict=True)]


def _unbroken(text: object) -> str:
    """A text whose intervals in brackets are never torn apart at the end of a line."""
    return re.sub(r"\[[^\]]*\]", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), str(text))


def _score_content(evaluation: ScoreEvaluation, pictures: PicturesOf | None = None) -> dict[str, Any]:
    """What the pages of scores have in common, by its name in the template."""
    episodes = []
    for number, shown in enumerate(evaluation.shown):
        timeline = episode_plots.score_timeline(shown, evaluation.threshold)
        drawn = inline_svg(timeline, f"episode{number}", f"scores and ends of episode {shown.episode.name}")
        episodes.append({"shown": shown, "timeline": drawn, "film": [] if pictures is None else _ends_and_firings(shown, pictures)})
    names = {light: name for name, (light, _) in COLOURS.items()}
    return {
        "scores": evaluation,
        "figures": _score_tiles(evaluation),
        "events": event_rows(evaluation.measured),
        "delays_and_frames": [delay_row(evaluation.measured), *frame_rows(evaluation.measured)],
        "collars": {collar: names[colour] for collar, colour in score_plots.COLLAR_COLOURS.items()},
        "charts": _score_charts(evaluation),
        "episodes": episodes,
        "main_collar": MAIN_COLLAR,
    }


def _score_tiles(evaluation: ScoreEvaluation) -> list[Tile]:
    names = {"F1": "event/f1", "precision": "event/precision", "recall": "event/recall", "average precision": "event/ap"}
    measured, within = evaluation.measured, f"of ends, within ±{MAIN_COLLAR} steps"
    found = [(name, figure(measured, f"{key}@{MAIN_COLLAR}"), within) for name, key in names.items()]
    found.append(("delay", figure(measured, "event/delay_median", 1, sign=True), f"steps, median, within ±{COLLARS[-1]}"))
    tiles = []
    for name, text, note in found:
        value, _, interval = text.partition(" ")
        tiles.append(Tile(name, value, f"{interval} {note}".strip()))
    return tiles


def _score_charts(evaluation: ScoreEvaluation) -> list[Chart]:
    curves, threshold = {collar: evaluation.curve(collar) for collar in COLLARS}, evaluation.threshold
    episodes = evaluation.counts["episodes"]
    room = 1.2 * evaluation.measured.values[f"event/false_alarms_per_episode@{COLLARS[0]}"]
    bins = evaluation.tables.frames.reliability(np.ones(episodes, np.int64))
    drawn = [
        ("Precision against recall", "", score_plots.event_precision_recall(curves, threshold)),
        ("F1 against threshold", "", score_plots.event_f1(curves, threshold)),
        (
            "False alarms against misses",
            "in an episode, as the threshold moves",
            score_plots.event_errors(curves, threshold, episodes, room),
        ),
        ("Reliability", "bins of about as many steps each; on the dashed line scores are probabilities", score_plots.reliability(bins)),
    ]
    charts = [Chart(title, note, inline_svg(each, f"chart{number}", title)) for number, (title, note, each) in enumerate(drawn)]
    delays = Histogram.of(evaluation.tables.decisions.delays)
    if delays is None:
        return [*charts, Chart("Delay", "Nothing was matched.", "")]
    note = f"fired minus true step, of the pairs within ±{COLLARS[-1]}; negative is early"
    return [*charts, Chart("Delay", note, inline_svg(score_plots.histogram(delays, "steps"), "delays", "Delay"))]


def _ends_and_firings(shown: Shown, pictures: PicturesOf) -> list[Frame]:
    """What the cameras saw at each true end and each firing, in order of time."""
    notes: dict[int, list[str]] = {step: ["true end"] for step in shown.episode.true.tolist()}
    for step in shown.misses.tolist():
        notes[step].append("missed")
    delays = {fired: fired - true for fired, true in shown.pairs.tolist()}
    for step in shown.fired.tolist():
        notes.setdefault(step, []).append(f"fired ({delays[step]:+d})" if step in delays else "false alarm")
    return [
        Frame(
            step,
            f"step {step}: {', '.join(words)}",
            "end" if words[0] == "true end" else "",
            [Picture(f"camera {number}", data) for number, data in enumerate(pictures(shown.number, step))],
        )
        for step, words in sorted(notes.items())
    ]


def _survey_tiles(survey: Survey) -> list[Tile]:
    tiles = [
        Tile("episodes", f"{survey.episodes:,}", f"{len(survey.tasks)} task(s)"),
        Tile("steps", f"{survey.steps:,}", f"{survey.steps / survey.control_hz / 3600:.2f} h at {survey.control_hz:g} Hz"),
    ]
    if survey.labels is None:
        return tiles
    matched = survey.matched_episodes / survey.episodes
    without = f"{survey.episodes_without_end} episode(s) without any" if survey.episodes_without_end else "in every matched episode"
    share = "–" if survey.share_of_ends is None else f"{survey.share_of_ends:.2%}"
    return [
        *tiles,
        Tile("matched", f"{matched:.0%}" if matched in (0, 1) else f"{matched:.1%}", f"{survey.matched_episodes:,} of the episodes"),
        Tile("ends", f"{survey.ends:,}", without),
        Tile("share of ends", share, "of the steps of the matched episodes"),
    ]


def _length_charts(survey: Survey) -> list[Chart]:
    charts = []
    for name, title, values in (
        ("episodes", "Steps of an episode", survey.episode_steps),
        ("substeps", "Steps of a sub-step", survey.substep_steps),
    ):
        if values is not None:
            seconds = f"{values.median / survey.control_hz:.2f} s"
            note = f"{values.min} to {values.max}, median {values.median:g} ({seconds}), mean {values.mean:.1f}"
            charts.append(Chart(title, note, inline_svg(score_plots.histogram(values, "steps"), name, title)))
    return charts


def _strips(view: EpisodeView, cameras: Sequence[str], store: FrameStore) -> list[tuple[Substep, list[Frame]]]:
    """The pictures round the last step of each sub-step, or of an episode without sub-steps those round its middle."""
    shown = view.substeps or [Substep("", 0, len(view.gripper) // 2, False)]
    return [(substep, _around(substep, view, cameras, store)) for substep in shown]


def _around(substep: Substep, view: EpisodeView, cameras: Sequence[str], store: FrameStore) -> list[Frame]:
    first_frame = int(store.episode_starts[view.episode])
    frames = []
    for offset in AROUND_END:
        step = substep.last + offset
        if not 0 <= step < len(view.gripper):
            frames.append(Frame(step, f"{offset:+d}: no step", "absent", []))
            continue
        pictures = [Picture(camera, data) for camera, data in zip(cameras, store.images(first_frame + step), strict=True)]
        is_end = offset == 0 and substep.is_end
        frames.append(Frame(step, f"step {step}" if offset == 0 else f"{offset:+d}", "end" if is_end else "", pictures))
    return frames
