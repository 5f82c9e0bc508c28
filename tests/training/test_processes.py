"""Several processes as one run: the real program, on two processes of two devices each."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.flag_values import ConfigError
from eosjax.serving.policy import Policy
from eosjax.training import processes
from tests.test_run import FLAGS, TRAIN, data_flags, read_until, rows  # noqa: F401  # data_flags is a fixture

PROGRAM = " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def start(flags, root, port=None, number=0, devices=2):
    together = f"--coordinator_address localhost:{port} --num_processes 2 --process_id {number}".split() if port else []
    command = [sys.executable, str(TRAIN), *FLAGS, *flags, *together, "--run_root_dir", str(root), "--run_id_override", "run"]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}{PROGRAM}"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pair(flags, root, other=()):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    return [start([*flags, *(other if number else ())], root, port, number) for number in (0, 1)]


def finish(children):
    answers = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0] * len(children), answers
    return answers


def record(folder, step):
    return json.loads((folder / "checkpoints" / str(step) / "record" / "metadata").read_text())


def assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            np.testing.assert_allclose(b[name], value, rtol=2e-3, atol=1e-5, err_msg=f"{name} of step {a['step']}")


def test_two_processes_are_one_run_through_a_death_and_a_signal(data_flags, tmp_path):  # noqa: F811
    flags = [*data_flags, "--use_tensorboard", "False"]
    finish([start([*flags, "--max_steps", "6"], tmp_path / "one", devices=4)])
    alone, folder = tmp_path / "one" / "run", tmp_path / "two" / "run"

    children = pair([*flags, "--max_steps", "9999"], tmp_path / "two")
    said = ""
    while not (folder / "checkpoints" / "3").is_dir():
        said += children[0].stdout.readline()
    assert "4 cpu device(s) of 2 processes, batch 8" in said
    children[1].kill()
    _, error = children[0].communicate()
    assert children[0].returncode == 2
    assert "train.py: process 1 of the run has died; go on from the newest checkpoint with --resume True" in error
    assert "step" not in children[1].communicate()[0]

    children = pair([*flags, "--max_steps", "9999", "--resume", "True"], tmp_path / "two")
    read_until(children[0], "step 6/9999")
    children[1].send_signal(signal.SIGTERM)
    (said, _), _ = finish(children)
    step = int(said.split("stopped at step ")[1].split(",")[0])
    assert record(folder, step)["step"] == step
    assert_close(rows(alone), rows(folder)[: len(rows(alone))])
    one, two = (record(each, 6)["fingerprints"] for each in (alone, folder))
    exact = {name for name in one if name.startswith(".buffer") and ".data" not in name}
    assert len(exact) >= 10
    assert {name: two[name] for name in exact} == {name: one[name] for name in exact}
    policy = Policy.load(folder)  # as one of a single process
    assert np.isfinite(policy({"images": [np.zeros((16, 16, 3), np.uint8)] * 2}, "go").actions).all()


_START = """
import sys
from eosjax.config import TrainConfig
from eosjax.training import processes
try:
    processes.start(TrainConfig(coordinator_address=sys.argv[1], num_processes=3, process_id=int(sys.argv[2]), start_timeout=60))
except processes.StartError as error:
    sys.exit(str(error))
"""


def test_three_processes_with_unequal_devices_are_refused():
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    children = []
    for number in range(3):
        flags = f"--xla_force_host_platform_device_count={1 + number % 2}"
        command = [sys.executable, "-c", _START, address, str(number)]
        children.append(subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": flags}, stderr=subprocess.PIPE, text=True))
    for child in children:
        error = child.communicate()[1]
        assert "must have as many devices as the others: process 0 has 1, process 1 has 2, process 2 has 1" in error
        assert child.returncode == 1


def test_processes_that_are_not_alike_are_refused_in_all_of_them(data_flags, tmp_path):  # noqa: F811
    children = pair([*data_flags, "--max_steps", "4"], tmp_path, ("--learning_rate", "0.1"))
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [2, 2]
    for error in errors:
        assert "process 1 of the run is not like process 0: config.learning_rate is 0.1 there, 0.0005 in process 0" in error


def test_a_process_alone_needs_no_other():
    ran = []
    assert processes.exchange("text") == ["text"]
    assert processes.together(lambda: ran.append(1) or 5) == 5
    assert processes.gather({"a": np.arange(2)})["a"].tolist() == [0, 1]
    processes.check_same({"a": 1})
    processes.start(TrainConfig())
    assert processes.is_first()
    assert ran == [1]


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({}, None),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "8"}, "SLURM"),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "8"}, None),  # sbatch without srun
        ({"OMPI_MCA_orte_hnp_uri": "1;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
    ],
)
def test_the_cluster_that_the_environment_speaks_of(environment, cluster, monkeypatch):
    monkeypatch.setattr("os.environ", environment)
    assert processes.detected() == cluster


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_processes": 2, "process_id": 0}, "needs all of --coordinator_address"),
        ({"num_processes": 2, "process_id": 2, "coordinator_address": "a:1"}, "expected a number from 0 to 1"),
        ({"num_processes": 2, "process_id": 1, "coordinator_address": "localhost"}, "expected host:port, got localhost"),
        ({"start_timeout": 0}, "--start_timeout must be greater than 0"),
    ],
)
def test_flags_that_bring_no_processes_together(flags, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**flags)


def test_a_coordinator_that_nobody_is(tmp_path, data_flags):  # noqa: F811
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    child = start([*data_flags, "--start_timeout", "1"], Path(tmp_path), port, number=1)
    _, error = child.communicate()
    assert child.returncode == 2
    assert f"--coordinator_address localhost:{port}: no process 0 answered there within 1 s" in error
