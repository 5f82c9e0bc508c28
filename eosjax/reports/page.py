"""What the HTML reports share: a page that needs nothing else, cards, tables, pictures as data URIs."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

from eosjax.reports.style import STYLE

_NUMBER = re.compile(r"[-–]?[0-9.,]*%?")


def document(command: str, title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
      command: what made it.
      title: of the page.
      body: HTML.
      style: CSS of its own, behind the common one.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)} · {command}</title><style>{STYLE}{style}</style></head><body><main>"
        f"<header><p>{command}</p><h1>{escape(title)}</h1></header>{body}</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A card with a heading; `body` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns whose cells are numbers are set to the right."""
    right = [all(_NUMBER.fullmatch(str(cell)) for cell in column) for column in zip(*rows, strict=True)] or [False] * len(header)

    def line(cells: Sequence[object], tag: str) -> str:
        kinds = [' class="number"' if is_right else "" for is_right in right]
        return "<tr>" + "".join(f"<{tag}{kind}>{escape(str(cell))}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def data_uri(data: bytes) -> str:
    """An encoded picture (PNG or JPEG) as the `src` of an image."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"  # RLDS datasets have no other kind
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
