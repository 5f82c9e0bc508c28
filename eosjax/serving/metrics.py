"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from eosjax.ends.protocols import Cut
from eosjax.serving.inference import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From 1 ms to 10 s, each at most a quarter larger than the last one: so exact is a quantile that Prometheus computes of them.
_STEPS = (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2)
_SECONDS = (*(float(f"{step}e{power}") for power in (-3, -2, -1, 0) for step in _STEPS), 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one server.

    Args:
      waiting: the requests whose turn has not come.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        seconds = Histogram(
            "eosjax_request_seconds",
            "Time of a request: in the queue, in the networks, and from its last byte to the reply",
            ["part"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._waited, self._computed, self._total = (seconds.labels(part) for part in ("queue", "networks", "total"))
        self._rows = Histogram("eosjax_batch_rows", "Requests computed together", buckets=_ROWS, registry=self._registry)
        self._errors = Counter("eosjax_errors", "What was refused, by reason", ["reason"], registry=self._registry)
        self._ends = Counter("eosjax_ends", "Sub-steps said to end, by how", ["how"], registry=self._registry)
        for how in ("seen", "timed_out"):
            self._ends.labels(how)
        self.connections = Gauge("eosjax_connections", "Open connections", registry=self._registry)
        Gauge("eosjax_waiting_requests", "Requests in the queue", registry=self._registry).set_function(waiting)

    def answered(self, answer: Answer, cut: Cut | None, seconds: float) -> None:
        """Counts a request that got its reply."""
        self._waited.observe(answer.waited)
        self._computed.observe(answer.computed)
        self._total.observe(seconds)
        self._rows.observe(answer.rows)
        if cut is not None and cut.slot is not None:
            self._ends.labels("timed_out" if cut.timed_out else "seen").inc()

    def refused(self, reason: str) -> None:
        """Counts what was refused; reasons are few and fixed."""
        self._errors.labels(reason).inc()

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self._registry)
