"""What a failed read of a checkpoint shows: damage of its files, or trouble that says nothing about them.

A damaged checkpoint may be passed over for an older one. One that merely cannot be read now (no permission, a file system that is gone, no
memory) must not be: the older one would be taken though the newer is whole.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from eosjax.types import UserError

# TensorStore raises a ValueError that begins with the code of its status; of an error of the system it appends the number.
_STATUS = re.compile(r"^([A-Z][A-Z_]+): ")
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")
_CONTENT_CODES = {"DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION", "INVALID_ARGUMENT"}  # what the files hold, or lack
_NO_SUCH_FILE = "2"  # ENOENT
_LONGEST = 300
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM}


class FileSystemError(UserError):
    """The file system failed while a run was in progress."""


class UnreadableError(UserError):
    """Files that cannot be read now. Says nothing of what they hold."""


def damage_in(error: Exception, folder: Path) -> str:
    """What shows that a checkpoint is damaged, in one line.

    Args:
      error: what reading it has raised. It is read as its record says, so that content which a reader objects to is not what was saved.
      folder: of the checkpoint.

    Raises:
      UnreadableError: the error is no sign of damage.
      Exception: the error itself, if it is none of reading at all: a defect.
    """
    chain = list(_chain(error))
    for each in chain:
        if _is_trouble(each):
            text = f"{folder}: cannot be read, which shows no damage, so that no other one is taken: {first_line(each)}"
            raise UnreadableError(text) from error
    if not folder.is_dir():
        raise UnreadableError(f"{folder}: cannot be read: the folder is gone") from error
    shown = next((each for each in chain if isinstance(each, (ValueError, KeyError, FileNotFoundError))), None)
    if shown is None:
        raise error
    return first_line(shown)


def file_system_fault(error: BaseException) -> str | None:
    """What the system says of a disk that is full, read-only, closed or gone, and of which file; None for any other error."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _DISK_ERRORS:
            return os.strerror(each.errno) + (f" ({each.filename})" if each.filename else "")
        if isinstance(each, ValueError) and (number := _SYSTEM_ERROR.search(str(each))) and int(number[1]) in _DISK_ERRORS:
            return os.strerror(int(number[1]))
    return None


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without the settings that TensorStore appends."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.partition(" [tensorstore_spec")[0][:_LONGEST]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what it was raised from; the cause is at the end."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_trouble(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    if isinstance(error, ValueError) and (status := _STATUS.match(str(error))):
        number = _SYSTEM_ERROR.search(str(error))
        return status[1] not in _CONTENT_CODES or (number is not None and number[1] != _NO_SUCH_FILE)
    return isinstance(error, (MemoryError, jax.errors.JaxRuntimeError))
