"""Texts from outside: names that become names of folders, and instructions.

Names are checked before any work, so that no path leaves its place or cannot be made.
"""

from __future__ import annotations

import os

from eosjax.types import UserError

LONGEST_INSTRUCTION = 1000  # characters: a sub-step is a sentence, and attention costs the square of its length
LONGEST = 255  # bytes of a file name on all usual file systems (NAME_MAX of Linux)


def check_name(flag: str, name: str, error: type[UserError]) -> None:
    """Raises `error`, naming the flag, unless a text can name a folder, or be a part of such a name."""
    if not name.strip():
        fault = "it is blank"
    elif "/" in name:
        fault = "a / leads to another folder"
    elif name.startswith("."):
        fault = "with a dot in front it is hidden, or another folder"
    elif not name.isprintable():
        fault = "it has characters that cannot be seen"
    elif size_of(name) > LONGEST:
        fault = f"it has {size_of(name)} bytes, and a file name has at most {LONGEST}"
    else:
        return
    raise error(f"{flag}: expected a plain name, which becomes part of the name of a folder; got {name[:80]!r}: {fault}")


def check_dataset_name(flag: str, name: str, error: type[UserError]) -> None:
    """Raises `error`, naming the flag, unless a text is a plain name, or two of them as in owner/name."""
    owner, slash, rest = name.partition("/")
    for part in (owner, rest) if slash else (name,):
        check_name(flag, part, error)


def split_revision(dataset: str) -> tuple[str, str | None]:
    """The name of a dataset, and the revision behind it, as in owner/name@revision; None for none. Names without an owner have none."""
    name, _, revision = dataset.partition("@")
    return (name, revision or None) if "/" in name else (dataset, None)


def folder_name(dataset: str) -> str:
    """The name of a dataset as a part of the name of a folder."""
    return dataset.replace("/", "--")


def size_of(name: str) -> int:
    """Bytes of a file name."""
    return len(os.fsencode(name))


def instruction_fault(text: str) -> str | None:
    """What was expected of an instruction that nobody could follow; None for any other. The same in labels and in serving."""
    if is_blank(text) or not is_unicode(text):
        return "expected a text with a letter or digit, in Unicode"
    if len(text) > LONGEST_INSTRUCTION:
        return f"expected at most {LONGEST_INSTRUCTION:,} characters, not {len(text):,}"
    return None


def is_blank(text: str) -> bool:
    """Whether an instruction says nothing: it has no letter or digit of any script."""
    return not any(char.isalnum() for char in text)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON may hold halves of surrogate pairs, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
