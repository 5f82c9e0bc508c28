"""The benchmark for GPUs: whole on small shapes, and what it says of what is wrong."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.on_gpu import checks, driver, figures, worker
from benchmarks.on_gpu.cases import PLANS, Case, CasePlan, Expected, all_cases, read_plan
from benchmarks.on_gpu.goals import goal_rows
from benchmarks.on_gpu.rows import Row, Rows, check, failed, tables
from benchmarks.on_gpu.shapes import Begun
from eosjax.training.plan import CARDS

ROOT = Path(__file__).parents[2]
# What a machine with a GPU need not have.
ABSENT = (
    "tensorflow tensorflow_datasets grain array_record draccus matplotlib sklearn pyarrow jinja2 tensorboardX numba PIL huggingface_hub "
    "transformers torch peft flashbax"
).split()
_HIDE = f"""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
hide = lambda name, *args: None if name.split(".")[0] in {ABSENT} else find_spec(name, *args)
PathFinder.find_spec = staticmethod(hide)
"""
CASE = Case("fused", "dots", 2, 8)
GB = 1_000_000_000


def test_it_runs_whole_on_a_cpu_with_little_installed(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(_HIDE)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "benchmarks/gpu.py", "--out", tmp_path / "out", "--tiny", "--seconds", "3000"]
    child = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")
    rows = Rows(tmp_path / "out").read()
    assert failed(rows) == []
    assert [row.name for row in rows if row.section == "check"] == [
        "buffer against deques, float32",
        "buffer against deques, bfloat16",
        "small policy against the CPU, float32",
        "attention: blockwise against xla, head 64, 41 tokens",
        "4 updates against the CPU, float32",
        "memory over 10 updates",
        "a checkpoint comes back",
        "runs of the same flags, bit for bit",
    ]
    assert all(row.ok for row in rows if row.section == "check")
    (case,) = (row.figures for row in rows if row.section == "speed")
    assert all(case[what] > 0 for what in ("samples/s", "model TFLOP/s", "hardware TFLOP/s", "plan GB", "compile s", "compile s, cached"))
    assert [row.name.split(":")[0] for row in rows if row.section in ("eos", "buffer")] == ["update", "inference", *_buffer_names(1)]
    assert (tmp_path / "out" / "tables.md").read_text() == tables(rows)


def _buffer_names(count):
    return [f"add 64 and sample 35 of [7, 4096], capacity {capacity}" for capacity in figures.CAPACITIES[:count]]


# A stand-in for the processes: it adds a row, or fails.
_ENTRY = """
import json, sys
task = json.loads(sys.argv[sys.argv.index("--task") + 1])
out = sys.argv[sys.argv.index("--out") + 1]
row = {"section": "check", "name": "one", "figures": {}, "ok": OK, "note": ""}
device = row | {"section": "device", "figures": {"limit GB": None}, "ok": None}
if task["work"] == "checks":
    open(out + "/rows.jsonl", "a").write(json.dumps(row) + "\\n" + json.dumps(device) + "\\n")
elif task["work"] == "deterministic":
    json.dump({"a": 1}, open(task["file"], "w"))
elif task["work"] == FAILS:
    sys.exit("it | broke")
