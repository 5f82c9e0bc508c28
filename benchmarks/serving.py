"""Latency and throughput of `eosjax serve`, beside the pattern of openpi's server; pings, memory and connects.

    python benchmarks/serving.py
    python benchmarks/serving.py --infer_ms 100 --row_ms 5 --requests 30

The policy sleeps: `--infer_ms` for one observation and `--row_ms` more for each further one of a batch. It stands for a GPU, during whose
work Python's interpreter lock is free, and makes the cost of the server itself visible. Server and clients are processes of their own on
this machine; the clients are threads that send the next observation as soon as they have the reply. The servers take turns, so that
other load on the machine meets both; figures are the median of the turns [least, most].

* eosjax: `eosjax.serving.server.Server`, as `eosjax serve` runs it.
* one blocking call: a handler that calls the policy in the event loop, as openpi's `WebsocketPolicyServer` does; the same wire format.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from websockets.asyncio.server import serve
from websockets.sync.client import ClientConnection, connect

from eosjax.ends.protocols import Rule
from eosjax.reports.tables import markdown
from eosjax.serving.chunk import Chunk
from eosjax.serving.inference import Answer, Request
from eosjax.serving.mapping import ROBOTS
from eosjax.serving.observation import read_images, read_state
from eosjax.serving.server import Server, ServerSettings
from eosjax.serving.session import Options, Session
from eosjax.serving.wire import pack, unpack

EOSJAX, BLOCKING = "eosjax", "one blocking call"
IMAGE = 224
KEYS = ROBOTS["libero"]


class Size(NamedTuple):
    """How much is measured."""

    clients: tuple[int, ...] = (1, 8, 32)
    ping_seconds: float = 5.0  # of inference
    dropped: int = 1000  # connections


class SleepingPolicy:
    """Computes nothing, for as long as it is told."""

    cameras: Sequence[str] = ("image", "wrist_image")
    with_state = True
    chunk = 8
    rule: Rule | None = Rule(0.5, debounce=2, min_steps=4)
    facts: dict[str, Any] = {"action_dim": 7}  # noqa: RUF012  # as of `Served`

    def __init__(self, infer_ms: float, row_ms: float) -> None:
        self._first, self._more = infer_ms / 1e3, row_ms / 1e3

    def check(self, request: Request) -> None:
        """As `HostedPolicy`."""
        read_images(request.observation, self.cameras)
        read_state(request.observation, 8)

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """Sleeps once for all."""
        if seconds := self._first + self._more * (len(requests) - 1):
            time.sleep(seconds)
        return [Chunk(np.zeros((8, 7)), np.zeros(8)) for _ in requests]

    def warm_up(self, rows: int) -> None:
        """Nothing to compile."""


class Case(NamedTuple):
    """One server under test."""

    name: str
    infer_ms: float
    row_ms: float
    max_batch: int = 8


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--infer_ms", type=float, default=20.0, metavar="MS", help="time of one observation (%(default)g)")
    parser.add_argument("--row_ms", type=float, default=1.0, metavar="MS", help="time of each further one of a batch (%(default)g)")
    parser.add_argument("--requests", type=int, default=50, metavar="N", help="of each client (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of each server (%(default)s)")
    parser.add_argument("--memory_requests", type=int, default=100_000, metavar="N", help="of the measurement of memory (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that all of it works; the figures mean nothing")
    args = parser.parse_args()
    size = Size()
    if args.tiny:
        size = Size(clients=(2,), ping_seconds=0.5, dropped=10)
        args.infer_ms, args.requests, args.turns, args.memory_requests = 2.0, 3, 1, 100
    print(f"{os.cpu_count()} cores; 2 images of {IMAGE} x {IMAGE}; policy: {args.infer_ms:g} ms, {args.row_ms:g} ms more a row\n")
    print(markdown(speed_rows(size.clients, args.infer_ms, args.row_ms, args.requests, args.turns)), "\n")
    print(markdown(overhead_rows(10 * args.requests, args.turns)), "\n")
    print(markdown(ping_rows(size.ping_seconds)), "\n")
    print(markdown(endurance_rows(args.memory_requests, size.dropped)))


def speed_rows(clients: Sequence[int], infer_ms: float, row_ms: float, requests: int, turns: int) -> list[tuple[str, ...]]:
    """Latency and throughput by number of clients."""
    rows = [("clients", "server", "p50, ms", "p99, ms", "requests/s")]
    for number in clients:
        figures = turn_by_turn(infer_ms, row_ms, number, requests, turns)
        rows += [(str(number), name, *map(in_words, found.T)) for name, found in figures.items()]
    return rows


def overhead_rows(requests: int, turns: int) -> list[tuple[str, ...]]:
    """What one client waits for beside the policy: the round trip with a policy that takes no time."""
    figures = turn_by_turn(0, 0, 1, requests, turns)
    return [("server", "overhead, p50, ms", "p99, ms"), *((name, *map(in_words, found.T[:2])) for name, found in figures.items())]


def turn_by_turn(infer_ms: float, row_ms: float, clients: int, requests: int, turns: int) -> dict[str, np.ndarray]:
    """For each server f64 [turns, 3]: p50 and p99 in milliseconds, requests per second."""
    figures: dict[str, list[np.ndarray]] = {EOSJAX: [], BLOCKING: []}
    for _ in range(turns):
        for name, found in figures.items():
            with running(Case(name, infer_ms, row_ms)) as server:
                seconds, took = load(server.port, clients, requests)
            found.append(np.array([*(1e3 * np.quantile(seconds, [0.5, 0.99])), clients * requests / took]))
    return {name: np.stack(found) for name, found in figures.items()}


def in_words(values: np.ndarray) -> str:
    """The median of the turns [least, most]."""
    median, least, most = (f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in (np.median(values), values.min(), values.max()))
    return f"{median} [{least}, {most}]"


def ping_rows(seconds: float) -> list[tuple[str, ...]]:
    """When a ping is answered that comes while the policy computes for so long."""
    rows = [("server", f"ping during {seconds:g} s of inference")]
    for name in (EOSJAX, BLOCKING):
        with running(Case(name, 1e3 * seconds, 0)) as server, connected(server.port) as busy, connected(server.port) as other:
            busy.send(observation())
            time.sleep(0.2)  # it computes by then
            start = time.perf_counter()
            other.ping().wait(30)
            rows.append((name, f"{1e3 * (time.perf_counter() - start):.0f} ms"))
            busy.recv()
    return rows


def endurance_rows(requests: int, drops: int) -> list[tuple[str, ...]]:
    """Memory of the server over many requests of 4 clients, and what connections that are dropped leave behind."""
    rows = [("", "memory of the server", "open files")]
    with running(Case(EOSJAX, 0, 0)) as server:
        done = 0
        for share in (0.01, 0.1, 0.5, 1.0):
            more = int(requests * share) - done
            load(server.port, 4, more // 4)
            done += more
            rows.append((f"after {done:,} requests", *server.state()))
        start = time.perf_counter()
        for number in range(drops):
            with socket.create_connection(("127.0.0.1", server.port)) as dropped:
                if number % 2:
                    dropped.sendall(b"GET / HTTP/1.1\r\nHost")
        seconds = time.perf_counter() - start
        load(server.port, 1, 1)
        rows.append((f"after {drops:,} dropped connections ({seconds:.1f} s)", *server.state()))
    return rows


class Running(NamedTuple):
    """A server in a process of its own."""

    port: int
    pid: int

    def state(self) -> tuple[str, str]:
        """Resident memory, and open files."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return f"{memory / 1024:.1f} MiB", str(len(os.listdir(f"/proc/{self.pid}/fd")))


