"""Several processes that are one run: how they start, agree, share what each has, and stop together. One process is the case of one.

All of it is JAX's distributed runtime. Host-side messages travel as arrays over the devices (`multihost_utils`).
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from eosjax.config import TrainConfig
from eosjax.types import UserError

T = TypeVar("T")

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
    settings = (config.coordinator_address, config.num_processes, config.process_id)
    named = f"--coordinator_address {config.coordinator_address}" if config.coordinator_address else f"{detected()}"
    try:
        jax.distributed.initialize(
            *settings,
            initialization_timeout=config.start_timeout,
            heartbeat_timeout_seconds=_SILENCE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        proxies = sorted(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"))
        hint = f"; {', '.join(proxies)} is set, which can keep gRPC from connecting" if proxies else ""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise StartError(f"{named}: the processes of the run did not meet within {config.start_timeout} s{hint}: {reason}") from error
    counts = [sum(device.process_index == index for device in jax.devices()) for index in range(jax.process_count())]
    if len(set(counts)) > 1:
        listed = ", ".join(f"process {index} has {count}" for index, count in enumerate(counts))
        raise StartError(f"every process must have as many devices as the others: {listed}")


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
      facts: values that JSON knows, by name.
    """
    first, *others = (json.loads(text) for text in exchange(json.dumps(facts)))
    for index, other in enumerate(others, start=1):
        names = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if names:
            listed = "; ".join(f"{name} is {other.get(name)!s:.60} there, {first.get(name)!s:.60} in process 0" for name in names[:5])
            raise StartError(f"process {index} of the run is not like process 0: {listed}{', and more' if names[5:] else ''}")


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def gather(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays [n ...] of every process, one behind the other: [processes * n ...]. Every process must bring as many rows."""
    if jax.process_count() == 1:
        return rows
    return {name: np.asarray(multihost_utils.process_allgather(value, tiled=True)) for name, value in rows.items()}