"""


@pytest.mark.parametrize(("ok", "fails", "status"), [(True, None, 0), (False, None, 1), (None, "case", 1)])
def test_the_exit_status_tells_of_failed_checks_and_processes(tmp_path, monkeypatch, ok, fails, status):
    entry = tmp_path / "entry.py"
    entry.write_text(_ENTRY.replace("OK", repr(ok)).replace("FAILS", repr(fails)))
    monkeypatch.setattr(driver, "ENTRY", entry)
    assert driver.run(tmp_path / "out", 600.0, tiny=True) == status
    notes = [row.note for row in Rows(tmp_path / "out").read() if row.ok is False and row.section == "speed"]
    assert notes == (["exit status 1: it / broke"] if fails else [])


def test_what_the_user_has_set_for_xla_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    for tiny in (True, False):
        environment = driver.Driver(tmp_path, 0.0, tmp_path, tiny=tiny).environment
        assert (environment["XLA_FLAGS"], environment["JAX_PLATFORMS"]) == ("--mine", "cuda,cpu")
    monkeypatch.delenv("XLA_FLAGS")
    assert "XLA_FLAGS" not in driver.Driver(tmp_path, 0.0, tmp_path, tiny=False).environment
    assert driver.Driver(tmp_path, 0.0, tmp_path, tiny=True).environment["XLA_FLAGS"] == driver.QUICK


def test_out_of_time_nothing_is_started(tmp_path):
    made = driver.Driver(tmp_path, 0.0, tmp_path, tiny=True)
    made.rows.clear()
    assert not made.do("eos", "what", {})
    assert made.rows.read() == [Row("eos", "what", {}, note="not started: out of time")]


class Recorded:
    """A driver that starts nothing."""

    def __init__(self):
        self.done, self.rows = [], SimpleNamespace(add=lambda row: self.done.append((row.name, row.note)))

    def do(self, section, name, task):
        self.done.append((name, task["expected"].peak, task["again"]))


PLAN = CasePlan("fused", "dots", 2, (1, 20 * GB), (16, 80 * GB), 1e12, 2e12)


def test_what_does_not_fit_is_not_tried_and_the_largest_batch_is():
    recorded, done = Recorded(), set()
    for batch in (8, 16, 0):
        driver._measure_case(recorded, PLAN, CASE._replace(batch=batch), 70.0 * GB, done)
    driver._measure_case(recorded, None, CASE._replace(batch=0), 70.0 * GB, done)  # no plan: nobody knows the largest batch
    assert recorded.done == [
        ("fused, dots, 2 image(s), batch 8", 48 * GB, True),
        ("fused, dots, 2 image(s), batch 16", "does not fit: planned 80.0 GB of 70.0"),
        ("fused, dots, 2 image(s), batch 13", 68 * GB, False),
    ]


def test_plans_are_lines_and_cases_come_once(tmp_path):
    assert (PLAN.largest_batch(19 * GB), PLAN.largest_batch(20 * GB), PLAN.largest_batch(80 * GB)) == (0, 1, 16)
    (tmp_path / PLANS).write_text(json.dumps(PLAN) + "\n")
    found = read_plan(tmp_path, CASE)
    assert found is not None
    assert found.peak(16) == 80 * GB
    assert read_plan(tmp_path, CASE._replace(remat="none")) is None
    cases = all_cases((8, 16, 0, 1))
    assert cases[0] == CASE
    assert len(set(cases)) == len(cases) == 2 * 3 * 2 * 4


@pytest.mark.parametrize(("value", "ok"), [(0.5, True), (1.0, True), (1.1, False), (math.nan, False)])
def test_a_check_passes_within_its_limit(value, ok):
    assert check("c", {"a": value, "b": 0}, {"a": 1.0, "b": 0}).ok is ok


def test_a_table_has_the_columns_of_all_its_rows():
    rows = [Row("speed", "one", {"a": 1.0}), Row("check", "c", {"x": "1"}, False, "why"), Row("speed", "two", {"b": None, "a": 12345.6})]
    assert tables(rows).splitlines() == [
        "## Correctness",
        "",
        "| check | figures | result | note |",
        "| --- | --- | --- | --- |",
        "| c | x 1 | FAILED | why |",
        "",
        "## Speed and memory of an update",
        "",
        "| speed | a | b | result | note |",
        "| --- | --- | --- | --- | --- |",
        "| one | 1 |  |  |  |",
        "| two | 1.235e+04 |  |  |  |",
    ]


def test_goals_take_the_best_speed_and_the_worst_of_all_else():
    cases = [(2, 8, 13.0, 1.02), (2, 1, 99.0, 0.85), (1, 8, 99.0, 1.0)]
    rows = [
        Row("speed", "s", {"images": images, "batch": batch, "samples/s": speed, "peak / plan": ratio, "MFU %": None})
        for images, batch, speed, ratio in cases
    ]
    rows += [Row("speed", "stopped", {}), Row("eos", "update", {"ms": 300.0, "share %": 1.5}), Row("eos", "inference", {"ms": 60.0})]
    found = {row.name: (row.figures["measured"], row.ok) for row in goal_rows(rows)}
    assert found.pop("difference of a peak from its plan, %") == (pytest.approx(15.0), False)
    assert found == {
        "samples/s, two images, batch 8 or more": (13.0, True),
        "EOS part of an update, %": (1.5, True),
        "inference, ms a chunk": (60.0, False),
    }
    assert failed(goal_rows(rows)) == []


def test_every_kind_of_device_is_a_card():
    assert set(figures.DEVICE_KINDS.values()) <= CARDS.keys()
    assert figures.peak_flops("NVIDIA H200") == 989e12
    assert figures.peak_flops("cpu") is None


def test_without_memory_a_case_says_so(monkeypatch):
    def no_memory(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore")

    monkeypatch.setattr(figures, "case_row", no_memory)
    row = worker.measure(CASE, Expected(), again=False, tiny=True)
    assert (row.ok, row.note) == (
        None,
        "out of memory: JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.",
    )


# --- broken code fails its check


def test_a_check_that_raises_has_failed():
    row = worker.outcome(functools.partial(checks.buffer_against_deque, "float99"))
    assert (row.ok, row.name) == (False, "buffer_against_deque('float99',)")
    assert "float99" in row.note


def test_a_buffer_that_loses_a_row_fails(monkeypatch):
    class Lossy(checks.BalancedBuffer):
        def add(self, state, items, labels, valid):
            return super().add(state, items, labels, jnp.asarray(valid).at[0].set(False))

    monkeypatch.setattr(checks, "BalancedBuffer", Lossy)
    assert checks.buffer_against_deque("float32").ok is False


def test_attention_that_sees_padding_fails(monkeypatch):
    right = checks.attend
    monkeypatch.setattr(checks, "attend", lambda q, k, v, lengths, how: right(q, k, v, None if how == checks.fused() else lengths, "xla"))
    row = checks.attention_against_xla(8, 6)
    assert row.ok is False
    assert float(str(row.figures["full out"]).split()[0]) == 0


@pytest.mark.parametrize(("growth", "donated", "ok"), [(0, True, True), (0, False, False), (1 << 18, True, False)])
def test_memory_that_grows_and_states_that_live_on_fail(monkeypatch, growth, donated, ok):
    step = jax.jit(lambda state: state + 1, donate_argnums=0 if donated else ())
    parallel = SimpleNamespace(split=lambda batch: batch, step=lambda state, frozen, batch: (step(state), None))
    sizes = iter(range(0, 100 * growth + 1, growth)) if growth else iter([5] * 100)
    monkeypatch.setattr(checks, "begin", lambda *args: Begun(None, parallel, jnp.zeros(3), {}))
    monkeypatch.setattr(checks, "bytes_in_use", lambda device: next(sizes))
    assert checks.donation(jax.devices()[0], 10).ok is ok


def test_errors_are_relative_to_the_array_but_for_arrays_of_zeros():
    expected = {"a": np.array([1.0, -4.0]), "zero": np.array([1e-9])}
    assert checks.relative_error({"a": np.array([1.0, -4.4]), "zero": np.array([1e-9])}, expected) == pytest.approx(0.1)
    assert checks.relative_error({"a": expected["a"], "zero": np.array([4e-6])}, expected) == pytest.approx(1e-3, rel=1e-2)
