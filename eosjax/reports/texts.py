"""Texts from outside (instructions, names, notes) as a terminal, a plot and a page can show them."""

from __future__ import annotations

import re
import unicodedata

# Control and format characters (those that turn the direction of a text among them), surrogates, unassigned code points, line separators.
_HIDDEN = ("C", "Zl", "Zp")


def literal(text: str) -> str:
    """A text on one line, with a blank for each character that is none to see: it would break a table, or command a terminal."""
    if text.isprintable():
        return text
    return "".join(" " if unicodedata.category(character).startswith(_HIDDEN) else character for character in text)


def literal_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(literal, re.split(r"\r?\n", text)))
