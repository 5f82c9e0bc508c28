"""Several processes as one run: the real program, on two processes of two devices each; but for the network, which is of one layer."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.flag_values import ConfigError
from eosjax.models import policies
from eosjax.serving.policy import Policy
from eosjax.training import processes
from tests.test_run import FLAGS, data_flags, rows  # noqa: F401  # data_flags is a fixture
from tests.training.process import OneLayer

REPOSITORY = Path(__file__).parents[2]
XLA_FLAGS = " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def start(flags, root, port=None, number=0, devices=2, fault="none"):
    together = f"--coordinator_address localhost:{port} --num_processes 2 --process_id {number}".split() if port else []
    command = [sys.executable, "-m", "tests.training.process", fault, *FLAGS, "--deterministic", "False", *flags, *together]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}{XLA_FLAGS}", "PYTHONPATH": str(REPOSITORY)}
    command += ["--use_tensorboard", "False", "--run_root_dir", str(root), "--run_id_override", "run"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(flags, root, fault="none"):
    """(exit status, stdout, stderr) of two processes; the fault is the second one's."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    children = [start(flags, root, port, 0), start(flags, root, port, 1, fault=fault)]
    answers = [child.communicate() for child in children]
    return [(child.returncode, *answer) for child, answer in zip(children, answers, strict=True)]


def record(folder, step):
    return json.loads((folder / "checkpoints" / str(step) / "record" / "metadata").read_text())


def assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            np.testing.assert_allclose(b[name], value, rtol=2e-3, atol=1e-5, err_msg=f"{name} of step {a['step']}")


@pytest.fixture(scope="module")
def mixture_flags(tiny, data_flags, tmp_path_factory):  # noqa: F811
    """Flags for a mixture of the tiny dataset and a copy of it under the name of another suite."""
    folder = tmp_path_factory.mktemp("mixture")
    labels = json.loads(Path(data_flags[data_flags.index("--substep_labels_path") + 1]).read_text())
    other = "libero_spatial_no_noops"
    shutil.copytree(tiny.root / tiny.name, folder / tiny.name)
    shutil.copytree(tiny.root / tiny.name, folder / other)
    for path in (folder / other / "1.0.0").iterdir():
        if path.suffix == ".json":
            path.write_text(path.read_text().replace(tiny.name, other))
        path.rename(path.with_name(path.name.replace(tiny.name, other)))
    (folder / "labels.json").write_text(json.dumps(labels | {"libero_spatial": labels["libero_goal"]}))
    flags = f"--data_root_dir {folder} --dataset_name {tiny.name},{other}:2 --substep_labels_path {folder}/labels.json --cache_dir {folder}"
    return flags.split()


