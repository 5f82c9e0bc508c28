"""The soak of kills, on objects that imitate the processes of a run: they log, save, and go on from what was saved."""

import json
import random

import pytest

from benchmarks import faults

STEPS = 9


class Imitated:
    """A process that is done, or waits to be killed and takes the others along."""

    def __init__(self, log, done):
        self.log, self.status, self.others = log, 0 if done else None, []
        log.write_text("begins\nstep 1/9\n")

    def poll(self):
        return self.status

    def wait(self, timeout=None):
        return self.status

    def kill(self):
        self.status = -9
        for number, other in enumerate(self.others):
            if other is not self:
                other.status = 2
                other.log.write_text(f"process {self.others.index(self)} of the run has died, says {number}")


def write_run(folder, to, lost=0):
    """Goes on from the newest checkpoint to a step, of which the log keeps all rows but the `lost` last ones of before."""
    (folder / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
    saved = faults.newest(folder)
    before = faults.rows(folder / "run")[: saved - lost if saved else 0]
    lines = [*before, *({"step": step, "train/loss": 1 / step, "perf/time": random.random()} for step in range(saved + 1, to + 1))]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run" / "checkpoints" / str(to - to % 2)).mkdir(exist_ok=True)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_that_is_killed_is_compared_with_one_that_is_not(tmp_path, monkeypatch, capsys, lost):
    asked = []

    def start(folder, attempt, resume, processes, devices, flags):
        folder.mkdir(exist_ok=True)
        asked.append((attempt, resume))
        done = folder.name == "whole" or attempt == 3
        write_run(folder, STEPS if done else 2 * attempt + 1, lost)
        children = [Imitated(folder / f"{number}.{attempt}.log", done) for number in range(processes)]
        for child in children:
            child.others = children
        return children

    monkeypatch.setattr(faults, "start_run", start)
    monkeypatch.setattr(faults, "MOST_SECONDS", 0)
    assert faults.main([str(tmp_path / "out"), "--kills", "3", "--processes", "3"]) == (1 if lost else 0)
    assert asked == [(0, False), (0, False), (1, False), (2, True), (3, True)]
    output = capsys.readouterr().out
    assert output.count("| training |") == 3
    assert output.count("| [2, 2] | yes |") == 3
    assert "3 kills, 0 outlived; largest difference of a logged number from the run without faults: " + ("inf" if lost else "0") in output


def test_rows_of_two_logs_are_compared_but_for_timings(tmp_path):
    for name, loss in (("one", 1.0), ("other", 1.5)):
        (tmp_path / name).mkdir()
        line = json.dumps({"step": 1, "train/loss": loss, "perf/time": loss})
        (tmp_path / name / "metrics.jsonl").write_text(line + '\n{"step": 2, "tr')
    one, other = (faults.rows(tmp_path / name) for name in ("one", "other"))
    assert [row["step"] for row in one] == [1]  # a row that was being written when the process died is none
    assert faults.largest_difference(one, one) == 0
    assert faults.largest_difference(one, other) == 0.5
    assert faults.largest_difference(one, []) == float("inf")
