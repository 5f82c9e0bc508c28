"""A policy behind a server, as a robot sees it. Needs NumPy, websockets and msgpack alone.

policy = RemotePolicy("ws://gpu-machine:8000", api_key="…")
chunk = policy.plan(observation, "pick up the bowl", Clock(), execute_steps=8)
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from typing import Any

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from eosjax.ends.protocols import Clock, Rule
from eosjax.serving.chunk import Chunk
from eosjax.serving.wire import Limits, WireError, pack, unpack
from eosjax.types import UserError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between attempts to connect; each pause is twice the last one
_FORBIDDEN = (400, 401, 403, 404, 426)  # what another attempt does not change
_BROKEN = (OSError, EOFError, WebSocketException)  # TimeoutError is an OSError; websockets before 15 lets EOFError out
_REPLY_LIMITS = Limits(entries=100_000)


class ServerLostError(UserError):
    """The server does not answer in time: it is gone, or the network is."""


class ServerRefusedError(UserError):
    """The server answered, and refused."""


class RemotePolicy:
    """The policy of a server, for one thread. Connects at once, and again whenever the connection is lost.

    A reply belongs to its request: it has the request's number, and a connection on which one is overdue is given up. The state of
    the server changes no answer, so that a request may go to a server that was started anew.

    Args:
      url: such as ws://127.0.0.1:8000, or wss:// for an encrypted one.
      api_key: of the server, if it wants one.
      deadline: seconds from a request to its reply, attempts to connect again included. Its actions are for an observation of that age.
      wait: seconds to wait for the server at the start; it opens its port once the networks are compiled.
      tls: which certificates to trust, for wss://; None for those of the system.

    Raises:
      ServerLostError: no server there.
      ServerRefusedError: the key is missing or wrong, or what is there is no such server.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, deadline: float = 1.0, wait: float = 60.0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._url, self._deadline, self._tls = url, deadline, tls
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._connection: ClientConnection | None = None
        self._closing = contextlib.ExitStack()
        self._requests = 0
        self.metadata: Mapping[str, Any] = {}
        self._connect(time.monotonic() + wait)

    @property
    def chunk(self) -> int:
        """Actions of a chunk."""
        return self.metadata["action_horizon"]

    @property
    def rule(self) -> Rule | None:
        """When a sub-step ends; None for a policy without an EOS head."""
        rule = self.metadata.get("rule")
        return None if rule is None else Rule(**rule)

    def plan(self, observation: Mapping[str, Any], instruction: str, clock: Clock, execute_steps: int) -> Chunk:
        """The chunk for an observation, whose entries are those that the server was told to expect.

        Args:
          observation: images and state.
          instruction: the sub-step to follow.
          clock: of it; for the figures of the server.
          execute_steps: actions that the robot will execute.

        Raises:
          ServerLostError: no reply until the deadline.
          ServerRefusedError: the server says what is wrong with the request.
        """
        options = {"clock": clock._asdict(), "execute_steps": execute_steps}
        reply = self.infer({**observation, self.metadata["prompt"]: instruction}, options)
        return Chunk(reply["actions"], reply.get("eos"))

    def infer(self, observation: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The whole reply to an observation that has its instruction in it. Raises as `plan`."""
        self._requests += 1
        number = self._requests
        message = pack({**observation, "eosjax": {**(options or {}), "request_id": number}})
        until = time.monotonic() + self._deadline
        while True:
            try:
                return self._exchange(message, number, until)
            except _BROKEN as error:
                self.close()
                if time.monotonic() >= until:
                    raise ServerLostError(f"{self._url}: no reply within {self._deadline:g} s: {_why(error)}") from error

    def close(self) -> None:
        """Closes the connection; the next request opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._closing.close()

    def _exchange(self, message: bytes, number: int, until: float) -> dict[str, Any]:
        connection = self._connection or self._connect(until)
        connection.send(message)
        while True:
            reply = connection.recv(timeout=max(0.0, until - time.monotonic()))
            content = self._content(reply)
            if content.get("request_id") == number:
                return content

    def _connect(self, until: float) -> ClientConnection:
        """Connects, with longer and longer pauses between the attempts."""
        pause = _FIRST_PAUSE
        while True:
            left = max(0.01, until - time.monotonic())
            try:
                self._connection = self._closing.enter_context(
                    connect(
                        self._url,
                        additional_headers=self._headers,
                        compression=None,
                        max_size=None,
                        open_timeout=left,
                        close_timeout=0.1,
                        ssl=self._tls,
                    )
                )
                self._connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(self._deadline))
                self._meet(self._content(self._connection.recv(timeout=left)))
                return self._connection
            except InvalidStatus as error:
                if error.response.status_code in _FORBIDDEN:
                    text = bytes(error.response.body or b"").decode("utf-8", "replace").strip()
                    raise ServerRefusedError(f"{self._url}: HTTP {error.response.status_code}: {text[:200]}") from error
                fault: Exception = error
            except ssl.SSLCertVerificationError as error:
                raise ServerRefusedError(f"{self._url}: the certificate is not trusted: {error.verify_message}") from error
            except _BROKEN as error:
                fault = error
            self.close()
            if time.monotonic() + pause >= until:
                raise ServerLostError(f"{self._url}: cannot connect: {_why(fault)}") from fault
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _meet(self, metadata: dict[str, Any]) -> None:
        """Takes the metadata of a server, which is to be the one that was there before."""
        if not {"action_horizon", "prompt", "rule"} <= metadata.keys():
            self.close()
            raise ServerRefusedError(f"{self._url}: expected a server of eosjax; its metadata are {sorted(metadata)!s:.200}")
        if self.metadata and metadata != self.metadata:
            self.close()
            changed = sorted(key for key in metadata.keys() | self.metadata.keys() if metadata.get(key) != self.metadata.get(key))
            raise ServerRefusedError(f"{self._url}: the server came back with another policy: {', '.join(changed)} changed")
        self.metadata = metadata

    def _content(self, reply: str | bytes) -> dict[str, Any]:
        if isinstance(reply, str):
            self.close()
            raise ServerRefusedError(f"{self._url}: {reply}")
        try:
            return unpack(reply, _REPLY_LIMITS)
        except WireError as error:
            self.close()
            raise ServerRefusedError(f"{self._url}: no server of this protocol: {error}") from error


def _timeval(seconds: float) -> bytes:
    """For the socket option that bounds a send: to a machine that is gone it would wait until the system gives up, after many minutes."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
