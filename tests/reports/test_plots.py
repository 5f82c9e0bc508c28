"""Drawings are the same each time, whatever the user's settings, hold texts as they are, and can be read on light and dark pages."""

import io
import re
import warnings
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from eosjax.ends.events import ScoredEpisode
from eosjax.ends.frame import Reliability
from eosjax.ends.ranking import Ranking
from eosjax.reports import plots, score_plots
from eosjax.reports.episode_plots import motion_timeline, picture_timeline, score_timeline
from eosjax.reports.episode_view import EpisodeView, Substep
from eosjax.reports.evaluation import Shown
from eosjax.reports.survey import Histogram
from eosjax.reports.texts import literal

PICTURE = np.zeros((16, 16, 3), np.uint8)
NASTY = ["$x_1^2$", "\\frac{a}{b}", "_hidden", "<b>&amp;", 'say "it"', "two\nlines"]
NASTY += ["null \x00 and \ud800", "\x1b[31mred", "\u202edednetni", "碗 🥣", "$unclosed"]


def curves(size=50):
    rng = np.random.default_rng(0)
    ranking = Ranking.of(rng.random(size), rng.random(size) < 0.4, np.zeros(size, int), np.array([size // 2]))
    return {collar: ranking.curve(np.ones(1, int)) for collar in score_plots.COLLAR_COLOURS}


def shown(scores, fired, true):
    ends = np.isin(np.arange(len(scores)), true)
    return Shown("best", 0, ScoredEpisode("0", np.asarray(scores, float), ends), np.array(fired, int), np.zeros((0, 2), int))


VIEW = EpisodeView(3, "task", [Substep("go", 0, 4, True), Substep("stay", 5, 9, False)], np.arange(10) % 2.0, np.linspace(0, 1, 10))
FIGURES = {
    "event_precision_recall": lambda: score_plots.event_precision_recall(curves(), 0.5),
    "event_f1": lambda: score_plots.event_f1(curves(), 0.5),
    "event_errors": lambda: score_plots.event_errors(curves(), 0.5, 2, 1.0),
    "reliability": lambda: score_plots.reliability(Reliability(np.array([0.1, 0.3]), np.array([0.0, 0.4]), np.array([5.0, 5.0]))),
    "histogram": lambda: score_plots.histogram(Histogram.of(np.array([-3, 0, 0, 9])), "steps"),
    "frame_precision_recall": lambda: score_plots.frame_precision_recall(np.arange(50) % 7 == 0, {"EOS head": np.sin(np.arange(50.0))}),
    "score_timeline": lambda: score_timeline(shown([0.1, 0.9, 0.2], [1], [2]), 0.5),
    "motion_timeline": lambda: motion_timeline(VIEW),
    "picture_timeline": lambda: picture_timeline("t", np.linspace(0, 1, 10), np.arange(10) == 4, ["go"] * 10, [PICTURE]),
}


def texts(svg):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_bytes_each_time_whatever_the_settings(name):
    first = plots.png(FIGURES[name]()), plots.svg(FIGURES[name]()), plots.inline_svg(FIGURES[name](), "a", "title")
    with matplotlib.rc_context({"text.parse_math": True, "svg.fonttype": "path", "font.size": 30, "axes.facecolor": "red"}):
        second = plots.png(FIGURES[name]()), plots.svg(FIGURES[name]()), plots.inline_svg(FIGURES[name](), "a", "title")
    assert first == second
    assert re.search(rb"\d{4}-\d\d-\d\d", first[1]) is None  # no date
    with Image.open(io.BytesIO(first[0])) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(2**24)) > 10


@pytest.mark.parametrize("name", FIGURES)
def test_inline_drawings_have_no_background_and_only_colours_of_the_page(name):
    root = ElementTree.fromstring(plots.inline_svg(FIGURES[name](), "a", "title"))
    assert (root.tag, root.get("role"), root.get("aria-label")) == ("svg", "img", "title")
    assert {"width", "height"}.isdisjoint(root.attrib)
    styles = " ".join(element.get("style", "") for element in root.iter())
    fixed = set(re.findall(r"#[0-9a-f]{6}(?!\))", styles))
    assert not fixed - {"#000000"} or name == "frame_precision_recall"  # the plot that is only written to a file
    assert not [rect for rect in root.iter("rect") if "fill: #ffffff" in rect.get("style", "")]


def test_identifiers_are_apart_from_those_of_another_drawing():
    first, second = (ElementTree.fromstring(plots.inline_svg(motion_timeline(VIEW), name, "t")) for name in ("a", "b"))
    names = [{element.get("id") for element in root.iter()} - {None} for root in (first, second)]
    assert names[0]
    assert names[0].isdisjoint(names[1])


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_texts_are_drawn_as_they_are(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        instructions = picture_timeline(text, np.linspace(0, 1, 10), np.arange(10) == 4, [text] * 10, [PICTURE])
        legend = score_plots.frame_precision_recall(np.arange(10) == 4, {text: np.linspace(0, 1, 10)})
        band = motion_timeline(VIEW._replace(substeps=[Substep(text, 0, 9, True)]))
        plots.png(instructions)
        drawn = literal(text)
        assert texts(plots.svg(instructions)).count(drawn) == 3  # the title, and the instructions of two sub-steps
        assert any(each.startswith(f"{drawn} (") for each in texts(plots.svg(legend)))
        tooltips = {element.text for element in ElementTree.fromstring(plots.inline_svg(band, "a", text)).iter("title")}
    assert f"1. {drawn}: steps 0 to 9" in tooltips
    assert drawn == text or not text.isprintable()


def test_no_text_of_any_figure_is_a_formula_or_breaks_the_file():
    """Whoever makes a figure need not think of it."""
    figure = plots.new_figure(300, 200, layout="constrained")
    axes = figure.add_subplot()
    (line,) = axes.plot([0, 1])
    figure.suptitle("$\\sum$ \x00")
    axes.set(title="$\\frac$", xlabel="a\x1bb", ylabel="$x^2$")
    axes.legend([line], ["$\\bad"])
    axes.annotate("$\\worse", (0, 0))
    plots.png(figure)
    assert {"$\\sum$  ", "$\\frac$", "a b", "$x^2$", "$\\bad", "$\\worse"} <= set(texts(plots.svg(figure)))


def test_curves_of_many_points_stay_small():
    assert len(plots.svg(score_plots.event_precision_recall(curves(100_000), 0.5))) < 150_000


@pytest.mark.parametrize("where", [[3, 9], [9], [0, 1, 9], []], ids=str)
def test_picture_timeline_at_the_edges(where):
    ends = np.isin(np.arange(10), where)
    figure = picture_timeline("episode 1", np.linspace(0, 1, 10), ends, ["go"] * 10, [PICTURE] * len(where))
    drawn = texts(plots.svg(figure))
    assert [f"step {step}" for step in where] == [text for text in drawn if text.startswith("step ")]


def test_the_legend_of_a_picture_timeline_lies_below_the_label_of_the_axis():
    figure = picture_timeline("episode 1", np.linspace(0, 1, 10), np.arange(10) == 4, ["go"] * 10, [PICTURE])
    FigureCanvasAgg(figure).draw()
    below = figure.subfigs[1]
    assert below.legends[0].get_window_extent().y1 < below.axes[0].xaxis.label.get_window_extent().y0


@pytest.mark.parametrize(
    ("highest", "threshold", "scale"), [(0.1, 0.05, "0.11"), (0.123, 0.05, "0.14"), (0.1, 0.2, "0.22"), (0.99, 0.5, "1"), (0.0, 1.5, "1")]
)
def test_the_scale_ends_above_scores_and_threshold(highest, threshold, scale):
    (axes,) = score_timeline(shown(np.linspace(0, highest, 5), [4], [4]), threshold).axes
    assert axes.get_ylim() == (0, float(scale))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", scale]


def test_dots_stand_at_the_threshold():
    figure = score_plots.event_precision_recall(curves(), 0.5)
    curve = curves()[2]
    place = np.flatnonzero(curve.thresholds >= 0.5)[-1]
    tooltips = [line.get_gid() for line in figure.axes[0].lines if line.get_gid()]
    assert f"tooltip:±2 steps: {curve.recall[place]:.3g}, {curve.precision[place]:.3g}" in tooltips
    none = score_plots.event_precision_recall(curves(), 1.5)
    assert not [line for line in none.axes[0].lines if line.get_gid()]


def test_steps_of_the_precision_recall_curve():
    figure = score_plots.frame_precision_recall(np.array([True, False, True]), {"a": np.array([0.9, 0.5, 0.1])})
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(line.get_ydata(), [1, 1, 0.5, 2 / 3])
