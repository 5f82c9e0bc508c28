import contextlib
import http
import socket
import ssl
import threading
import time

import numpy as np
import pytest
import trustme
from websockets.server import ServerProtocol
from websockets.sync.server import serve

from eosjax.ends.protocols import Clock, Rule
from eosjax.serving.broker import Broker, BrokerSettings
from eosjax.serving.client import RemotePolicy, ServerLostError, ServerRefusedError
from eosjax.serving.wire import pack, unpack
from tests.serving.served import StubPolicy, observation, running

METADATA = {"action_horizon": 4, "prompt": "prompt", "rule": None}


@contextlib.contextmanager
def scripted(handler, **options):
    """A server that does with a connection what the test says, once it has sent the metadata."""

    def handle(connection):
        connection.send(pack(METADATA))
        handler(connection)

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None, close_timeout=0.1, **options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


def reply(request, **changes):
    return pack({"actions": np.zeros((4, 7)), "request_id": unpack(request)["eosjax"]["request_id"], **changes})


def state_of(number, scores=(0.0, 0.0, 0.0, 0.0)):
    return {key: value for key, value in observation(number, scores).items() if key != "prompt"}


def test_a_plan():
    with running(StubPolicy(Rule(0.5, debounce=2))) as server:
        policy = RemotePolicy(server.url)
        assert (policy.chunk, policy.rule) == (4, Rule(0.5, debounce=2))
        chunk = policy.plan(state_of(3.0, (0.1, 0.2, 0.3, 0.4)), "pick", Clock(3, 0), 2)
        np.testing.assert_array_equal(chunk.actions, np.full((4, 7), 3.0))
        np.testing.assert_allclose(chunk.eos, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
        assert server.policy.batches == [["pick"]]
        policy.close()


def test_what_the_server_refuses_is_told_and_the_next_request_is_answered():
    with running(api_key=b"k" * 16) as server:
        policy = RemotePolicy(server.url, "k" * 16)
        with pytest.raises(ServerRefusedError, match="state: expected 5 numbers, got"):
            policy.plan(state_of(3.0) | {"observation/state": np.zeros(2)}, "pick", Clock(), 4)
        assert policy.plan(state_of(3.0), "pick", Clock(), 4).actions[0, 0] == 3.0
        policy.close()


@pytest.mark.parametrize("key", [None, "wrong"])
def test_a_key_that_is_missing_or_wrong(key):
    with running(api_key=b"k" * 16) as server, pytest.raises(ServerRefusedError, match="HTTP 401: expected the header Authorization"):
        RemotePolicy(server.url, key)


def test_encryption():
    authority, context, trust = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trust)
    with running(tls=context) as server:
        url = server.url.replace("ws:", "wss:")
        policy = RemotePolicy(url, tls=trust)
        assert policy.plan(state_of(3.0), "pick", Clock(), 4).actions[0, 0] == 3.0
        policy.close()
        with pytest.raises(ServerRefusedError, match="the certificate is not trusted"):
            RemotePolicy(url)


def test_no_server_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServerLostError, match="cannot connect: .*refused"):
        RemotePolicy(f"ws://127.0.0.1:{port}", wait=0.1)


def test_a_server_that_comes_later_is_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = []
    robot = threading.Thread(target=lambda: found.append(RemotePolicy(f"ws://127.0.0.1:{port}", wait=20)))
    robot.start()
    with running(port=port):
        robot.join(20)
        found[0].close()


def test_a_machine_that_accepts_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServerLostError, match="cannot connect: "):
        RemotePolicy(f"ws://127.0.0.1:{silent.getsockname()[1]}", wait=0.2)


def test_a_machine_that_closes_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up():
            while True:
                try:
                    listening.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(ServerLostError, match="cannot connect: "):
            RemotePolicy(f"ws://127.0.0.1:{listening.getsockname()[1]}", wait=0.2)
        listening.shutdown(socket.SHUT_RDWR)


def test_a_late_reply_is_not_taken_for_the_next_one():
    """The same connection brings the reply to an older request first."""

    def handler(connection):
        request = connection.recv()
        connection.send(reply(request, request_id=99, actions=np.full((4, 7), 99.0)))
        connection.send(reply(request))

    with scripted(handler) as url:
        policy = RemotePolicy(url, deadline=20)
        assert policy.plan({}, "pick", Clock(), 4).actions.sum() == 0
        policy.close()


