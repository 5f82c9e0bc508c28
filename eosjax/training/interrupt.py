"""Ctrl-C and SIGTERM: at once before training, and as a flag that the training loop looks at between updates."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Flag:
    """True once raised."""

    def __init__(self) -> None:
        self.raised = False

    def __bool__(self) -> bool:
        return self.raised


_interrupted = Flag()


def stop_at_once() -> None:
    """From here on Ctrl-C raises `KeyboardInterrupt`, as usual, and is remembered: an exception within a callback of a library is lost."""

    def receive(number: int, frame: Any) -> None:
        _interrupted.raised = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, receive)


@contextlib.contextmanager
def stop_signals() -> Iterator[Flag]:
    """SIGINT and SIGTERM raise the flag; a second one acts as usual.

    Raises:
      KeyboardInterrupt: it came before, and was lost (see `stop_at_once`).
    """
    if _interrupted:
        raise KeyboardInterrupt
    flag = Flag()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, frame: Any) -> None:
        flag.raised = True
        for signal_number, handler in usual.items():
            signal.signal(signal_number, handler)

    for number in usual:
        signal.signal(number, receive)
    try:
        yield flag
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
