"""Simulators in processes of their own: one that dies or hangs costs its episode, and nothing else."""

from __future__ import annotations

import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from eosjax.envs.worlds import WorldError

_PATIENCE = 300.0  # seconds for a reply
_ENDING = 5.0  # seconds for a process to end


class SimulatorDiedError(Exception):
    """The process of a simulator is gone, or what it was asked for failed there."""


class SimulatorProcess:
    """A process that does what an object there can do. `ask` and then `reply`, so that several work at the same time.

    Args:
      make: makes the object, in the process.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        context = get_context("spawn")
        self._link, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()
        self.alive = True

    def ask(self, name: str, *args: Any) -> None:
        """Calls a method of the object; a process that is gone is noticed by `reply`."""
        try:
            self._link.send((name, args))
        except OSError:
            self.alive = False

    def reply(self) -> Any:
        """What the method returned.

        Raises:
          WorldError: it raised one; the next episode would fare no better.
          SimulatorDiedError: it raised something else, or the process is gone.
        """
        try:
            if not self.alive or not self._link.poll(_PATIENCE):
                raise EOFError
            fault, value = self._link.recv()
        except (EOFError, OSError):
            raise SimulatorDiedError(self._end()) from None
        if isinstance(fault, WorldError):
            raise fault
        if fault is not None:
            raise SimulatorDiedError(fault)
        return value

    def _end(self) -> str:
        """Ends the process; says how it ended."""
        self.alive = False
        self._process.join(_ENDING)
        code = self._process.exitcode
        if code is not None:
            return f"the process of the simulator died (exit code {code})"
        self._process.kill()
        self._process.join()
        return f"the simulator did not answer for {_PATIENCE:.0f} s"


def _serve(link: Connection, make: Callable[[], Any]) -> None:
    """Answers until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    served = make()
    while True:
        try:
            name, args = link.recv()
        except EOFError:
            return
        try:
            answer = None, getattr(served, name)(*args)
        except WorldError as error:
            answer = error, None
        except Exception as error:  # a simulator may fail in any way
            answer = f"{type(error).__name__}: {error}", None
        link.send(answer)
