"""A policy without networks, and servers of it on the loopback interface."""

import asyncio
import contextlib
import threading

import numpy as np
from websockets.sync.client import connect

from eosjax.ends.protocols import Rule
from eosjax.serving.chunk import Chunk
from eosjax.serving.mapping import ROBOTS
from eosjax.serving.observation import ObservationError, read_images, read_state
from eosjax.serving.server import Server, ServerSettings
from eosjax.serving.wire import pack, unpack

PLAIN = Rule(0.5)
IMAGE = np.full((4, 6, 3), 7, np.uint8)


class StubPolicy:
    """Says what the state says: `state[0]` times one in every action, and the scores `state[1:]`.

    `gate`, if given, is waited for in every call; an instruction "not finite" is an output that nobody may execute, "defect" a defect.
    """

    cameras = ("image", "wrist_image")
    with_state = True
    chunk = 4

    def __init__(self, rule=PLAIN, gate=None):
        self.rule, self.gate = rule, gate
        self.facts = {"action_dim": 7, "control_hz": 20.0}
        self.batches, self.warm, self.started = [], [], threading.Event()

    def check(self, request):
        if not isinstance(request.instruction, str):
            raise ObservationError("instruction: expected a text")
        read_images(request.observation, self.cameras)
        read_state(request.observation, 5)

    def predict(self, requests):
        self.started.set()
        if self.gate:
            assert self.gate.wait(20)
        self.batches.append([request.instruction for request in requests])
        if "not finite" in self.batches[-1]:
            raise ObservationError("the policy's action is not finite")
        if "defect" in self.batches[-1]:
            raise RuntimeError("secret of /etc/passwd")
        states = [np.asarray(request.observation["state"], np.float64) for request in requests]
        return [Chunk(np.full((4, 7), state[0]), None if self.rule is None else state[1:]) for state in states]

    def warm_up(self, rows):
        self.warm.append(rows)


def observation(number=1.0, scores=(0.0, 0.0, 0.0, 0.0), prompt="close it", **options):
    """What a LIBERO robot sends to the stub."""
    content = {
        "observation/image": IMAGE,
        "observation/wrist_image": IMAGE,
        "observation/state": np.array([number, *scores], np.float32),
        "prompt": prompt,
    }
    return content | ({"eosjax": options} if options else {})


class Running:
    """A server in a thread of its own."""

    def __init__(self, policy, server, port, loop, thread):
        self.policy, self.server, self.port, self._loop, self._thread = policy, server, port, loop, thread
        self.url = f"ws://127.0.0.1:{port}"

    @contextlib.contextmanager
    def connect(self, **options):
        """A connection whose metadata are read."""
        with connect(self.url, compression=None, max_size=None, **options) as connection:
            connection.metadata = unpack(connection.recv(timeout=20))
            yield connection

    def stop(self):
        """Asks it to stop."""
        self._loop.call_soon_threadsafe(self.server.stop)

    def join(self):
        """Waits until it has stopped."""
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running(policy=None, keys=ROBOTS["libero"], **settings):
    """A server of `policy` or a `StubPolicy`, on a free port or the one given."""
    policy = policy or StubPolicy()
    server = Server(policy, keys, ServerSettings(**{"port": 0, "max_rate": 1e9, **settings}))
    loop, ready, ports, faults = asyncio.new_event_loop(), threading.Event(), [], []

    def started(port):
        ports.append(port)
        ready.set()

    def run():
        try:
            loop.run_until_complete(server.run(started))
        except BaseException as error:
            faults.append(error)
        finally:
            ready.set()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(20)
    if not ports:
        raise faults[0]
    found = Running(policy, server, ports[0], loop, thread)
    try:
        yield found
    finally:
        if thread.is_alive():
            found.stop()
            found.join()
    assert not faults


def ask(connection, content):
    """The reply to an observation, or the text of the error."""
    connection.send(content if isinstance(content, (bytes, str)) else pack(content))
    reply = connection.recv(timeout=20)
    return reply if isinstance(reply, str) else unpack(reply)
