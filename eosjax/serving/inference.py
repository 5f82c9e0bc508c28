"""The thread in which a served policy computes. Requests that wait together go through the networks together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from eosjax.ends.protocols import Rule
from eosjax.serving.chunk import Chunk


class Request(NamedTuple):
    """One observation, in the form of `eosjax.serving.policy.Policy`, and what to do."""

    observation: Mapping[str, Any]
    instruction: str


class Served(Protocol):
    """What the server needs of a policy."""

    cameras: Sequence[str]  # names, in order
    with_state: bool
    chunk: int  # actions of a chunk
    rule: Rule | None  # when a sub-step ends; None without an EOS head

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a robot may want to know, for the metadata: plain values."""
        ...

    def check(self, request: Request) -> None:
        """Raises `UserError` for what the policy could not take. Cheap: runs beside the connections."""
        ...

    def predict(self, requests: Sequence[Request]) -> Sequence[Chunk]:
        """A chunk for each; `UserError` for an output that no robot may execute."""
        ...

    def warm_up(self, rows: int) -> None:
        """Compiles what `predict` needs for so many requests."""
        ...


class Answer(NamedTuple):
    """A chunk, and what it took."""

    chunk: Chunk
    waited: float  # seconds in the queue
    computed: float  # seconds in the networks
    rows: int  # requests that were computed together


class Inference:
    """Runs `predict` in one thread of its own, so that whoever submits is never blocked.

    Args:
      predict: as of `Served`. An error of a batch is that of the requests that raise it alone.
      max_batch: most requests of one call.
    """

    def __init__(self, predict: Callable[[Sequence[Request]], Sequence[Chunk]], max_batch: int) -> None:
        self._predict, self._max_batch = predict, max_batch
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Future[Answer]:
        """The answer to come. A future that is cancelled before its turn costs nothing."""
        job = _Job(request, Future(), time.perf_counter())
        self._waiting.put(job)
        return job.future

    @property
    def waiting(self) -> int:
        """Requests whose turn has not come."""
        return self._waiting.qsize()

    def close(self, timeout: float | None = None) -> None:
        """Computes what waits, then ends the thread; waits so many seconds for that. Nothing may be submitted afterwards."""
        self._waiting.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        open_ = True
        while open_:
            batch: list[_Job] = []
            job = self._waiting.get()
            while job is not None:
                if job.future.set_running_or_notify_cancel():
                    batch.append(job)
                if len(batch) == self._max_batch:
                    break
                try:
                    job = self._waiting.get_nowait()
                except queue.Empty:
                    break
            open_ = job is not None
            if batch:
                self._answer(batch)

    def _answer(self, batch: list[_Job]) -> None:
        start = time.perf_counter()
        try:
            chunks = self._predict([job.request for job in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for job in batch:
                    self._answer([job])
            return
        computed = time.perf_counter() - start
        for job, chunk in zip(batch, chunks, strict=True):
            job.future.set_result(Answer(chunk, start - job.since, computed, len(batch)))


class _Job(NamedTuple):
    request: Request
    future: Future[Answer]
    since: float