def test_two_processes_are_one_run_through_all_that_happens_to_one_of_them(mixture_flags, tmp_path, monkeypatch):
    flags, folder = [*mixture_flags, "--max_steps", "9999"], tmp_path / "two" / "run"
    alone = start(flags, tmp_path / "one", devices=4, fault="interrupt 7")
    _, error = alone.communicate()
    assert alone.returncode == 0, error

    (status, said, error), (killed, _, _) = run(flags, tmp_path / "two", "kill 5")
    assert (status, killed) == (2, -9)
    assert "4 cpu device(s) of 2 processes, batch 8" in said
    assert "process 1 of the run has died; go on from the newest checkpoint with --resume True" in error

    (status, said, error), (failed, _, own_error) = run([*flags, "--resume", "True"], tmp_path / "two", "full disk")
    assert (status, failed) == (2, 2)
    assert "resumed from the checkpoint of step 3" in said
    reason = "the run has ended: No space left on device; the newest checkpoint is of step 3; go on with --resume"
    assert reason in own_error
    assert "process 1 of the run has failed" in error
    assert reason in error

    (status, said, error), (stopped, silent, _) = run([*flags, "--resume", "True"], tmp_path / "two", "interrupt 7")
    assert (status, stopped) == (0, 0), error
    assert "step 4" not in silent
    for output in (said, silent):
        assert "met while it trained: []" in output
    assert record(folder, int(re.search(r"stopped at step (\d+), saved", said)[1]))

    alone = tmp_path / "one" / "run"
    assert [row["step"] for row in rows(alone)] == [2, 4, 6, 6]
    assert_close(rows(alone), rows(folder)[:4])
    one, two = (record(each, 6)["fingerprints"] for each in (alone, folder))
    exact = {name for name in one if name.startswith(".buffer") and ".data" not in name}
    assert len(exact) >= 10
    assert {name: two[name] for name in exact} == {name: one[name] for name in exact}
    monkeypatch.setattr(policies, "OpenVLA", OneLayer)
    policy = Policy.load(folder, dataset="libero_spatial_no_noops")  # as one of a single process
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
    address, children = free_address(), []
    for number in range(3):
        flags = f"--xla_force_host_platform_device_count={1 + number % 2}"
        command = [sys.executable, "-c", _START, address, str(number)]
        children.append(subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": flags}, stderr=subprocess.PIPE, text=True))
    for child in children:
        error = child.communicate()[1]
        assert "must have as many devices as the others: process 0 has 1, process 1 has 2, process 2 has 1" in error
        assert child.returncode == 1


def test_processes_that_are_not_alike_are_refused_in_all_of_them(data_flags, tmp_path):  # noqa: F811
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    flags = [*data_flags, "--max_steps", "4"]
    children = [start(flags, tmp_path, port, 0), start([*flags, "--learning_rate", "0.1"], tmp_path, port, 1)]
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


def free_address():
    with socket.create_server(("localhost", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


def test_a_coordinator_that_nobody_is():
    address = free_address()
    with pytest.raises(processes.StartError, match=f"--coordinator_address {address}: no process 0 answered there within 0.1 s"):
        processes.start(TrainConfig(coordinator_address=address, num_processes=2, process_id=1, start_timeout=0.1))


def test_process_0_waits_no_longer_than_it_was_told(monkeypatch):
    never, at_exit = threading.Event(), []
    monkeypatch.setattr("jax.distributed.initialize", lambda *settings, **more: never.wait())
    monkeypatch.setattr(processes.atexit, "register", lambda *call: at_exit.append(call))
    address = free_address()
    expected = f"--coordinator_address {address}: the other processes of the run have not all come within 0.1 s"
    with pytest.raises(processes.StartError, match=expected):
        processes.start(TrainConfig(coordinator_address=address, num_processes=2, process_id=0, start_timeout=0.1))
    never.set()
    assert at_exit == [(processes.leave, 2)]


def test_a_proxy_is_named_where_processes_do_not_meet(monkeypatch):
    def fail(_):
        raise RuntimeError("UNAVAILABLE")

    monkeypatch.setattr(processes, "_initialize", fail)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    config = TrainConfig(coordinator_address="localhost:0", num_processes=2, process_id=0)
    with pytest.raises(processes.StartError, match=r"cannot meet; .*HTTPS_PROXY.* is set, which can .*: UNAVAILABLE"):
        processes.start(config)


def test_a_port_that_is_in_use():
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(processes.StartError, match=f"{address}: process 0 cannot listen at that port here: Address already in use"):
            processes.start(TrainConfig(coordinator_address=address, num_processes=2, process_id=0))


def test_other_data_are_named(monkeypatch):
    others = [{"datasets.a.frames": "1", "seed": 0}, {"datasets.a.frames": "1", "seed": 0}, {"datasets.a.frames": "2", "seed": 0}]
    monkeypatch.setattr(processes, "exchange", lambda text: [json.dumps(each) for each in others])
    expected = (
        r"^process 2 of the run is not like process 0: datasets.a.frames \(images, .* below --data_root_dir\) is 2 there, 1 in process 0$"
    )
    with pytest.raises(processes.StartError, match=expected):
        processes.check_same(others[0])


def test_any_change_of_the_code_is_seen(monkeypatch, tmp_path):
    (tmp_path / "part").mkdir()
    for name in ("__init__.py", "part/a.py"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(processes.eosjax, "__file__", str(tmp_path / "__init__.py"))
    seen = {processes.code()}
    (tmp_path / "part" / "a.py").write_text("x = 1")
    seen.add(processes.code())
    (tmp_path / "part" / "a.py").rename(tmp_path / "part" / "b.py")
    seen.add(processes.code())
    assert len(seen) == 3
