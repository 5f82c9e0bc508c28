"""One process a run folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from eosjax.types import UserError

LOCK_FILE = ".lock"
_TRIES, _PAUSE = 5, 0.05  # seconds between them: whoever looks at a lock holds it for a moment


class LockedError(UserError):
    """Another process works in the folder, or nobody may."""


class RunLock:
    """Held by the process that trains in a folder, until it closes the lock or ends, however it ends.

    The kernel holds the lock (flock(2)), so that none is left behind by a process that was killed. The file says who has it.

    Args:
      folder: of the run; made if missing.

    Raises:
      LockedError: another process, or another lock of this one, has it; or the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._file = _open(folder)
        for left in reversed(range(_TRIES)):
            if _taken(self._file.fileno(), fcntl.LOCK_EX):
                break
            if not left:
                self._file.close()
                raise _refusal(folder)
            time.sleep(_PAUSE)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def holder(folder: Path) -> str:
    """Who has, or had last, the lock of a folder; nobody is the empty text."""
    try:
        return (folder / LOCK_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def check_unlocked(folder: Path) -> None:
    """Raises `LockedError` if another process works in the folder; leaves nothing behind."""
    if (folder / LOCK_FILE).exists():
        with _open(folder) as file:
            if not _taken(file.fileno(), fcntl.LOCK_SH):  # shared: the processes of a run all look, at the same time
                raise _refusal(folder)


def _open(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise LockedError(f"{folder}: a run must write there, and cannot: {error.strerror}") from error


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _refusal(folder: Path) -> LockedError:
    owner = holder(folder) or "another process"
    return LockedError(
        f"{folder}: {owner} is training in this folder; wait for it, or start another run (--run_id_note NAME, --run_root_dir DIR)"
    )
