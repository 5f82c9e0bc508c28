"""A saved run is served by what a robot installs: its record, its weights, and its frozen base in the Hugging Face layout."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from websockets.sync.client import connect

from eosjax.ends.protocols import Clock
from eosjax.serving.policy import Policy
from eosjax.serving.wire import pack, unpack
from tests.saved_runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with adapters on a small checkpoint; all weights are random."""
    return make_run(tmp_path_factory.mktemp("run") / "made").folder


def test_a_run_is_served(run):
    policy = Policy.load(run)
    observation = {"images": [np.full((40, 60, 3), 120, np.uint8)], "state": np.linspace(-1.0, 1.0, 3)}
    step = policy(observation, "pick up the bowl", Clock())
    assert step.actions.shape == (2, 2)
    assert np.isfinite(step.actions).all()
    assert step.eos is not None
    assert ((step.eos > 0) & (step.eos < 1)).all()
    np.testing.assert_array_equal(policy(observation, "pick up the bowl", Clock()).actions, step.actions)
    assert (policy(observation, "place it on the plate", Clock()).actions != step.actions).any()


def test_a_run_is_shown_and_exported(run, tmp_path):
    for argv in (["show", run], ["export", "--checkpoint", run, "--format", "merged", "--out", tmp_path / "merged"]):
        child = subprocess.run([sys.executable, "-m", "eosjax", *map(str, argv)], capture_output=True, text=True)
        assert (child.returncode, child.stderr) == (0, "")
        assert "needs the extra `train`" in child.stdout or argv[0] != "show"  # to look for the data
    assert {"config.json", "model.safetensors", "dataset_statistics.json"} <= {path.name for path in (tmp_path / "merged").iterdir()}


def test_the_command_serves_it(run, tmp_path):
    (tmp_path / "robot.yaml").write_text("images: [top]\nstate: joints\n")
    flags = ["--checkpoint", run, "--keys", tmp_path / "robot.yaml", "--port", "0", "--max_batch", "1"]
    observation = {"top": np.full((40, 60, 3), 120, np.uint8), "joints": np.linspace(-1.0, 1.0, 3), "prompt": "pick up the bowl"}
    with subprocess.Popen([sys.executable, "-m", "eosjax", "serve", *map(str, flags)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        url = next(line for line in child.stdout if line.startswith("serving ")).split()[-1]
        with connect(url, compression=None) as connection:
            assert unpack(bytes(connection.recv(timeout=20)))["action_horizon"] == 2
            connection.send(pack(observation))
            reply = unpack(bytes(connection.recv(timeout=20)))
        child.send_signal(signal.SIGTERM)
        assert child.communicate(timeout=20)[0] == "stopped\n"
    assert child.returncode == 0
    expected = Policy.load(run)({"images": [observation["top"]], "state": observation["joints"]}, observation["prompt"], Clock())
    np.testing.assert_array_equal(reply["actions"], expected.actions)
    np.testing.assert_array_equal(reply["eos"], expected.eos)
