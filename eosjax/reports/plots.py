"""How every plot is drawn and encoded: matplotlib without pyplot, the same bytes each time, texts drawn as they are.

A figure is made and encoded under `style()`. As a file it has a white background. In a page it is inline SVG without a background whose
colours are CSS variables, so that one drawing serves light and dark screens.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from eosjax.reports.texts import literal

# By the name of the CSS variable: on a light and on a dark screen. Figures are drawn in the light ones.
COLOURS = {
    "ink": ("#1c2430", "#e6e9ee"),
    "soft": ("#657184", "#97a3b6"),
    "card": ("#ffffff", "#1b2129"),
    "rule": ("#dfe3e9", "#313a46"),
    "blue": ("#2f6fb7", "#74aef0"),
    "pale": ("#9db8d6", "#4a6b92"),
    "red": ("#cc3b3b", "#ff7b7b"),
    "amber": ("#b36b00", "#f0b45a"),
    "good": ("#1c7c4a", "#5fce95"),
}
INK, SOFT, CARD, RULE, BLUE, PALE, RED, AMBER, GOOD = (light for light, _ in COLOURS.values())
_VARIABLES = {light: f"var(--{name}, {light})" for name, (light, _) in COLOURS.items()}
_COLOUR = re.compile("|".join(_VARIABLES))

_UNIT = 72  # figures are laid out in CSS pixels: matplotlib's points, of which an inch has 72
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 12,
    "figure.constrained_layout.h_pad": 0.12,  # inches
    "figure.constrained_layout.w_pad": 0.12,
    "figure.dpi": _UNIT,
    "figure.facecolor": "none",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 11,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "path.simplify_threshold": 0.4,  # pixels: curves of many thousand points stay small
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "eosjax",
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}
_TOOLTIP = "tooltip:"  # in front of the gid of an artist that has one
_HREF = "{http://www.w3.org/1999/xlink}href"


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The settings under which figures are made and encoded, whatever the user's own are; also a decorator."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Where the font has no glyph, a page shows the reader's own and a picture shows a box.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """A figure of a size in CSS pixels; `layout` as of `matplotlib.figure.Figure`."""
    return Figure(figsize=(width / _UNIT, height / _UNIT), layout=layout)


def add_tooltip(artist: Artist, text: str) -> None:
    """Gives an artist a text that a page shows when it is pointed at."""
    artist.set_gid(_TOOLTIP + literal(text))


@style()
def png(figure: Figure) -> bytes:
    """The figure as a PNG file of two dots a pixel."""
    file = io.BytesIO()
    _make_literal(figure)
    FigureCanvasAgg(figure).print_figure(file, format="png", dpi=2 * _UNIT, facecolor="white", metadata={"Software": None})
    return file.getvalue()


@style()
def svg(figure: Figure) -> bytes:
    """The figure as an SVG file."""
    return _svg(figure, "white")


@style()
def inline_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an `svg` element for a page.

    Args:
      figure: drawn in `COLOURS`, which become CSS variables of the same names.
      name: in front of its identifiers: letters and digits, another one for each figure of a page.
      title: for those who cannot see it.
    """
    root = ElementTree.fromstring(_svg(figure, "none"))
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # who made it; a rule for the lines of the whole page
                parent.remove(child)
    _rename_identifiers(root, name)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if "style" in element.attrib:
            element.set("style", _COLOUR.sub(lambda found: _VARIABLES[found[0]], element.attrib["style"]))
    size = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib |= {"viewBox": size, "role": "img", "aria-label": literal(title), "style": "stroke-linejoin: round; stroke-linecap: butt"}
    return ElementTree.tostring(root, encoding="unicode")


def _make_literal(figure: Figure) -> None:
    """Every text of the figure as it can be drawn: without what neither a font nor an XML file can hold, and never as a formula.

    But for the labels of ticks, which their formatter writes again: they must not come from outside.
    """
    for text in figure.findobj(Text):
        text.set_text(literal(text.get_text()))
        text.set_parse_math(False)


def _svg(figure: Figure, background: str) -> bytes:
    file = io.BytesIO()
    _make_literal(figure)
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_figure(file, format="svg", dpi=_UNIT, facecolor=background, metadata=nothing)
    return file.getvalue()


def _rename_identifiers(root: ElementTree.Element, name: str) -> None:
    """Makes the identifiers that something refers to unique in a page, drops the others, and writes out tooltips."""
    reference = re.compile(r"#(\w+)")
    elements = list(root.iter())
    referring = [
        (element, key)
        for element in elements
        for key, value in element.attrib.items()
        if key == _HREF or (key != "id" and value.startswith("url(#"))
    ]
    used = [found[1] for element, key in referring if (found := reference.search(element.attrib[key]))]
    new = {old: f"{name}-{number}" for number, old in enumerate(dict.fromkeys(used))}
    for element, key in referring:
        value = reference.sub(lambda found: f"#{new[found[1]]}", element.attrib.pop(key))
        element.set("href" if key == _HREF else key, value)
    for element in elements:
        identifier = element.attrib.pop("id", "")
        if identifier in new:
            element.set("id", new[identifier])
        elif identifier.startswith(_TOOLTIP):
            tooltip = ElementTree.Element("title")
            tooltip.text = identifier.removeprefix(_TOOLTIP)
            element.insert(0, tooltip)
