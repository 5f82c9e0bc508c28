"""Kills processes of a run at random moments, resumes it each time, and compares it with a run that nothing happened to.

    python benchmarks/faults.py OUT [--kills 20] [--processes 2] [--devices 2] [--seed 0] [FLAGS OF train.py]

Without flags of train.py it is the built-in demo, with a checkpoint every 10 updates. A kill (SIGKILL) hits a random process, every fourth
time during the start, else up to 10 seconds after the first log line. OUT/whole and OUT/killed hold the runs, and the logs of all
processes; a table goes to the console. Exit status 1 if rows of the two logs differ, or a process outlived a kill. CPU only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[1] / "train.py"
FLAGS = (
    "--max_steps 400 --save_freq 10 --val_freq 400 --log_freq 2 --batch_size 2 --lr_warmup_steps 2 --use_tensorboard False "
    "--start_timeout 60"
)
MOST_SECONDS = 10  # from the first log line to a kill
PATIENCE_SECONDS = 180  # for processes to end after a kill; what takes longer is a fault
Children = list["subprocess.Popen[bytes]"]
Start = Callable[[Path, int, bool], Children]  # (folder, attempt, resume) -> processes


@dataclasses.dataclass(frozen=True)
class Kill:
    """What a kill did."""

    victim: int
    at_start: bool
    step: int  # of the last log line
    saved: int  # updates of the newest checkpoint, 0 without one
    seconds: float | None  # until all others had ended; None: they did not
    statuses: list[int]  # of the others
    named: bool  # whether all others said which process has died


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it all, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder for the runs")
    for name, default in (("kills", 20), ("processes", 2), ("devices", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(%(default)s)")
    arguments, flags = parser.parse_known_args(argv)
    arguments.out.mkdir(parents=True)

    def start(folder: Path, attempt: int, resume: bool) -> Children:
        return start_run(folder, attempt, resume, arguments.processes, arguments.devices, flags or FLAGS.split())

    begun = time.monotonic()
    statuses = [child.wait() for child in start(arguments.out / "whole", 0, False)]
    if any(statuses):
        sys.exit(f"the run without faults has failed: {statuses}; see {arguments.out / 'whole'}")
    print(f"the run without faults took {time.monotonic() - begun:.0f} s", flush=True)
    kills = soak(start, arguments.out / "killed", arguments.kills, random.Random(arguments.seed))
    difference = largest_difference(*(rows(arguments.out / name / "run") for name in ("whole", "killed")))
    outlived = sum(kill.seconds is None for kill in kills)
    print(f"{len(kills)} kills, {outlived} outlived; largest difference of a logged number from the run without faults: {difference:g}")
    return int(outlived > 0 or difference > 0)


def start_run(folder: Path, attempt: int, resume: bool, processes: int, devices: int, flags: Sequence[str]) -> Children:
    """The processes of a run; process i writes to `folder`/i.ATTEMPT.log."""
    folder.mkdir(exist_ok=True)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    fake = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    common = [*flags, "--run_root_dir", str(folder), "--run_id_override", "run", "--resume", str(resume)]
    together = ["--coordinator_address", f"localhost:{port}", "--num_processes", str(processes)]
    children = []
    for number in range(processes):
        command = [sys.executable, str(TRAIN), *common, *together, "--process_id", str(number)]
        with (folder / f"{number}.{attempt}.log").open("wb") as log:
            environment = os.environ | {"XLA_FLAGS": fake, "JAX_PLATFORMS": "cpu"}
            children.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return children


def soak(start: Start, folder: Path, count: int, chance: random.Random) -> list[Kill]:
    """Starts a run and kills it until that has been done `count` times, or it ends; then lets it end."""
    kills: list[Kill] = []
    print("| kill | process | when | last log line | checkpoint | the others ended after | status | named |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    start_seconds = 0.0  # until the first log line
    for attempt in range(count + 1):
        resume = newest(folder) > 0
        if not resume:  # nothing to go on from
            shutil.rmtree(folder / "run", ignore_errors=True)
        children, now = start(folder, attempt, resume), time.monotonic()
        victim, at_start = chance.randrange(len(children)), attempt % 4 == 3
        if attempt < count and at_start:
            time.sleep(chance.uniform(0, start_seconds))
        elif attempt < count:
            wait_for_line(children[0], folder / f"0.{attempt}.log")
            start_seconds = time.monotonic() - now
            time.sleep(chance.uniform(0, MOST_SECONDS))
        if attempt == count or any(child.poll() is not None for child in children):
            statuses = [child.wait() for child in children]
            if any(statuses):
                sys.exit(f"the run could not go on: {statuses}; see {folder}/*.{attempt}.log")
            break
        kills.append(kill(children, victim, at_start, folder, attempt))
        print(f"| {len(kills)} {table_row(kills[-1])}", flush=True)
    return kills


def wait_for_line(child: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a process has logged an update, or has ended."""
    while b"\nstep " not in log.read_bytes() and child.poll() is None:
        time.sleep(0.1)


def table_row(kill: Kill) -> str:
    """The cells of a kill, but for its number."""
    when, named = "start" if kill.at_start else "training", "yes" if kill.named else "no"
    after = "not at all" if kill.seconds is None else f"{kill.seconds:.1f} s"
    return f"| {kill.victim} | {when} | {kill.step} | {kill.saved} | {after} | {kill.statuses} | {named} |"


def kill(children: Children, victim: int, at_start: bool, folder: Path, attempt: int) -> Kill:
    """Kills one of the processes and waits for the others to end by themselves."""
    children[victim].kill()
    now, seconds = time.monotonic(), None
    others = [number for number in range(len(children)) if number != victim]
    try:
        for number in others:
            children[number].wait(max(0.0, now + PATIENCE_SECONDS - time.monotonic()))
        seconds = time.monotonic() - now
    except subprocess.TimeoutExpired:
        for child in children:
            child.kill()
    statuses = [children[number].wait() for number in others]
    children[victim].wait()
    texts = [(folder / f"{number}.{attempt}.log").read_bytes() for number in others]
    named = all(f"process {victim} of the run has died".encode() in text for text in texts)
    logged = rows(folder / "run")
    return Kill(victim, at_start, logged[-1]["step"] if logged else 0, newest(folder), seconds, statuses, named)


def newest(folder: Path) -> int:
    """Updates of the newest checkpoint of the run in a folder; 0 without one."""
    steps = [int(path.name) for path in (folder / "run" / "checkpoints").glob("*") if path.name.isdigit()]
    return max(steps, default=0)


def rows(run: Path) -> list[dict[str, Any]]:
    """The log of a run but for the timings; whole lines alone."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [{name: x for name, x in json.loads(line).items() if not name.startswith("perf/")} for line in lines if line.endswith("\n")]


def largest_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """The largest absolute difference of a number in two logs; infinite where they have not the same rows and names."""
    if [row.keys() for row in one] != [row.keys() for row in other]:
        return float("inf")
    return max((abs(a[name] - b[name]) for a, b in zip(one, other, strict=True) for name in a), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
