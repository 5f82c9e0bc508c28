import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from eosjax.ends.protocols import Rule
from eosjax.serving.door import Budget
from eosjax.serving.mapping import MappingError
from eosjax.serving.wire import pack
from eosjax.types import UserError
from tests.serving.served import StubPolicy, ask, observation, running


@pytest.fixture(scope="module")
def server():
    """One of a `StubPolicy`, for tests that leave it as it is."""
    with running(StubPolicy(Rule(0.5, debounce=2, min_steps=3, time_out=12))) as found:
        yield found


@pytest.fixture
def connection(server):
    with server.connect() as found:
        yield found


def read(running, path, **headers):
    """Status and text of a page."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{running.port}{path}", headers=headers), timeout=20) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def figure(running, name):
    """A figure of /metrics."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", read(running, "/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else None


def until(condition):
    """Waits for what another thread is about to do."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_the_metadata_come_first(connection):
    assert connection.metadata == {
        "server": "eosjax",
        "action_horizon": 4,
        "execute_steps": 4,
        "action_dim": 7,
        "control_hz": 20.0,
        "images": {"image": "observation/image", "wrist_image": "observation/wrist_image"},
        "image_channels": "last",
        "state": ["observation/state"],
        "prompt": "prompt",
        "rule": {"threshold": 0.5, "debounce": 2, "min_steps": 3, "time_out": 12, "cumulative": False},
        "max_bytes": 16 * 2**20,
        "max_rate": 1e9,
    }


def test_a_chunk_keeps_its_length_and_says_where_to_cut(connection):
    reply = ask(connection, observation(2.0, (0.0, 0.9, 0.9, 0.1)))
    np.testing.assert_array_equal(reply["actions"], np.full((4, 7), 2.0))
    np.testing.assert_allclose(reply["eos"], [0.0, 0.9, 0.9, 0.1], rtol=1e-6)
    assert (reply["cut"], type(reply["cut"]), reply["timed_out"], reply["clock"]) == (2, int, False, {"steps": 0, "crossings": 0})
    assert reply["server_timing"].keys() == {"queue_ms", "infer_ms"}
    assert "request_id" not in reply


def clocks(connection, *requests):
    replies = [ask(connection, each) for each in requests]
    return [(reply["cut"], *reply["clock"].values()) for reply in replies]


def test_the_connection_has_a_clock(connection):
    low, late = observation(), observation(scores=(0.0, 0.0, 0.0, 0.9))
    assert clocks(connection, low, late, observation(scores=(0.9, 0, 0, 0)), low) == [(-1, 4, 0), (-1, 8, 1), (0, 0, 0), (-1, 4, 0)]


def test_the_clock_starts_anew_with_another_instruction_and_when_told(connection):
    low = observation()
    assert clocks(connection, low, observation(prompt="open it"), low) == [(-1, 4, 0)] * 3
    assert clocks(connection, observation(reset=True), low) == [(-1, 4, 0), (-1, 8, 0)]


def test_the_time_is_up(connection):
    ask(connection, observation(reset=True))
    ask(connection, observation())
    reply = ask(connection, observation())
    assert (reply["cut"], reply["timed_out"]) == (3, True)


def test_a_client_may_hold_the_clock_and_execute_less(connection):
    late = observation(scores=(0.0, 0.0, 0.9, 0.9), clock={"steps": 7, "crossings": 0})
    assert clocks(connection, late) == [(3, 0, 0)]
    late["eosjax"]["execute_steps"] = 3
    assert clocks(connection, late, late) == [(-1, 10, 1)] * 2
    reply = ask(connection, late)
    assert len(reply["actions"]) == len(reply["eos"]) == 4


def test_the_id_of_a_request_comes_back(connection):
    assert [ask(connection, observation(request_id=each))["request_id"] for each in ("a", 17)] == ["a", 17]


def test_a_policy_without_an_eos_head():
    with running(StubPolicy(rule=None)) as server, server.connect() as connection:
        assert connection.metadata["rule"] is None
        assert ask(connection, observation()).keys() == {"actions", "server_timing"}


REFUSED = {
    "no msgpack": (b"\xc1", "message: expected msgpack"),
    "a text": ("hello", "expected a binary message, got a text"),
    "no image": ({key: value for key, value in observation().items() if key != "observation/image"}, "observation/image: missing"),
    "a float image": (observation() | {"observation/image": np.zeros((4, 4, 3), np.float32)}, "camera 0 .image.: expected uint8"),
    "a short state": (observation() | {"observation/state": np.zeros(3)}, "state: expected 5 numbers"),
    "NaN": (observation(float("nan")), "state: expected 5 finite numbers, got nan at index 0"),
    "two prompts": (observation(prompt=["a", "b"]), "instruction: expected a text"),
    "unknown options": (
        observation(cl0ck=1),
        "eosjax: expected a map of request_id, clock, execute_steps, reset, got the unknown .'cl0ck'",
    ),
    "options that are no map": (observation() | {"eosjax": [1]}, "eosjax: expected a map .* got list"),
    "a clock of texts": (observation(clock={"steps": "1", "crossings": 0}), "eosjax/clock: expected the whole numbers steps and crossings"),
    "a clock that runs backwards": (observation(clock={"steps": -1, "crossings": 0}), "eosjax/clock: expected"),
    "a clock beyond all times": (observation(clock={"steps": 2**62, "crossings": 0}), "eosjax/clock: expected"),
    "0 steps": (observation(execute_steps=0), "eosjax/execute_steps: expected 1 to 4, got 0"),
    "5 steps": (observation(execute_steps=5), "eosjax/execute_steps: expected 1 to 4, got 5"),
    "an id that is a list": (observation(request_id=[1]), "eosjax/request_id: expected"),
    "an id without end": (observation(request_id="a" * 65), "eosjax/request_id: expected at most 64 characters"),
    "a reset of 1": (observation(reset=1), "eosjax/reset: expected true or false"),
    "an output that is not finite": (observation(prompt="not finite"), "the policy's action is not finite"),
    "a defect": (observation(prompt="defect"), "^the server failed; its log says how$"),
}


@pytest.mark.parametrize(("content", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_told_and_the_connection_closed(server, content, text):
    with server.connect() as connection, server.connect() as other:
        reply = ask(connection, content)
        assert isinstance(reply, str)
        assert re.search(text, reply)
        assert "Traceback" not in reply
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=20)
        assert closed.value.rcvd.code == 1011
        assert ask(other, observation())["cut"] == -1


def test_a_message_that_is_too_long():
    with running(max_bytes=1000) as server, server.connect() as connection:
        with contextlib.suppress(ConnectionClosed):  # it may close before all is sent
            connection.send(bytes(2000))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=20)
        assert closed.value.rcvd.code == 1009


def test_too_many_requests():
    with running(max_rate=1.0) as server, server.connect() as connection:
        ask(connection, observation())
        assert "expected at most 1 requests per second" in ask(connection, observation())


def test_the_rate_of_requests():
    now = [0.0]
    budget = Budget(2.0, lambda: now[0])
    assert [budget.take() for _ in range(3)] == [True, True, False]
    now[0] = 0.5
    assert [budget.take() for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [budget.take() for _ in range(3)] == [True, True, False]


def test_requests_that_wait_together_are_computed_together():
    gate = threading.Event()
    with running(StubPolicy(gate=gate), max_batch=3) as server, contextlib.ExitStack() as stack:
        assert server.policy.warm == [1, 2, 4]
        connections = [stack.enter_context(server.connect()) for _ in range(6)]
        connections[0].send(pack(observation(0.0, prompt="0")))
        assert server.policy.started.wait(20)
        for number, each in enumerate(connections[1:], 1):
            each.send(pack(observation(number, prompt=str(number))))
        until(lambda: figure(server, "eosjax_waiting_requests") == 5)
        gate.set()
        replies = [connection.recv(timeout=20) for connection in connections]
        assert sorted(map(len, server.policy.batches)) == [1, 2, 3]
        assert len({len(reply) for reply in replies}) == 1
        assert figure(server, 'eosjax_request_seconds_count{part="total"}') == 6


@pytest.mark.parametrize("fault", ["not finite", "defect"])
def test_an_error_is_that_of_its_request_alone(fault):
    gate = threading.Event()
    with running(StubPolicy(gate=gate)) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(4)]
        connections[0].send(pack(observation()))
        assert server.policy.started.wait(20)
        for number, each in enumerate(connections[1:]):
            each.send(pack(observation(prompt=fault if number == 1 else "close it")))
        until(lambda: figure(server, "eosjax_waiting_requests") == 3)
        gate.set()
        assert [isinstance(each.recv(timeout=20), str) for each in connections] == [False, False, True, False]


def test_a_client_that_goes_away_costs_nothing():
    gate = threading.Event()
    with running(StubPolicy(gate=gate)) as server, server.connect() as first, server.connect() as last:
        first.send(pack(observation(prompt="first")))
        assert server.policy.started.wait(20)
        with server.connect() as gone:
            gone.send(pack(observation(prompt="gone")))
            until(lambda: figure(server, "eosjax_waiting_requests") == 1)
        until(lambda: figure(server, "eosjax_connections") == 2)
        last.send(pack(observation(prompt="last")))
        until(lambda: figure(server, "eosjax_waiting_requests") == 2)
        gate.set()
        first.recv(timeout=20), last.recv(timeout=20)
        assert server.policy.batches == [["first"], ["last"]]


def test_pings_are_answered_while_the_policy_computes():
    gate = threading.Event()
    with running(StubPolicy(gate=gate)) as server, server.connect() as connection:
        connection.send(pack(observation()))
        assert server.policy.started.wait(20)
        assert connection.ping().wait(20)
        assert read(server, "/healthz") == (200, "OK\n")
        assert not gate.is_set()
        gate.set()
        connection.recv(timeout=20)


def test_a_server_that_is_told_to_stop_answers_what_is_under_way():
    gate = threading.Event()
    with running(StubPolicy(gate=gate)) as server, server.connect() as busy, server.connect() as idle:
        busy.send(pack(observation()))
        assert server.policy.started.wait(20)
        server.stop()
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(timeout=20)
        assert closed.value.rcvd.code == 1001
        with pytest.raises((OSError, InvalidStatus)), server.connect(open_timeout=20):
            pass
        gate.set()
        assert isinstance(busy.recv(timeout=20), bytes)
        with pytest.raises(ConnectionClosed) as closed:
            busy.recv(timeout=20)
        assert closed.value.rcvd.code == 1001
        server.join()


def test_a_policy_that_never_answers_does_not_hold_up_the_stop():
    gate = threading.Event()
    with running(StubPolicy(gate=gate), drain_seconds=0.1) as server, server.connect() as connection:
        connection.send(pack(observation()))
        assert server.policy.started.wait(20)
        server.stop()
        server.join()
        gate.set()


def test_metrics(server):
    before = {name: figure(server, name) or 0 for name in ('eosjax_ends_total{how="seen"}', 'eosjax_errors_total{reason="request"}')}
    with server.connect() as connection:
        ask(connection, observation(scores=(0.0, 0.9, 0.9, 0.0)))
        ask(connection, b"\xc1")
    assert {name: figure(server, name) - count for name, count in before.items()} == dict.fromkeys(before, 1)
    status, text = read(server, "/metrics")
    assert status == 200
    assert 'eosjax_request_seconds_bucket{le="0.1",part="networks"}' in text


def test_http():
    with running(api_key=b"a" * 16) as server:
        assert read(server, "/healthz") == (200, "OK\n")
        assert read(server, "/metrics")[0] == 401
        key = {"Authorization": "Api-Key " + "a" * 16}
        assert read(server, "/metrics", **key)[0] == 200
        assert read(server, "/../etc/passwd", **key)[0] == 404
        assert read(server, "/", **key)[0] == 426


@pytest.mark.parametrize("given", [None, "Api-Key ", "Api-Key aaaa", f"Bearer {'a' * 16}", f"Api-Key {'a' * 17}", "Api-Key ä"])
def test_a_key_that_is_missing_or_wrong(given):
    with running(api_key=b"a" * 16) as server:
        with server.connect(additional_headers={"Authorization": "Api-Key " + "a" * 16}) as connection:
            assert ask(connection, observation())["cut"] == -1
        headers = {"Authorization": given} if given else {}
        with pytest.raises((InvalidStatus, UnicodeEncodeError)) as refused, server.connect(additional_headers=headers):
            pass
        assert isinstance(refused.value, UnicodeEncodeError) or refused.value.response.status_code == 401


def test_no_page_in_a_browser_speaks_to_the_robot(server):
    with pytest.raises(InvalidStatus) as refused, server.connect(origin="http://example.org"):
        pass
    assert refused.value.response.status_code == 403


def test_more_connections_than_allowed():
    with running(max_connections=1) as server, server.connect() as connection:
        with pytest.raises(InvalidStatus) as refused, server.connect():
            pass
        assert refused.value.response.status_code == 503
        assert ask(connection, observation())["cut"] == -1


def test_settings_that_do_not_fit_the_policy():
    with pytest.raises(UserError, match="execute_steps: expected 1 to 4, the actions of a chunk; got 5"), running(execute_steps=5):
        pass
    policy = StubPolicy()
    policy.cameras = ("a", "b", "c")
    with pytest.raises(MappingError, match="images: expected a key for each"), running(policy):
        pass


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, policy = taken.getsockname()[1], StubPolicy()
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: cannot be listened on: .*in use"), running(policy, port=port):
            pass
    assert policy.warm == [], "told before the networks are compiled"


def test_an_address_that_is_none_of_this_machine():
    with pytest.raises(UserError, match="192.0.2.1:0: cannot be listened on: "), running(host="192.0.2.1"):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process(number):
    code = """
from eosjax.serving.mapping import ROBOTS
from eosjax.serving.server import Server, ServerSettings, serve_until_stopped
from tests.serving.served import StubPolicy
serve_until_stopped(Server(StubPolicy(), ROBOTS["libero"], ServerSettings(port=0)), lambda port: print(port, flush=True))
print("stopped")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert int(child.stdout.readline())
        child.send_signal(number)
        assert child.communicate(timeout=20)[0] == "stopped\n"
    assert child.returncode == 0
