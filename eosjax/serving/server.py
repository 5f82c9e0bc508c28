"""A policy behind a websocket, in the protocol of openpi: robots that speak it need no change.

    server → metadata, once          client → observation          server → actions, and where the sub-step ends

All messages are msgpack maps (`eosjax.serving.wire`); a text message is an error, after which the server closes the connection with 1011.
One event loop reads and writes, one thread computes (`eosjax.serving.inference`). Source of the protocol: openpi,
`src/openpi/serving/websocket_policy_server.py`, and openpi-client 0.1.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from eosjax.serving.door import Budget, Door
from eosjax.serving.inference import Answer, Inference, Request, Served
from eosjax.serving.mapping import ObservationKeys
from eosjax.serving.metrics import Metrics
from eosjax.serving.observation import ObservationError
from eosjax.serving.session import Options, Session, read_options
from eosjax.serving.wire import Limits, pack, unpack
from eosjax.types import UserError

log = logging.getLogger(__name__)
_LONGEST_ERROR = 1000  # characters


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """How a policy is served.

    Attributes:
      host, port: where to listen; port 0 takes a free one.
      api_key: what a client must bring; None for no key.
      tls: certificate and key; None for no encryption.
      max_batch: most requests computed together.
      execute_steps: actions of a chunk that a robot executes before it asks again, unless it says otherwise; None for all of them.
      max_bytes: of a message.
      max_connections: at one time.
      max_rate: requests per second of one connection.
      limits: on what a message holds.
      open_seconds: for a handshake.
      drain_seconds: for requests that are under way when the server is told to stop.
      ping_seconds: between pings, and for the answer to one.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: bytes | None = None
    tls: ssl.SSLContext | None = None
    max_batch: int = 8
    execute_steps: int | None = None
    max_bytes: int = 16 * 2**20
    max_connections: int = 64
    max_rate: float = 100.0
    limits: Limits = dataclasses.field(default_factory=Limits)
    open_seconds: float = 10.0
    drain_seconds: float = 30.0
    ping_seconds: float = 20.0


