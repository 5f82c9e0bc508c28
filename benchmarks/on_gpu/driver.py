"""Starts one process after the other, each with the device for itself, and ends within a given time.

Each measured case has a process of its own: within one process the peak of a device's memory cannot be set back. The driver does not load
JAX, so that it holds no device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.cases import PLANS, Case, CasePlan, Expected, all_cases, read_plan
from benchmarks.on_gpu.goals import goal_rows
from benchmarks.on_gpu.rows import Row, Rows, check, differing, failed
from eosjax import runtime

ENTRY = Path(__file__).parents[1] / "gpu.py"
TINY_CASES = [Case("fused", "none", 2, 2)]  # without the recomputation that `dots` adds to what is compiled
QUICK = "--xla_backend_optimization_level=0"  # small shapes are compiled more than they compute


class Driver:
    """One run of the benchmark.

    Args:
      folder: for rows, tables, plans and the stderr of the processes.
      seconds: after which it ends.
      tiny: for a CPU.
      cache: folder for compiled programs, empty.
    """

    def __init__(self, folder: Path, seconds: float, cache: Path, *, tiny: bool) -> None:
        self.rows, self.folder, self.tiny = Rows(folder), folder, tiny
        self._end = time.monotonic() + seconds
        self.environment = _environment(cache, tiny=tiny)
        self._number = 0

    def start(self, task: dict[str, Any], **environment: str) -> subprocess.Popen[bytes]:
        """Starts a process; its stderr goes to a file."""
        self._number += 1
        command = [sys.executable, str(ENTRY), "--out", str(self.folder), "--task", json.dumps(task), *(["--tiny"] if self.tiny else [])]
        with open(self._log(self._number), "wb") as log:
            return subprocess.Popen(command, env=self.environment | environment, stderr=log)

    def do(self, section: str, name: str, task: dict[str, Any], **environment: str) -> bool:
        """Runs a process to its end, or to the end of the time; a row tells if it fails, or is stopped. Returns whether it did neither."""
        if self.left <= 0:
            self.rows.add(Row(section, name, {}, note="not started: out of time"))
            return False
        child = self.start(task, **environment)
        number = self._number
        try:
            status = child.wait(self.left)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            self.rows.add(Row(section, name, {}, note="stopped: out of time"))
            return False
        if status:
            lines = self._log(number).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            note = lines[-1][:200].replace("|", "/") if lines else ""
            self.rows.add(Row(section, name, {}, False, f"exit status {status}: {note}"))
        return status == 0

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self._end - time.monotonic()

    def _log(self, number: int) -> Path:
        return self.folder / f"{number:02}.stderr"


def _environment(cache: Path, *, tiny: bool) -> dict[str, str]:
    environment = {**os.environ, runtime.COMPILE_CACHE: str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if not any(name in environment for name in runtime.MEMORY_FRACTIONS):
        environment[runtime.MEMORY_FRACTIONS[0]] = runtime.MEMORY_FRACTION
    if tiny:
        environment.setdefault("XLA_FLAGS", QUICK)
    platforms = environment.get("JAX_PLATFORMS")
    if platforms and "cpu" not in platforms.split(","):
        environment["JAX_PLATFORMS"] = f"{platforms},cpu"  # the checks compare with it
    return environment


def run(folder: Path, seconds: float, *, tiny: bool) -> int:
    """Checks and measures; returns the exit status: 1 if a check or a process fails."""
    cases = TINY_CASES if tiny else all_cases((8, 16, 0, 1))
    with tempfile.TemporaryDirectory() as cache:
        driver = Driver(folder, seconds, Path(cache), tiny=tiny)
        driver.rows.clear()
        (folder / PLANS).write_text("", encoding="utf-8")
        planner = driver.start({"work": "plan", "cases": cases}, JAX_PLATFORMS="cpu")
        try:
            if driver.do("check", "checks", {"work": "checks"}):
                check_repeatability(driver)
                measure(driver, planner, cases)
        finally:
            planner.kill()
            planner.wait()
    if not tiny:
        for row in goal_rows(driver.rows.read()):
            driver.rows.add(row)
    wrong = failed(driver.rows.read())
    print(f"{folder}: {f'{len(wrong)} failed' if wrong else 'all checks passed'}")
    return int(bool(wrong))


def check_repeatability(driver: Driver) -> None:
    """Two runs with deterministic kernels, each compiled anew, must end with the same bits."""
    files = [driver.folder / f"run_{number}.json" for number in (1, 2)]
    flags = " ".join(filter(None, (driver.environment.get("XLA_FLAGS"), runtime.DETERMINISTIC)))
    name = "runs of the same flags, bit for bit"
    for file in files:
        task = {"work": "deterministic", "file": str(file)}
        if not driver.do("check", name, task, XLA_FLAGS=flags, JAX_ENABLE_COMPILATION_CACHE="false"):
            return
    figures = {"arrays that differ": differing(*(json.loads(file.read_text(encoding="utf-8")) for file in files))}
    driver.rows.add(check(name, figures, 0, runtime.DETERMINISTIC))


def measure(driver: Driver, planner: subprocess.Popen[bytes], cases: Sequence[Case]) -> None:
    """The figures, in order of value, as far as the time goes."""
    limit = _limit(driver.rows)
    done: set[Case] = set()
    for number, case in enumerate(cases):
        if driver.left > 0:
            _measure_case(driver, _wait_for_plan(driver, planner, case), case, limit, done)
        if number == 0:
            _measure_eos(driver, case, limit)


def _measure_case(driver: Driver, plan: CasePlan | None, case: Case, limit: float | None, done: set[Case]) -> None:
    """Measures a case unless it is one of those that are done, or the plan says that it does not fit."""
    if not case.batch:
        if not (plan and limit):
            return
        case = case._replace(batch=plan.largest_batch(limit))
    if case in done or not case.batch:
        return
    expected = Expected(plan.model_flops, plan.hardware_flops, plan.peak(case.batch)) if plan else Expected()
    if limit and expected.peak and expected.peak > limit:
        note = f"does not fit: planned {expected.peak / 1e9:.1f} GB of {limit / 1e9:.1f}"
        driver.rows.add(Row("speed", case.name, {**case._asdict()}, note=note))
    else:
        driver.do("speed", case.name, {"work": "case", "case": case, "expected": expected, "again": not done})
    done.add(case)


def _measure_eos(driver: Driver, case: Case, limit: float | None) -> None:
    plan = read_plan(driver.folder, case)
    if plan and limit and plan.peak(case.batch) > 0.9 * limit:  # there are two states
        case = case._replace(remat="full")
    driver.do("eos", case.name, {"work": "eos", "case": case})
    # PyTorch needs memory on the same card.
    driver.do("buffer", "buffer", {"work": "buffer"}, XLA_PYTHON_CLIENT_PREALLOCATE="false")


def _limit(rows: Rows) -> float | None:
    limit = next(row for row in rows.read() if row.section == "device").figures["limit GB"]
    return limit * 1e9 if isinstance(limit, float) else None


def _wait_for_plan(driver: Driver, planner: subprocess.Popen[bytes], case: Case) -> CasePlan | None:
    """The plan of a case; None where the planner has failed."""
    while driver.left > 0:
        ended = planner.poll() is not None
        plan = read_plan(driver.folder, case)
        if plan or ended:
            return plan
        time.sleep(0.2)
    return None
