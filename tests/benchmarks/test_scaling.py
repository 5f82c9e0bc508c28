"""What the table of devices and processes is made of."""

import os
import time

import pytest

from benchmarks import scaling


def test_cpu_time_is_that_of_the_system():
    assert scaling.cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=1.0)


def test_the_overhead_is_beside_one_device():
    assert scaling.table_row(1, 1, 8, [10.0, 20.0, 30.0], 20.0) == "| 1 | 1 | 8 | 20 | 10 to 30 | +0% |"
    assert scaling.table_row(2, 2, 2, [30.0, 30.0], 20.0) == "| 2 | 2 | 2 | 30 | 30 to 30 | +50% |"


def test_the_first_interval_and_the_last_line_do_not_count(tmp_path, monkeypatch):
    program = tmp_path / "train.py"
    program.write_text("for step in (20, 40, 60, 80):\n    print('other')\n    print(f'step {step}/80')\n")
    monkeypatch.setattr(scaling, "TRAIN", program)
    readings = iter([1.0, 3.0, 4.0, 9.0])
    monkeypatch.setattr(scaling, "cpu_seconds", lambda pid: next(readings))
    assert scaling.intervals(tmp_path / "run", 1, 1, []) == [2.0, 1.0]
