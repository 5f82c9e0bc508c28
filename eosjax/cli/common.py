"""What several commands share: kinds of flags, and writing files."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from eosjax.types import UserError


def add_boolean_flag(parser: argparse._ActionsContainer, flag: str, help: str) -> None:
    """Adds a flag that is off unless given, as `--flag` or in the spelling of `train.py`, `--flag True`."""

    def truth(text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
        return text.lower() == "true"

    parser.add_argument(flag, nargs="?", type=truth, const=True, default=False, metavar="True", help=help)


def integers(text: str) -> tuple[int, ...]:
    """Numbers `0,1,2` of a flag, for `argparse`."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers from 0 on, separated by commas; got {text!r}")
    return tuple(int(part) for part in parts)


def to_path(text: str) -> Path:
    """A path of a flag, for `argparse`. An empty one, as of a variable of the shell that is not set, would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def write_text(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all, and its folder if need be; `UserError` if that cannot be done."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as a whole or not at all, and its folder if need be; `UserError` if that cannot be done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