def test_a_connection_whose_reply_is_overdue_is_given_up():
    release, connections = threading.Event(), []

    def handler(connection):
        connections.append(connection)
        request = connection.recv()
        if len(connections) == 1:
            release.wait(20)  # this one's reply would come during the next request
        connection.send(reply(request, actions=np.full((4, 7), len(connections))))

    with scripted(handler) as url:
        policy = RemotePolicy(url, deadline=0.3)
        with pytest.raises(ServerLostError, match=r"no reply within 0.3 s"):
            policy.plan({}, "pick", Clock(), 4)
        release.set()
        assert policy.plan({}, "pick", Clock(), 4).actions[0, 0] == 2.0
        policy.close()


def test_a_machine_that_no_longer_reads_does_not_block_the_robot():
    """As behind a cable that was pulled: what is sent piles up in the buffers of the system."""

    def greet(listening):
        connection, _ = listening.accept()
        protocol = ServerProtocol()
        protocol.receive_data(connection.recv(65536))
        protocol.send_response(protocol.accept(protocol.events_received()[0]))
        protocol.send_binary(pack(METADATA))
        for data in protocol.data_to_send():
            connection.sendall(data)
        accepted.append(connection)  # open, and never read again

    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=greet, args=[listening], daemon=True).start()
        policy = RemotePolicy(f"ws://127.0.0.1:{listening.getsockname()[1]}", deadline=0.3)
        with pytest.raises(ServerLostError):
            policy.infer({"prompt": "pick", "image": bytes(64 * 2**20)})
    accepted[0].close()


def test_a_connection_that_breaks_is_opened_again_within_the_deadline():
    connections = []

    def handler(connection):
        connections.append(connection)
        request = connection.recv()
        if len(connections) < 3:
            connection.socket.shutdown(socket.SHUT_RDWR)  # in the middle of a request
        else:
            connection.send(reply(request))

    with scripted(handler) as url:
        policy = RemotePolicy(url, deadline=20)
        policy.plan({}, "pick", Clock(), 4)
        assert len(connections) == 3
        policy.close()


@pytest.mark.parametrize("text", [b"\xc1", pack({"something": "else"})])
def test_what_is_no_such_server(text):
    with serve(lambda connection: connection.send(text), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ServerRefusedError, match="no server of this protocol|expected a server of eosjax"):
            RemotePolicy(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
        server.shutdown()


def test_a_busy_server_is_asked_again():
    answers = [http.HTTPStatus.SERVICE_UNAVAILABLE]

    def busy(connection, request):
        return connection.respond(answers.pop(), "full\n") if answers else None

    with scripted(lambda connection: connection.send(reply(connection.recv())), process_request=busy) as url:
        policy = RemotePolicy(url, wait=20)
        policy.plan({}, "pick", Clock(), 4)
        policy.close()


def test_a_server_that_is_killed_and_started_anew_in_mid_episode():
    """The robot holds meanwhile; its clock goes on, and no step is played twice."""
    policy = StubPolicy(Rule(0.5, min_steps=9))
    with running(policy) as server:
        remote = RemotePolicy(server.url, deadline=0.2)
        broker = Broker(remote, ["pick"], BrokerSettings())
        played = [broker.act(lambda: state_of(1.0, (0, 0, 0, 0.9))) for _ in range(4)]
    held = [broker.act(lambda: state_of(2.0)) for _ in range(2)]
    assert held == [None, None]
    with running(policy, port=server.port):
        while not broker.done:
            played.append(broker.act(lambda: state_of(3.0, (0.9, 0.9, 0.9, 0.9))))
    assert [None if action is None else action[0] for action in played if action is not None] == [1.0] * 4 + [3.0] * 5
    remote.close()


def test_clocks_that_are_set_change_nothing(monkeypatch):
    """Those of both machines: here the wall clock goes back by years between two requests, and forth while one is under way."""
    wall = [2e9]

    def jump():
        wall[0] = 4e9 - wall[0] if wall[0] != 2e9 else 1e9
        return wall[0]

    with running() as server:
        remote = RemotePolicy(server.url, deadline=20)
        monkeypatch.setattr(time, "time", jump)
        broker = Broker(remote, ["pick"], BrokerSettings())
        played = [broker.act(lambda: state_of(3.0)) for _ in range(12)]
        assert [action[0] for action in played] == [3.0] * 12
        remote.close()


def test_a_server_that_comes_back_with_another_policy_is_refused():
    with running() as server:
        remote = RemotePolicy(server.url, deadline=5)
    with running(StubPolicy(Rule(0.7)), port=server.port), pytest.raises(ServerRefusedError, match="another policy: rule changed"):
        remote.plan(state_of(1.0), "pick", Clock(), 4)
    remote.close()
