"""Ctrl-C and SIGTERM: at once before training, and as a flag that the training loop looks at between updates.

Several processes have to stop at the same update. For them JAX's preemption service listens to SIGTERM. It agrees on the first question, by
the numbers that the processes give to theirs, that none of them has asked yet.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
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
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """SIGINT and SIGTERM, to any process of the run, ask for its end; a second one acts as usual.

    Yields a function that tells, given the updates made so far, whether to stop here. All processes must ask it before each update.

    Raises:
      KeyboardInterrupt: it came before, and was lost (see `stop_at_once`).
    """
    import jax  # `stop_at_once` comes before it is loaded
    from jax.experimental import multihost_utils

    if _interrupted:
        raise KeyboardInterrupt
    flag, alone = Flag(), jax.process_count() == 1
    # Of several processes, SIGTERM belongs to JAX.
    usual = {number: signal.getsignal(number) for number in ((signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,))}

    def receive(number: int, frame: Any) -> None:
        flag.raised = True
        for signal_number, handler in usual.items():
            signal.signal(signal_number, handler)
        if not alone:
            os.kill(os.getpid(), signal.SIGTERM)

    for number in usual:
        signal.signal(number, receive)
    try:
        numbers = itertools.count(1)  # not those of updates: a signal before the first question means number 1
        yield lambda step: flag.raised if alone else multihost_utils.reached_preemption_sync_point(next(numbers))
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
