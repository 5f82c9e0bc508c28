"""Fields of files that come from outside: what is done with each, as a table next to the reader, and the check against it.

A field that changes what is computed is honoured or refused by name. One that no table lists is refused as well: it may be such a field.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from eosjax.types import UserError

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 80


class Field(NamedTuple):
    """One field of a JSON object."""

    name: str
    treatment: Literal["honoured", "refused", "harmless"]
    note: str  # what the field decides and, where it is refused, why
    accepts: tuple[Any, ...] = ()  # of a refused field: the JSON values that change nothing, so that they pass


Fields = Mapping[str, Field]


def table(*fields: Field) -> dict[str, Field]:
    """The fields by name.

    Raises:
        ValueError: a name twice, or accepted values of a field that is not refused.
    """
    by_name = {field.name: field for field in fields}
    if len(by_name) != len(fields):
        raise ValueError(f"fields: a name stands twice in {[field.name for field in fields]}")
    for field in fields:
        if field.accepts and field.treatment != "refused":
            raise ValueError(f"fields: {field.name} is {field.treatment}, so `accepts` means nothing")
    return by_name


def check_fields(content: object, fields: Fields, source: object, error: type[UserError], prefix: str = "") -> dict[str, Any]:
    """A JSON object whose fields are all known and either honoured, harmless or of an accepted value.

    Args:
        content: the value that was read.
        fields: what is known of its fields.
        source: the file, for the message.
        error: what is raised.
        prefix: path of the object within its file, such as `text_config.`.

    Returns:
        `content`.

    Raises:
        error: no object, or fields that are refused or unknown; a line for each, which names file, field, expected and got.
    """
    if not isinstance(content, dict):
        raise error(f"{source}: {prefix.rstrip('.') or 'the file'}: expected an object, got {show(content)}")
    faults = [fault for name, value in content.items() if (fault := _fault(name, value, fields))]
    if faults:
        raise error("\n".join(f"{source}: {prefix}{fault}" for fault in faults))
    return content


def same_json(a: object, b: object) -> bool:
    """Whether two JSON values are equal; other than in Python, true is not 1 and [] is not ()."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    return a == b


def show(value: object) -> str:
    """A value for a message: shortened, however long or deep it is."""
    return _shown.repr(value)


def _fault(name: str, value: object, fields: Fields) -> str | None:
    field = fields.get(name)
    if field is None:
        near = difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
        guess = f" (did you mean {near[0]}?)" if near else ""
        return f"{name}: unknown field{guess}, which may change the meaning of the file; got {show(value)}"
    if field.treatment != "refused" or any(same_json(value, accepted) for accepted in field.accepts):
        return None
    expected = " or ".join(map(show, field.accepts)) or "no such field"
    return f"{name}: expected {expected}, got {show(value)}: {field.note}"
