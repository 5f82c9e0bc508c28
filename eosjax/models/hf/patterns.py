"""Regular expressions from files, which choose layers by name, in bounded time."""

from __future__ import annotations

import re

_LONGEST = 100_000
_WAYS_OF_A_REPEAT = 30  # to match a part of a name
# Letters, digits, groups, alternatives, and repeats of single characters: no repeat of a group, which can take exponential time.
_PIECE = re.compile(r"\(\?:|[\w^$|()-]|\\d[*+]?|\\\.|\.(?:[*+]\??)?|\[[\w-]+\][*+]?")


class PatternError(ValueError):
    """An expression that is not valid, or of a kind that is not read."""


def check_pattern(text: str, most_ways: int) -> None:
    """Raises `PatternError` unless this is a regular expression that is matched with a name in bounded time.

    Args:
        text: the expression.
        most_ways: how many ways to match a name a search may have to try: the product over what follows each other, the sum over
            alternatives, 30 for a repeat.
    """
    at = 0
    open_groups = [[0, 1]]  # of each: ways through the alternatives that are finished, and through the present one
    while at < min(len(text), _LONGEST) and (match := _PIECE.match(text, at)):
        at, piece = match.end(), match[0]
        if piece in ("(", "(?:"):
            open_groups.append([0, 1])
        elif piece == "|":
            open_groups[-1] = [sum(open_groups[-1]), 1]
        elif piece == ")" and len(open_groups) > 1:
            ways = sum(open_groups.pop())
            open_groups[-1][1] *= ways
        elif "*" in piece or "+" in piece:
            open_groups[-1][1] *= _WAYS_OF_A_REPEAT
        if sum(open_groups[-1]) > most_ways:
            raise PatternError(f"a regular expression that takes too long: more than {most_ways:,} ways to match {text[:at][-40:]!r}")
    if at < len(text):
        raise PatternError(f"the regular expression is not read beyond {text[:at][-40:]!r}")
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"no valid regular expression: {error}") from error
