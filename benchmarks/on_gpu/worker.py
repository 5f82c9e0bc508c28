"""The work of one process that `driver` starts: it has the device for itself, and ends with a status other than 0 where it cannot go on."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import jax
from jax.extend.backend import get_backend

from benchmarks.on_gpu import checks, figures, plans
from benchmarks.on_gpu.cases import Case, Expected
from benchmarks.on_gpu.rows import Row, Rows, check
from eosjax.models.attention import cudnn_problem


def work(task: dict[str, Any], folder: Path, *, tiny: bool) -> None:
    """Does a task and adds its rows to those in `folder`; see `driver` for the tasks."""
    rows = Rows(folder)
    match task["work"]:
        case "checks":
            run_checks(rows, tiny=tiny)
        case "deterministic":
            fingerprints = checks.deterministic_run(jax.devices()[0], tiny=tiny)
            Path(task["file"]).write_text(json.dumps(fingerprints), encoding="utf-8")
        case "plan":
            plans.write_plans(folder, [Case(*each) for each in task["cases"]], (1, 2) if tiny else (1, 16), tiny=tiny)
        case "case":
            rows.add(measure(Case(*task["case"]), Expected(*task["expected"]), again=task["again"], tiny=tiny))
        case "eos":
            for row in figures.eos_rows(Case(*task["case"]), rounds=3 if tiny else 10, tiny=tiny):
                rows.add(row)
        case "buffer":
            for row in figures.buffer_rows((50,) if tiny else figures.CAPACITIES, 3 if tiny else 30):
                rows.add(row)


def run_checks(rows: Rows, *, tiny: bool) -> None:
    """Describes the device and checks it; a check that raises has failed."""
    rows.add(device_row())
    if jax.default_backend() == "gpu":
        problem = cudnn_problem()
        rows.add(check("cuDNN's fused attention can be used", {"problems": int(problem is not None)}, {"problems": 0}, problem or ""))
    elif not tiny:
        sys.exit(f"expected a GPU, and JAX sees {jax.devices()[0].device_kind}; --tiny runs anywhere")
    for each in checks.all_checks(tiny):
        rows.add(outcome(each))


def outcome(each: functools.partial[Row]) -> Row:
    """The row of a check, or what it raised."""
    try:
        return each()
    except Exception as error:  # whatever XLA or cuDNN raises
        return Row("check", f"{each.func.__name__}{each.args}", {}, False, first_line(error))


def measure(case: Case, expected: Expected, *, again: bool, tiny: bool) -> Row:
    """The row of a case, also where the device has not enough memory."""
    try:
        return figures.case_row(case, expected, again=again, steps=3 if tiny else 10, tiny=tiny)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Row("speed", case.name, {**case._asdict()}, note=f"out of memory: {first_line(error)}")


def first_line(error: Exception) -> str:
    """The first line of an error, not too long for a table."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].replace("|", "/")


def device_row() -> Row:
    """What the rows were measured on."""
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    described = {
        "platform": device.platform,
        "limit GB": limit / figures.GB if limit else None,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "runtime": get_backend().platform_version.splitlines()[0],
    }
    return Row("device", device.device_kind, described)
