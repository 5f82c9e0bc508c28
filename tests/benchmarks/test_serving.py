"""`benchmarks/serving.py` runs, and its tables have what docs/serving.md shows."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables():
    command = [sys.executable, "benchmarks/serving.py", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    heads = ("p50, ms", "overhead, p50, ms", "ping during 0.5 s of inference", "open files")
    speed, overhead, ping, memory = (next(place for place, row in enumerate(rows) if head in row) for head in heads)
    figure = r"[\d.,]+ \[[\d.,]+, [\d.,]+\]"
    for at, names, columns in ((speed, 1, 3), (overhead, 0, 2)):
        found = {row[names]: row[names + 1 :] for row in rows[at + 2 : at + 4]}
        assert found.keys() == {"eosjax", "one blocking call"}
        for row in found.values():
            assert len(row) == columns
            assert all(re.fullmatch(figure, cell) for cell in row)
    waited = dict(rows[ping + 2 : ping + 4])
    assert waited.keys() == {"eosjax", "one blocking call"}
    assert all(re.fullmatch(r"\d+ ms", cell) for cell in waited.values())
    assert [row[0].partition(" (")[0] for row in rows[memory + 2 :]] == [
        *(f"after {count} requests" for count in (1, 10, 50, 100)),
        "after 10 dropped connections",
    ]
    assert all(re.fullmatch(r"[\d.]+ MiB", row[1]) and row[2].isdecimal() for row in rows[memory + 2 :])
