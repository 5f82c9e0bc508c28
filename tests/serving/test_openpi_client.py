"""The real openpi-client, in an environment of its own: it needs NumPy 1."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.serving.served import running

ROBOT = Path(__file__).with_name("openpi_robot.py")
PACKAGES = ("openpi-client==0.1.2", "typing_extensions")  # which it imports and does not declare


@pytest.fixture(scope="module")
def robot_python(shared_folder, once):
    """The interpreter of an environment with openpi-client; the test is skipped where it cannot be made, as without a network."""
    with once("openpi_client") as folder:
        if folder:
            made = subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], capture_output=True, text=True)
            python = folder / "bin" / "python"
            pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", "--retries", "0", *PACKAGES]
            if made.returncode == 0:
                made = subprocess.run(pip, capture_output=True, text=True)
            (shared_folder / "openpi_client.fault").write_text(made.stderr if made.returncode else "")
    if fault := (shared_folder / "openpi_client.fault").read_text().strip():
        pytest.skip(f"openpi-client cannot be installed: {fault.splitlines()[-1]}")
    return shared_folder / "openpi_client" / "bin" / "python"


def test_openpi_client_works_unchanged(robot_python):
    with running(api_key=b"k" * 16) as server:
        command = [robot_python, ROBOT, server.url, "k" * 16]
        child = subprocess.run(command, capture_output=True, text=True, env={}, timeout=60)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert found["metadata"]["action_horizon"] == 4
    assert found["cut"] == 2
    assert found["actions"] == [[number] * 7 for number in (0, 0, 0, 0, 4, 4)]  # planned at steps 0 and 4
    np.testing.assert_allclose(found["eos"], [0.1, 0.2, 0.3, 0.4, 0.1, 0.2])
    assert found["cuts"] == [-1] * 6
    assert found["error"].endswith("observation/image: missing; the observation has 'prompt'")
