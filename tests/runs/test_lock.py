"""One process a run folder, and none is locked out by a dead one."""

import fcntl
import signal
import subprocess
import sys

import pytest

from eosjax.runs import lock
from eosjax.runs.lock import LOCK_FILE, LockedError, RunLock, check_unlocked

HOLD = """
import sys
from pathlib import Path
from eosjax.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_who_it_is(tmp_path):
    process = holder(tmp_path / "run")
    for attempt in (RunLock, check_unlocked):
        with pytest.raises(
            LockedError, match=rf"run: process {process.pid} on .* is training in this folder; wait for it, or start another"
        ):
            attempt(tmp_path / "run")
    process.communicate("")
    check_unlocked(tmp_path / "run")
    with RunLock(tmp_path / "run"), pytest.raises(LockedError):
        RunLock(tmp_path / "run")
    RunLock(tmp_path / "run").__exit__()


def test_a_killed_process_holds_nothing(tmp_path):
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / LOCK_FILE).is_file()
    check_unlocked(tmp_path)
    with RunLock(tmp_path):
        assert str(process.pid) not in (tmp_path / LOCK_FILE).read_text()


def test_who_looks_keeps_nobody_out(tmp_path, monkeypatch):
    """The processes of a run all look at once, and one of them takes the lock."""
    RunLock(tmp_path).__exit__()
    with (tmp_path / LOCK_FILE).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        check_unlocked(tmp_path)
        monkeypatch.setattr(lock.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with RunLock(tmp_path):
            pass


def test_looking_leaves_nothing_behind(tmp_path):
    check_unlocked(tmp_path / "none")
    check_unlocked(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(LockedError, match="run: a run must write there, and cannot: File exists"):
        RunLock(tmp_path / "run")
