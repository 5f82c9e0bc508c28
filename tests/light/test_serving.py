"""A saved run is served by what a robot installs: its record, its weights, and its frozen base in the Hugging Face layout."""

import subprocess
import sys

import numpy as np
import pytest

from eosjax.ends.protocols import Clock
from eosjax.serving.policy import Policy
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
