"""Memory of a loader of batches, for benchmarks/loader.py and for the environment of LeRobot: needs Python's standard library alone."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BATCHES, _PAUSE = 8, 3.0  # seconds in which every queue fills up


def resident_mb() -> float:
    """Memory of this process and of those that it has started.

    That is what each has for itself, its share of what they share (PSS), and the batches that a worker of PyTorch has put into shared
    memory and that nobody has taken yet: files in /dev/shm that are open and in no address space.
    """
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text(encoding="utf-8").split()
    processes = [Path(f"/proc/{process}") for process in (str(own), *children)]
    mapped = {line.split()[4] for process in processes for line in (process / "maps").read_text(encoding="utf-8").splitlines()}
    waiting = {inode: size for process in processes for inode, size in _shared_files(process) if str(inode) not in mapped}
    return sum(_share_mb(process) for process in processes) + sum(waiting.values()) / 1e6


def peak_mb(batches: Iterator[Any]) -> float:
    """The largest memory while batches are taken as slowly as in training, just after one is taken and once the queues are full."""
    peak = 0.0
    for _ in range(_BATCHES):
        batch = next(batches)
        peak = max(peak, resident_mb())
        time.sleep(_PAUSE)
        peak = max(peak, resident_mb())
        del batch
    return peak


def _share_mb(process: Path) -> float:
    lines = (process / "smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def _shared_files(process: Path) -> Iterator[tuple[int, int]]:
    """Inode and bytes of each file in /dev/shm that a process has open."""
    device = os.stat("/dev/shm").st_dev
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            status = descriptor.stat()
            if status.st_dev == device:
                yield status.st_ino, 512 * status.st_blocks
