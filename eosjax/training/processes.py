"""Several processes that are one run: how they start, agree, share what each has, and stop together. One process is the case of one.

All of it is JAX's distributed runtime. Host-side messages travel as arrays over the devices (`multihost_utils`).
"""

from __future__ import annotations

import atexit
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

import eosjax
from eosjax.config import TrainConfig
from eosjax.runs.record import fingerprint, meaning
from eosjax.types import UserError

T = TypeVar("T")

USER_ERROR, INTERRUPTED = 2, 130  # exit status, as of train.py
_SILENCE_SECONDS = 90  # after which JAX aborts: `training.watch` comes first
# The variables by which JAX recognises a cluster, and those that count its processes.
_CLUSTERS = {
    "SLURM": ("SLURM_STEP_NODELIST", "SLURM_NTASKS"),
    "Open MPI": ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"),
}


class StartError(UserError):
    """The processes of a run cannot be brought together."""


class OtherProcessError(UserError):
    """Another process of the run has failed; the message is its own."""


def start(config: TrainConfig) -> None:
    """Brings the processes of the run together, where the flags or the environment say that there are several. Before JAX sees a device.

    Raises:
      StartError: the processes do not meet within `--start_timeout`, or have other numbers of devices.
    """
    if config.num_processes is None and detected() is None:
        return
    if jax.distributed.is_initialized():
        return
    if config.coordinator_address and config.process_id:
        _wait_for(config.coordinator_address, config.start_timeout)
    if config.coordinator_address and config.process_id == 0:
        _check_free(config.coordinator_address)
    named = f"--coordinator_address {config.coordinator_address}" if config.coordinator_address else f"{detected()}"
    try:
        met = _initialize(config)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise StartError(f"{named}: the processes of the run cannot meet{_proxies()}: {reason}") from error
    if not met:
        atexit.register(leave, USER_ERROR)  # before JAX's own, which waits
        who = "the other processes of the run have not all come" if config.process_id == 0 else "the processes of the run did not meet"
        raise StartError(f"{named}: {who} within {config.start_timeout} s{_proxies()}")
    counts = [sum(device.process_index == index for device in jax.devices()) for index in range(jax.process_count())]
    if len(set(counts)) > 1:
        listed = ", ".join(f"process {index} has {count}" for index, count in enumerate(counts))
        raise StartError(f"every process must have as many devices as the others: {listed}")


def _initialize(config: TrainConfig) -> bool:
    """Initializes JAX's runtime; whether that was done in time. In a thread of its own: in C++ it hears no Ctrl-C, and at last aborts."""
    errors: list[Exception] = []

    def work() -> None:
        try:
            jax.distributed.initialize(
                config.coordinator_address,
                config.num_processes,
                config.process_id,
                initialization_timeout=math.ceil(config.start_timeout) + _SILENCE_SECONDS,
                heartbeat_timeout_seconds=_SILENCE_SECONDS,
            )
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name="initialize")
    thread.start()
    try:
        thread.join(config.start_timeout)
    except KeyboardInterrupt:
        atexit.register(leave, INTERRUPTED)
        raise
    if errors:
        raise errors[0]
    return not thread.is_alive()


def _proxies() -> str:
    """A hint at variables that can be the reason."""
    names = sorted(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"))
    return f"; {', '.join(names)} is set, which can keep gRPC from connecting" if names else ""


def _check_free(address: str) -> None:
    """Raises `StartError` if a port is in use on this machine. gRPC would share it with another program that allows it."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except OSError as error:
        raise StartError(
            f"--coordinator_address {address}: process 0 cannot listen at that port here: {os.strerror(error.errno or 0)}"
        ) from error


def _wait_for(address: str, seconds: float) -> None:
    """Returns once somebody listens at an address. JAX itself would abort the process when the time is over."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.1, end - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= end:
                reason = error.strerror or str(error)
                raise StartError(f"--coordinator_address {address}: no process 0 answered there within {seconds} s: {reason}") from error
            time.sleep(0.2)


def detected() -> str | None:
    """The cluster that the environment speaks of, if it runs more than one process."""
    for name, (mark, number) in _CLUSTERS.items():
        if mark in os.environ and os.environ.get(number, "1") != "1":
            return name
    return None


def exchange(text: str) -> list[str]:
    """A text of each process, in the order of their numbers. Every process must call it."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(int(sizes.max()) + 1, np.uint8)  # an array of no elements cannot be sent
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(np.asarray(rows), sizes.tolist(), strict=True)]


def together(work: Callable[[], T]) -> T:
    """What `work` returns, once it has succeeded in every process. Every process must call it.

    `work` must not speak to other processes itself: where it fails before it does, they would wait for what does not come.

    Raises:
      Exception: whatever `work` raises here.
      OtherProcessError: what it raised in the first other process in which it failed.
    """
    if jax.process_count() == 1:
        return work()
    result, failure = None, None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others wait to hear of it
        failure = error
    problems = exchange("" if failure is None else str(failure) or type(failure).__name__)
    if failure is not None:
        raise failure
    for index, problem in enumerate(problems):
        if problem:
            raise OtherProcessError(f"process {index} of the run has failed: {problem}")
    return result  # pyright: ignore[reportReturnType]  # without a failure it is what `work` returned


def check_same(facts: Mapping[str, Any]) -> None:
    """Raises `StartError` in all processes if one brings other facts than process 0, and names what differs. Every process must call it.

    Args:
      facts: values that JSON knows, by name, such as a path in the record of a run.
    """
    first, *others = (json.loads(text) for text in exchange(json.dumps(facts)))
    for index, other in enumerate(others, start=1):
        names = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if names:
            listed = "; ".join(
                f"{name}{meaning(name)} is {other.get(name)!s:.60} there, {first.get(name)!s:.60} in process 0" for name in names[:5]
            )
            raise StartError(f"process {index} of the run is not like process 0: {listed}{', and more' if names[5:] else ''}")


def code() -> str:
    """Fingerprint of the source files of this package."""
    package = Path(eosjax.__file__).parent
    files = sorted(package.rglob("*.py"))
    return fingerprint(*(part for path in files for part in (str(path.relative_to(package)).encode(), path.read_bytes())))


def leave(status: int) -> None:
    """Ends this process at once, whatever its threads wait for."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def gather(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays [n ...] of every process, one behind the other: [processes * n ...]. Every process must bring as many rows."""
    if jax.process_count() == 1:
        return rows
    return {name: np.asarray(multihost_utils.process_allgather(value, tiled=True)) for name, value in rows.items()}