class Server:
    """One policy for many robots.

    Args:
      served: the policy.
      keys: where the robots put what it sees.
      settings: the rest.

    Raises:
      eosjax.serving.mapping.MappingError: the keys do not fit the policy.
      UserError: `execute_steps` is no part of a chunk.
    """

    def __init__(self, served: Served, keys: ObservationKeys, settings: ServerSettings | None = None) -> None:
        settings = settings or ServerSettings()
        keys.check(served.cameras, with_state=served.with_state)
        self._execute_steps = settings.execute_steps or served.chunk
        if not 1 <= self._execute_steps <= served.chunk:
            raise UserError(f"execute_steps: expected 1 to {served.chunk}, the actions of a chunk; got {settings.execute_steps}")
        self._served, self._keys, self._settings = served, keys, settings
        self._inference = Inference(served.predict, settings.max_batch)
        self._metrics = Metrics(lambda: self._inference.waiting)
        self._metadata = pack(self._describe())
        self._open: set[ServerConnection] = set()
        self._busy: set[ServerConnection] = set()
        self._stopping = asyncio.Event()

    async def run(self, started: Callable[[int], None] = lambda port: None) -> None:
        """Serves until `stop`, then answers what is under way, and returns.

        Args:
          started: is told the port once clients can connect; the networks are compiled by then.

        Raises:
          UserError: the address cannot be listened on.
        """
        settings = self._settings
        address = _bind(settings.host, settings.port)  # before the networks are compiled, which may take minutes
        try:
            await asyncio.to_thread(self._warm_up)
            server = await self._listen(address)
            started(address.getsockname()[1])
            await self._stopping.wait()
            server.close(close_connections=False)
            idle = [connection.close(CloseCode.GOING_AWAY, "the server stops") for connection in self._open - self._busy]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*idle, server.wait_closed()), settings.drain_seconds)
        finally:
            for connection in self._open:
                connection.transport.abort()
            address.close()
            await asyncio.to_thread(self._inference.close, settings.drain_seconds)

    def stop(self) -> None:
        """Ends `run`. To be called in its event loop."""
        self._stopping.set()

    async def _listen(self, address: socket.socket) -> WebsocketServer:
        settings = self._settings
        return await serve(
            self._handle,
            sock=address,
            ssl=settings.tls,
            origins=[None],  # no page in a browser speaks for a robot
            compression=None,
            max_size=settings.max_bytes,
            max_queue=1,
            open_timeout=settings.open_seconds,
            ping_interval=settings.ping_seconds,
            ping_timeout=settings.ping_seconds,
            process_request=Door(settings.api_key, self._metrics, self._stopping.is_set, self._is_full),
            server_header=None,
            logger=logging.Logger("websockets", logging.CRITICAL),  # a traceback for each stranger who speaks something else
        )

    def _warm_up(self) -> None:
        rows = 1
        self._served.warm_up(rows)
        while rows < self._settings.max_batch:
            rows *= 2
            self._served.warm_up(rows)

    def _describe(self) -> dict[str, Any]:
        """The metadata."""
        served = self._served
        return {
            "server": "eosjax",
            "action_horizon": served.chunk,
            "execute_steps": self._execute_steps,
            "images": dict(zip(served.cameras, self._keys.images, strict=False)),
            "image_channels": self._keys.channels,
            "state": list(self._keys.state) if served.with_state else [],
            "prompt": self._keys.prompt,
            "rule": served.rule and dataclasses.asdict(served.rule),
            "max_bytes": self._settings.max_bytes,
            "max_rate": self._settings.max_rate,
            **served.facts,
        }

    def _is_full(self) -> bool:
        return len(self._open) >= self._settings.max_connections

    async def _handle(self, connection: ServerConnection) -> None:
        """One connection, from the metadata to its end."""
        self._open.add(connection)
        self._metrics.connections.inc()
        log.info("%s: connected", _peer(connection))
        gone = asyncio.ensure_future(connection.wait_closed())
        try:
            await connection.send(self._metadata)
            await self._converse(connection, gone)
        except ConnectionClosed:
            pass
        except UserError as error:
            log.warning("%s: refused: %s", _peer(connection), error)
            await _refuse(connection, str(error)[:_LONGEST_ERROR])
        except Exception:
            self._metrics.refused("defect")
            log.exception("%s: a defect", _peer(connection))
            await _refuse(connection, "the server failed; its log says how")
        finally:
            gone.cancel()
            self._busy.discard(connection)
            self._open.discard(connection)
            self._metrics.connections.dec()
            log.info("%s: gone", _peer(connection))

    async def _converse(self, connection: ServerConnection, gone: asyncio.Future[None]) -> None:
        """Answers requests, one after the other."""
        session = Session(self._served.rule, self._execute_steps)
        budget = Budget(self._settings.max_rate)
        while not self._stopping.is_set():
            message = await connection.recv()
            start = time.perf_counter()
            self._busy.add(connection)
            request, options = self._read(message, budget)
            answer = await self._compute(request, gone)
            if answer is None:
                return
            content, cut = session.reply(request.instruction, options, answer)
            reply = pack(content)
            self._metrics.answered(answer, cut, time.perf_counter() - start)
            await connection.send(reply)
            self._busy.discard(connection)
        await connection.close(CloseCode.GOING_AWAY, "the server stops")

    def _read(self, message: str | bytes, budget: Budget) -> tuple[Request, Options]:
        """The request in a message; `UserError` for any that is refused."""
        try:
            if not budget.take():
                raise ObservationError(f"expected at most {self._settings.max_rate:g} requests per second, got more")
            if isinstance(message, str):
                raise ObservationError("expected a binary message, got a text")
            content = unpack(message, self._settings.limits)
            options = read_options(content, self._served.chunk)
            request = Request(*self._keys.read(content, len(self._served.cameras), with_state=self._served.with_state))
            self._served.check(request)
        except UserError:
            self._metrics.refused("request")
            raise
        return request, options

    async def _compute(self, request: Request, gone: asyncio.Future[None]) -> Answer | None:
        """The answer, or None if the client is gone before it is there."""
        future = asyncio.wrap_future(self._inference.submit(request))
        await asyncio.wait([future, gone], return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            future.cancel()
            return None
        try:
            return future.result()
        except UserError:
            self._metrics.refused("output")
            raise


def serve_until_stopped(server: Server, started: Callable[[int], None]) -> None:
    """Runs a server until SIGTERM or SIGINT (Ctrl-C)."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        await server.run(started)

    asyncio.run(run())


def _bind(host: str, port: int) -> socket.socket:
    """An address that nobody else listens on, and that does not yet take connections; `UserError` if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on: {error.strerror or error}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise UserError(f"{host}:{port}: cannot be listened on: {error.strerror or error}") from error
    return found


async def _refuse(connection: ServerConnection, text: str) -> None:
    with contextlib.suppress(ConnectionClosed):
        await connection.send(text)
        await connection.close(CloseCode.INTERNAL_ERROR, "the last message says why")


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return ":".join(map(str, address[:2])) if address else "a client"
