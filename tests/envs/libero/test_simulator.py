"""The simulator itself, where the extra `libero` is installed."""

import importlib.util
import pickle
import zipfile

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from eosjax import cli
from eosjax.envs.libero import simulator as module
from eosjax.envs.libero.env import ENV_ID
from eosjax.envs.libero.expert import Style
from eosjax.envs.libero.processes import SimulatorProcess
from eosjax.envs.libero.recordings import record
from eosjax.envs.libero.tasks import COVERED
from eosjax.envs.worlds import WorldError

needs_libero = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("libero", "robosuite", "mujoco")), reason="needs the extra `libero`"
)


def test_a_missing_extra_is_named(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "libero" else find(name))
    with pytest.raises(WorldError, match=r"extra `libero`.*not installed: libero"):
        module.find_tasks("libero_goal", (8,))
    flags = ["--env", "libero_goal:8", "--episodes", "1", "--out", str(tmp_path / "out")]
    for command in (["collect", *flags], ["rollout", "--checkpoint", "RUN", *flags]):
        assert cli.main(command) == 2
        assert "pip install 'eosjax[libero]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_start_states_of_the_original_are_read_without_pytorch(tmp_path):
    states = np.random.default_rng(0).normal(size=(3, 7))
    with zipfile.ZipFile(tmp_path / "task.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(states))
        archive.writestr("archive/version", "3")
    np.testing.assert_array_equal(module.read_states(tmp_path / "task.pruned_init"), states)


@needs_libero
def test_every_covered_task_has_a_goal_and_a_plan():
    for suite, numbers in COVERED.items():
        for task in module.find_tasks(suite, numbers):
            assert len(task.plan) == 5
            assert task.goal.thing.endswith("_1")


class Simulated:
    """What the tests do in a process of its own: the libraries of OpenGL do not get on with TensorFlow in one."""

    def record(self):
        """Twice the same demonstration; the pictures at its end, and again when its last state is shown."""
        table = module.Simulator(module.find_tasks("libero_goal", (8,))[0], plain=True)
        one = record(table, 3, np.random.default_rng(0), Style())
        live = table.pictures()
        last = table.state()
        again = record(table, 3, np.random.default_rng(0), Style())
        table.show(last)
        return one, again, live, table.pictures()

    def check_gymnasium(self):
        """The environment passes Gymnasium's check; how its first steps go."""
        env = gymnasium.make(ENV_ID, suite="libero_goal", task=8, plain_pictures=True).unwrapped
        check_env(env, skip_render_check=True)
        told = env.reset(seed=5)[1]
        for _ in range(3):
            seen, reward, terminated, _, info = env.step(env.expert(0))
        env.close()
        return told, [picture.mean() for picture in seen["images"]], (reward, terminated, info["success"])


@needs_libero
def test_a_demonstration_is_the_same_in_a_used_simulator_and_so_is_the_gymnasium_environment():
    process = SimulatorProcess(Simulated)
    process.ask("record")
    one, again, live, shown = process.reply()
    assert one.success
    assert one.end.sum() == 5
    for left, right in zip(one, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert [picture.shape for picture in live] == [(256, 256, 3)] * 2
    for one, other in zip(live, shown, strict=True):  # what is live is one step of the physics, 2 ms, behind its state
        assert np.abs(one.astype(int) - other).mean() < 3
    process.ask("check_gymnasium")
    told, brightness, after = process.reply()
    assert told["task"] == "put the bowl on the plate"
    assert len(told["plan"]) == len(told["goals"])
    assert min(brightness) > 40
    assert after == (0.0, False, False)
