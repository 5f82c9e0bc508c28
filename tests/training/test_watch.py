"""Processes that hear of each other's end, here over a pair of sockets in one process."""

import json
import queue
import socket

import pytest

from eosjax.config import TrainConfig
from eosjax.training import processes, watch
from eosjax.types import UserError


@pytest.fixture
def left(monkeypatch):
    """The exit status with which a process would have ended."""
    statuses = queue.Queue()
    monkeypatch.setattr(processes, "leave", statuses.put)
    monkeypatch.setattr(watch.atexit, "register", lambda function, status: statuses.put(status))
    monkeypatch.setattr(watch, "_GRACE_SECONDS", 0.0)
    return statuses


@pytest.fixture
def pair():
    """(this side, the other one) of a connection."""
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_a_process_that_dies_is_named_and_the_others_are_told(left, pair, capsys):
    ours, theirs = pair
    another, its = socket.socketpair()
    watch._Watch({1: ours, 2: another})
    theirs.close()
    assert left.get() == 2
    assert "process 1 of the run has died; go on from the newest checkpoint with --resume True" in capsys.readouterr().err
    assert "process 1 of the run has died" in its.makefile().readline()
    another.close()
    its.close()


def test_a_process_that_falls_silent_counts_as_dead(left, pair, capsys):
    pair[0].settimeout(0.01)
    watch._Watch({0: pair[0]})
    assert left.get() == 2
    assert "process 0 of the run has been silent for 60 s" in capsys.readouterr().err


def test_the_reason_of_an_end_is_passed_on(left, pair, capsys):
    watch._Watch({0: pair[0]})
    pair[1].sendall(b'\n"process 2 of the run has failed: no\\nroom"\n')
    assert left.get() == 2
    assert "process 2 of the run has failed: no\nroom" in capsys.readouterr().err


def test_a_process_that_is_done_may_go(left, pair):
    this = watch._Watch({1: pair[0]})
    pair[1].sendall(b"done\n")
    pair[1].shutdown(socket.SHUT_WR)
    this.fail(UserError("full"))  # the thread has read the end of the connection, or will, and takes neither for a death
    assert left.get() == 2
    assert left.empty()


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("the disk is full"), 2, "process 0 of the run has failed: the disk is full"),
        (KeyboardInterrupt(), 130, "process 0 of the run has failed: KeyboardInterrupt"),
        (RuntimeError("a bug"), 1, "process 0 of the run has failed: a bug"),
        (processes.OtherProcessError("known to all"), 2, None),
    ],
)
def test_an_error_is_told_to_the_others(left, pair, error, status, said):
    watch._Watch({1: pair[0]}).fail(error)
    assert left.get() == status
    pair[0].shutdown(socket.SHUT_WR)
    lines = pair[1].makefile().readlines()
    assert [json.loads(line) for line in lines] == ([said] if said else [])


def test_a_stranger_is_no_process_of_the_run(monkeypatch):
    monkeypatch.setattr(watch.jax, "process_count", lambda: 2)
    server = socket.create_server(("localhost", 0))
    server.settimeout(5)
    port = server.getsockname()[1]
    stranger = socket.create_connection(("localhost", port))
    stranger.sendall(b"guess 1")
    monkeypatch.setattr(watch.jax, "process_index", lambda: 1)
    member = watch._connect("localhost", port, "token", 5)
    found = watch._accept(server, "token")
    assert found.keys() == {1}
    for connection in (stranger, member, found[1]):
        connection.close()
    with pytest.raises(processes.StartError, match="process 0 of the run cannot be reached at localhost"):
        watch._connect("localhost", port, "token", 1)


def test_processes_that_do_not_connect_are_named(monkeypatch):
    monkeypatch.setattr(watch.jax, "process_count", lambda: 3)
    server = socket.create_server(("localhost", 0))
    server.settimeout(0.01)
    with pytest.raises(processes.StartError, match=r"processes \[1, 2\] of the run have not connected to process 0"):
        watch._accept(server, "token")


def test_a_run_of_one_process_watches_nobody():
    with watch.watching(TrainConfig()), pytest.raises(ValueError, match="as usual"):
        raise ValueError("as usual")
