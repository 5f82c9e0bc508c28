"""What breaks on a network, and what strangers send: nothing hangs, nothing leaks, and no request of another client is lost."""

import contextlib
import os
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from eosjax.serving.wire import pack, unpack
from tests.serving.served import StubPolicy, ask, observation, running
from tests.serving.test_server import figure, until


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found


@pytest.fixture
def bystander(server):
    """Another client: whatever a test does, it is answered, and at the end nobody else is left."""
    with server.connect() as connection:
        assert ask(connection, observation(1.0))["actions"][0, 0] == 1.0
        yield connection
        assert ask(connection, observation(2.0))["actions"][0, 0] == 2.0
        until(lambda: figure(server, "eosjax_connections") == 1)


def raw(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def closed_by_the_server(connection):
    """Waits until the other side has closed."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return True


def test_a_client_that_dies_in_the_middle_of_a_message(server, bystander):
    frame = b"\x82\xfe\x10\x00" + b"mask" + bytes(1000)  # binary, masked, of 4,096 bytes
    for _ in range(20):
        with server.connect() as connection:
            connection.socket.sendall(frame)
            connection.socket.shutdown(socket.SHUT_RDWR)


def test_a_client_that_dies_while_the_policy_computes():
    gate = threading.Event()
    with running(StubPolicy(gate=gate)) as server, server.connect() as other:
        with server.connect() as connection:
            connection.send(pack(observation()))
            assert server.policy.started.wait(20)
            connection.socket.shutdown(socket.SHUT_RDWR)
        other.send(pack(observation(3.0)))
        gate.set()
        assert unpack(other.recv(timeout=20))["actions"][0, 0] == 3.0


def test_a_client_that_says_nothing():
    with running(open_seconds=0.1) as server, raw(server) as silent:
        assert closed_by_the_server(silent)


def test_a_client_that_no_longer_answers_pings():
    """Half open: its machine is gone, and nobody has closed the connection."""
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 13", "", ""]
    with running(ping_seconds=0.1) as server:
        with raw(server) as silent:
            silent.sendall("\r\n".join(upgrade).encode())
            assert closed_by_the_server(silent)
        until(lambda: figure(server, "eosjax_connections") == 0)


def test_a_thousand_connects(server, bystander):
    files = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        with raw(server) as connection:
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\nHost")
    until(lambda: len(os.listdir("/proc/self/fd")) <= files)


def test_many_robots_at_once():
    with running(max_batch=4) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(32)]
        for turn in range(5):
            for number, connection in enumerate(connections):
                connection.send(pack(observation(100 * turn + number, request_id=number)))
            for number, connection in enumerate(connections):
                reply = unpack(connection.recv(timeout=20))
                assert (reply["request_id"], reply["actions"][0, 0]) == (number, 100 * turn + number)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | st.text(max_size=20) | st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=3)))
def test_any_message_gets_a_reply_or_a_clean_error(server, content):
    if isinstance(content, tuple):  # a sound request with damaged bytes
        place, put = content
        message = bytearray(pack(observation()))
        message[place : place + len(put)] = put
        content = bytes(message)
    with server.connect() as connection:
        reply = ask(connection, content)
        if isinstance(reply, str):
            assert reply.isprintable()
            assert "Traceback" not in reply
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=20)
            assert closed.value.rcvd.code == 1011


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=40), st.booleans())
def test_any_bytes_end_the_connection_and_nothing_else(server, sent, upgraded):
    """Not even frames of a websocket, or no HTTP."""
    if upgraded:
        with server.connect() as connection, contextlib.suppress(OSError):
            connection.socket.sendall(sent)
            connection.socket.shutdown(socket.SHUT_WR)
    else:
        with raw(server) as connection, contextlib.suppress(OSError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            closed_by_the_server(connection)
    with server.connect() as connection:
        assert ask(connection, observation())["cut"] == -1
