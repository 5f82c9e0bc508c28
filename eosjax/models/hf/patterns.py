"""Regular expressions from files, which choose layers by name, in bounded time."""

from __future__ import annotations

import re

_LONGEST, _MOST_REPEATS = 100_000, 4
# Without a repetition of a group no expression takes exponential time.
_PIECE = re.compile(r"\(\?:|[\w^$|()-]|\\d[*+]?|\\\.|\.(?:[*+]\??)?|\[[\w-]+\][*+]?")
_REPEAT = re.compile(r"[*+]")


class PatternError(ValueError):
    """An expression that is not valid, or of a kind that is not read."""


def compile_pattern(text: str) -> re.Pattern[str]:
    """A regular expression of letters, digits, groups, alternatives and at most four repetitions of single characters.

    Raises:
        PatternError: anything else.
    """
    at = 0
    while at < min(len(text), _LONGEST) and (piece := _PIECE.match(text, at)):
        at = piece.end()
    if at < len(text):
        raise PatternError(f"the regular expression is not read beyond {text[:at][-40:]!r}")
    if len(_REPEAT.findall(text)) > _MOST_REPEATS:
        raise PatternError(f"a regular expression with more than {_MOST_REPEATS} repetitions")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"no valid regular expression: {error}") from error
