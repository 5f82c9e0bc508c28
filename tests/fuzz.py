"""Damaged documents for Hypothesis: sound ones with a part replaced by something else."""

import contextlib
import copy
import json

from hypothesis import strategies as st

from eosjax.types import UserError

# Values of JSON, with the numbers and texts that readers trip over.
NUMBERS = [0, -1, 1.5, 2**31, 10**30, -(10**400), float("nan"), float("inf")]
ODD = st.sampled_from([None, True, *NUMBERS, "", " ", "1", "９", "9" * 30, "\ud800", "../x", "a" * 300])
JSON = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5)


def in_bytes(value) -> bytes:
    """A value as the bytes of a JSON file."""
    return json.dumps(value).encode()


def _places(document, path=()):
    """The path of every value in a document."""
    yield path
    items = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in items:
        yield from _places(value, (*path, key))


@st.composite
def damaged(draw, document):
    """A document of dictionaries and lists with some of its values replaced, dropped or doubled."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from([place for place in _places(document) if place]))
        parent = document
        for key in path:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "drop", "add"])):
            case "replace":
                parent[last] = draw(JSON)
            case "drop":
                del parent[last]
            case _ if isinstance(parent, dict):
                parent[draw(st.text(max_size=3))] = parent[last]
            case _:
                parent.append(parent[last])
        if not document:
            break
    return document


@st.composite
def damaged_bytes(draw, content: bytes):
    """Some bytes replaced by others, of any number."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(start + 20, len(content))))
    return content[:start] + draw(st.binary(max_size=20)) + content[stop:]


def refused_or_read():
    """A context in which a `UserError` is as good as success; anything else fails the test."""
    return contextlib.suppress(UserError)
