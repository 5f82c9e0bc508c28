"""Who may talk to a server, and how often; and what it answers over plain HTTP."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from eosjax.serving.metrics import CONTENT_TYPE, Metrics


class Door:
    """Answers `GET /healthz` and `GET /metrics`, and lets websockets in at `/`.

    Args:
      api_key: what a client must bring, except to /healthz; None for no key.
      metrics: of the server.
      stops: whether the server is about to end.
      is_full: whether it has all the connections that it may have.
    """

    def __init__(self, api_key: bytes | None, metrics: Metrics, stops: Callable[[], bool], is_full: Callable[[], bool]) -> None:
        self._expected = None if api_key is None else b"Api-Key " + api_key
        self._metrics, self._stops, self._is_full = metrics, stops, is_full

    def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer to an HTTP request; None to go on with the handshake of the websocket."""
        path = request.path.partition("?")[0]
        if path == "/healthz" and not self._stops():
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._stops():
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the server stops\n")
        if not self._has_key(request.headers.get_all("Authorization")):
            self._metrics.refused("key")
            return connection.respond(HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Api-Key KEY, with this server's key\n")
        if path == "/metrics":
            response = connection.respond(HTTPStatus.OK, self._metrics.text().decode())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if path != "/":
            return connection.respond(HTTPStatus.NOT_FOUND, "expected a websocket at /, or GET of /healthz or /metrics\n")
        if self._is_full():
            self._metrics.refused("connections")
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "no more connections are allowed\n")
        return None

    def _has_key(self, given: list[str]) -> bool:
        """Whether the key was brought; takes as long for one that is nearly right as for any other."""
        if self._expected is None:
            return True
        return len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), self._expected)


class Budget:
    """Requests that a connection may send now: `rate` more each second, and never more than those of a second."""

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._now = rate, now
        self._most = self._left = max(rate, 1.0)
        self._since = now()

    def take(self) -> bool:
        """Whether one more may come; it is counted if so."""
        now = self._now()
        self._left = min(self._left + (now - self._since) * self._rate, self._most)
        self._since = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
