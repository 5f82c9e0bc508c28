"""JSON and YAML files from outside: one reader for each. Every fault is a `DocumentError` that names the file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml

from eosjax.fields import show
from eosjax.types import UserError

Fault = Literal["unreadable file", "not UTF-8", "not JSON", "not YAML", "repeated key"]


class DocumentError(UserError):
    """A file that cannot be read. `fault` and `what` are the parts of the message behind the name of the file."""

    def __init__(self, source: object, fault: Fault, what: str):
        self.fault: Fault = fault
        self.what = what
        super().__init__(f"{source}: {fault}: {what}")


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, whatever the locale; `DocumentError` if it is missing or of another kind."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DocumentError(path, "unreadable file", "not a regular file; a pipe, say, can be read only once")
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DocumentError(path, "unreadable file", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise DocumentError(path, "not UTF-8", f"{error.reason} at byte {error.start}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DocumentError: unreadable, not UTF-8, not JSON (with line and column), or a key twice in one object, of which Python's reader
            would drop one silently.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_repeated(path, (key for key, _ in pairs))
        return dict(pairs)

    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DocumentError(
            path, "not JSON", f"{error.msg.removesuffix(' starting at')} at line {error.lineno}, column {error.colno}"
        ) from error
    except DocumentError:
        raise
    except ValueError as error:  # a number of more digits than Python converts
        raise DocumentError(path, "not JSON", str(error)) from error
    except RecursionError as error:
        raise DocumentError(path, "not JSON", "nested too deeply") from error


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; `DocumentError` if it is unreadable, not UTF-8, not YAML, or has a key twice in one mapping."""

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)  # as it is written: merged mappings (<<) come later
            _refuse_repeated(path, (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)))
            return node

    def whole_number(loader: Loader, node: Any) -> int:
        number = loader.construct_yaml_int(node)
        str(number)  # of more digits than Python writes, a ValueError: decimal digits are read with the same limit, others without
        return number

    Loader.add_constructor("tag:yaml.org,2002:int", whole_number)
    text = read_text(path)
    try:
        return yaml.load(text, Loader)
    except DocumentError:
        raise
    except RecursionError as error:
        raise DocumentError(path, "not YAML", "nested too deeply") from error
    except Exception as error:  # beside its own errors PyYAML lets those of Python out, of values that are not of their tag
        raise DocumentError(path, "not YAML", str(error)) from error


def _refuse_repeated(path: Path, keys: Iterable[str]) -> None:
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise DocumentError(path, "repeated key", f"{show(repeated[0])} twice in one object")
