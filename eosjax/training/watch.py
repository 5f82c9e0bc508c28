"""A run of several processes ends as one: where one of them dies or fails, the others say which one and why, and end.

Process 0 keeps a connection to each of the others. It hears of an end by a line on it, or since the connection closes or falls silent, and
passes it on. Without this the others would wait in a reduction for what does not come, until JAX aborts them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from eosjax.config import TrainConfig
from eosjax.training import processes
from eosjax.types import UserError

SILENCE_SECONDS = 60  # a process that says nothing for so long is taken for dead
_BEAT_SECONDS = 5
_GRACE_SECONDS = 5  # for the news that another process has died, where an error may be the consequence of that
_BUG = 1  # exit status, as of Python's traceback
_DONE, _BEAT = "done", ""  # lines; any other one is JSON: why the run has ended


@contextlib.contextmanager
def watching(config: TrainConfig) -> Iterator[None]:
    """While it is open, all processes end if one of them does so without closing it. Every process must open it, with others or alone.

    An exception from within is told to the others. It goes on its way, but this process then ends without waiting for them.

    Raises:
      eosjax.training.processes.StartError: process 0 cannot be reached.
      eosjax.training.processes.OtherProcessError: another process cannot reach it.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _open(config)
    try:
        yield
    except BaseException as error:
        watch.fail(error)
        raise
    watch.say(_DONE)


def _open(config: TrainConfig) -> _Watch:
    server = processes.together(lambda: socket.create_server(("", 0)) if processes.is_first() else None)
    mine = [socket.gethostname(), server.getsockname()[1], secrets.token_hex()] if server else None
    host, port, token = json.loads(processes.exchange(json.dumps(mine))[0])
    if config.coordinator_address:
        host = config.coordinator_address.rpartition(":")[0].strip("[]")
    if server:
        server.settimeout(config.start_timeout)
        return _Watch(processes.together(lambda: _accept(server, token)))
    return _Watch({0: processes.together(lambda: _connect(host, port, token, config.start_timeout))})


def _accept(server: socket.socket, token: str) -> dict[int, socket.socket]:
    """The connections of all other processes, by their number."""
    found: dict[int, socket.socket] = {}
    with server:
        while len(found) < jax.process_count() - 1:
            try:
                connection, _ = server.accept()
            except OSError as error:
                missing = sorted({*range(1, jax.process_count())} - {*found})
                raise processes.StartError(f"processes {missing} of the run have not connected to process 0: {error}") from error
            connection.settimeout(SILENCE_SECONDS)
            said, number = b"", b""
            with contextlib.suppress(OSError):
                said, _, number = connection.recv(200).partition(b" ")
            if secrets.compare_digest(said, token.encode()):
                found[int(number)] = connection
            else:
                connection.close()
    return found


def _connect(host: str, port: int, token: str, timeout: float) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), timeout)
        connection.settimeout(SILENCE_SECONDS)
        connection.sendall(f"{token} {jax.process_index()}".encode())
    except OSError as error:
        raise processes.StartError(f"process 0 of the run cannot be reached at {host}, port {port}: {error.strerror or error}") from error
    return connection


class _Watch:
    """The connections of this process: of process 0 to all others, of another one to process 0."""

    def __init__(self, connections: dict[int, socket.socket]) -> None:
        self._connections = connections
        self._lock, self._ending = threading.Lock(), False
        for number, connection in connections.items():
            threading.Thread(target=self._listen, args=(number, connection), daemon=True, name=f"process {number}").start()
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()

    def say(self, line: str) -> None:
        """Sends a line to the other side, as far as that is still there."""
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(f"{line}\n".encode())

    def fail(self, error: BaseException) -> None:
        """Tells the others of an error here, and lets this process end without them."""
        known_to_all = isinstance(error, processes.StartError | processes.OtherProcessError)
        if not isinstance(error, UserError | KeyboardInterrupt):
            threading.Event().wait(_GRACE_SECONDS)  # news of another process ends this one meanwhile
        with self._lock:
            self._ending = True
        if not known_to_all:
            reason = str(error).strip() or type(error).__name__
            self.say(json.dumps(f"process {jax.process_index()} of the run has failed: {reason}"))
        status = (
            processes.USER_ERROR
            if isinstance(error, UserError)
            else processes.INTERRUPTED
            if isinstance(error, KeyboardInterrupt)
            else _BUG
        )
        atexit.register(processes.leave, status)  # before JAX's own, which waits for all processes

    def _listen(self, number: int, connection: socket.socket) -> None:
        done, problem = False, "has died"
        try:
            for line in connection.makefile(encoding="utf-8"):
                if line.strip() == _DONE:
                    done = True
                elif line.strip() != _BEAT:
                    self._end(json.loads(line))
        except TimeoutError:
            problem = f"has been silent for {SILENCE_SECONDS} s"
        except OSError:
            pass  # the connection was reset: it has died
        if not done:
            self._end(f"process {number} of the run {problem}; go on from the newest checkpoint with --resume True")

    def _beat(self) -> None:
        while not threading.Event().wait(_BEAT_SECONDS):
            self.say(_BEAT)

    def _end(self, reason: str) -> None:
        """Passes it on and ends this process, whatever its main thread waits for."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        self.say(json.dumps(reason))
        print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
        processes.leave(processes.USER_ERROR)
