"""CPU time of an update by number of devices and processes: fake devices, which share the cores of this machine.

    python benchmarks/scaling.py OUT [--updates 120] [--batch 8] [FLAGS OF train.py]

Without flags of train.py it is the demo. All runs have the same global batch. An ideal split costs as many CPU seconds as one device;
what it costs more is the overhead. It is CPU time, since devices that share cores cannot be faster, and since other programs then count
little. OUT gets the runs; a table goes to the console. Linux only.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"
LAYOUTS = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))  # (processes, devices of each)
EVERY = 20  # updates of an interval that is measured


def main(argv: Sequence[str] | None = None) -> None:
    """Runs it all, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder for the runs")
    parser.add_argument("--updates", type=int, default=120, help="of each run (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="of all devices together (%(default)s)")
    arguments, flags = parser.parse_known_args(argv)
    arguments.out.mkdir(parents=True)
    print("| processes | devices of each | batch of a device | CPU ms an update, median | range | overhead |")
    print("| --- | --- | --- | --- | --- | --- |")
    one = None
    for processes, devices in LAYOUTS:
        count = processes * devices
        each = [*flags, "--batch_size", str(arguments.batch // count), "--max_steps", str(arguments.updates)]
        milliseconds = [1000 * seconds / EVERY for seconds in intervals(arguments.out / f"{processes}x{devices}", processes, devices, each)]
        one = one or statistics.median(milliseconds)
        print(table_row(processes, devices, arguments.batch // count, milliseconds, one), flush=True)


def intervals(folder: Path, processes: int, devices: int, flags: Sequence[str]) -> list[float]:
    """CPU seconds of all processes of a run in each interval of `EVERY` updates; not in the first one, which compiles."""
    folder.mkdir()
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    common = f"--log_freq {EVERY} --save_freq 1000000 --use_val_set False --use_tensorboard False --run_root_dir {folder}".split()
    children = []
    for number in range(processes):
        together = ["--coordinator_address", address, "--num_processes", str(processes), "--process_id", str(number)]
        command = [sys.executable, "-u", str(TRAIN), *common, *flags, *(together if processes > 1 else ())]
        with (folder / f"{number}.log").open("w", encoding="utf-8") as log:
            output = log if number else subprocess.PIPE
            children.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, encoding="utf-8"))
    readings, lines = [], []
    with children[0].stdout as output:
        for line in output:
            lines.append(line)
            if line.startswith("step "):  # it comes an interval late, as does the next one
                readings.append(sum(cpu_seconds(child.pid) for child in children))
    (folder / "0.log").write_text("".join(lines), encoding="utf-8")
    statuses = [child.wait() for child in children]
    if any(statuses):
        sys.exit(f"a run has failed, {statuses}: see {folder}/*.log")
    return [after - before for before, after in zip(readings, readings[1:-1], strict=False)]  # the last line comes at the end, with its own


def cpu_seconds(pid: int) -> float:
    """The CPU seconds that a process has used, with its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table_row(processes: int, devices: int, batch: int, milliseconds: list[float], one: float) -> str:
    """A row of the table; `one`: milliseconds of one device."""
    median, overhead = statistics.median(milliseconds), statistics.median(milliseconds) / one - 1
    shown = f"{median:.0f} | {min(milliseconds):.0f} to {max(milliseconds):.0f} | {overhead:+.0%}"
    return f"| {processes} | {devices} | {batch} | {shown} |"


if __name__ == "__main__":
    main()