@contextlib.contextmanager
def running(case: Case) -> Iterator[Running]:
    """A server of the case, as long as the context lasts."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_server, args=[case, sender], daemon=True)
    process.start()
    try:
        yield Running(receiver.recv(), process.pid or 0)
    finally:
        process.terminate()
        process.join()


def run_server(case: Case, sender: multiprocessing.connection.Connection) -> None:
    """The process of a server."""
    policy = SleepingPolicy(case.infer_ms, case.row_ms)
    if case.name == EOSJAX:
        settings = ServerSettings(port=0, max_batch=case.max_batch, max_rate=1e9)
        asyncio.run(Server(policy, KEYS, settings).run(sender.send))
    else:
        asyncio.run(block(policy, sender))


async def block(policy: SleepingPolicy, sender: multiprocessing.connection.Connection) -> None:
    """The contender: the event loop waits for the policy."""

    async def handle(connection: Any) -> None:
        await connection.send(pack({"action_horizon": policy.chunk}))
        session = Session(policy.rule, policy.chunk)
        with contextlib.suppress(Exception):
            while True:
                request = Request(*KEYS.read(unpack(await connection.recv()), 2, with_state=True))
                (chunk,) = policy.predict([request])
                reply, _ = session.reply(request.instruction, Options(), Answer(chunk, 0.0, 0.0, 1))
                await connection.send(pack(reply))

    async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None, ping_timeout=None) as server:
        sender.send(server.sockets[0].getsockname()[1])
        await server.wait_closed()


def load(port: int, clients: int, requests: int) -> tuple[np.ndarray, float]:
    """Seconds of each request of so many clients, f64 [clients * requests], and of all; in a process of their own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(ask_all, (port, clients, requests))


def ask_all(port: int, clients: int, requests: int) -> tuple[np.ndarray, float]:
    """The process of the clients, which begin together."""
    begun: list[float] = []
    barrier = threading.Barrier(clients, lambda: begun.append(time.perf_counter()))
    with ThreadPoolExecutor(clients) as pool:
        seconds = np.concatenate(list(pool.map(lambda _: ask(port, requests, barrier), range(clients))))
    return seconds, time.perf_counter() - begun[0]


def ask(port: int, requests: int, barrier: threading.Barrier) -> np.ndarray:
    """Seconds of each request of one client."""
    message, seconds = observation(), np.zeros(requests)
    with connected(port) as connection:
        barrier.wait()
        for number in range(requests):
            start = time.perf_counter()
            connection.send(message)
            unpack(connection.recv(decode=False))
            seconds[number] = time.perf_counter() - start
    return seconds


@contextlib.contextmanager
def connected(port: int) -> Iterator[ClientConnection]:
    """A connection whose metadata are read."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, ping_timeout=None) as connection:
        connection.recv()
        yield connection


def observation() -> bytes:
    """A request."""
    image = np.random.default_rng(0).integers(0, 256, (IMAGE, IMAGE, 3), dtype=np.uint8)
    images = {"observation/image": image, "observation/wrist_image": image}
    return pack({**images, "observation/state": np.zeros(8), "prompt": "pick up the bowl"})


if __name__ == "__main__":
    main()
