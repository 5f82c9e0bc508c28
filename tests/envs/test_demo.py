import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from eosjax.demo.expert import Style
from eosjax.demo.recordings import record, recorded
from eosjax.demo.table import Luck
from eosjax.envs.demo import ENV_ID, LIMIT, DemoTable, DemoWorlds
from eosjax.envs.worlds import GymWorlds, WorldError, gather


def test_gymnasium_finds_nothing_to_complain_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ENV_ID, render_mode="rgb_array").unwrapped)


def test_it_is_registered_with_its_limit():
    assert gymnasium.make(ENV_ID).spec.max_episode_steps == LIMIT == GymWorlds(lambda: gymnasium.make(ENV_ID), [0]).limit


def test_the_expert_finishes_through_the_api_and_what_it_shows_is_what_is_recorded():
    """The same seed and actions give the observations of the dataset."""
    recording = record((5,), Luck(), Style())
    file = recorded(recording, "x")
    env = DemoTable()
    observation, info = env.reset(seed=5)
    assert info["plan"] == file.plan
    assert info["task"] == file.task
    rewards, terminated = [], False
    for step, action in enumerate(recording.action):
        assert info["goals"][recording.substep[step]] == recording.end[step]
        np.testing.assert_array_equal(observation["state"], file.state[step])
        np.testing.assert_array_equal(env.expert(int(recording.substep[step])), action)
        assert not terminated or step == len(recording.action) - 1
        observation, reward, terminated, _, info = env.step(action)
        rewards.append(reward)
    assert info["success"]
    assert terminated
    assert rewards[-1] == 1.0
    assert rewards[0] == 0.0


def test_many_tables_are_the_single_ones():
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 3, 7)).astype(np.float32)
    many, single = DemoWorlds([(4,), (5,), (6,)]), GymWorlds(DemoTable, [4, 5, 6])
    assert many.tasks == single.tasks
    assert many.plans == single.plans
    for step, action in enumerate(actions):
        rows = [0, 2] if step % 2 else [0, 1, 2]
        assert many.step(rows, action[rows]) == single.step(rows, list(action[rows])) == {}
    for rows in ([0, 1, 2], [2], [1, 0]):
        ours, theirs = many.observe(rows), single.observe(rows)
        for a, b in zip([*ours["images"], ours["state"]], [*theirs["images"], theirs["state"]], strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(many.truth(rows), single.truth(rows), strict=True):
            np.testing.assert_array_equal(a, b)


class Broken(DemoTable):
    def __init__(self, lacks="", expert=True, fails_at=99):
        super().__init__()
        self.lacks, self.left = lacks, fails_at
        if not expert:
            self.expert = None

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        if self.lacks == "a goal":
            info["goals"] = info["goals"][1:]
        return observation, {key: value for key, value in info.items() if key != self.lacks}

    def step(self, action):
        self.left -= 1
        if not self.left:
            raise RuntimeError("the simulator died")
        return super().step(action)


def test_an_environment_that_does_not_tell_enough_is_refused():
    with pytest.raises(WorldError, match="lacks plan"):
        GymWorlds(lambda: Broken("plan"), [0])
    with pytest.raises(WorldError, match="4 goals and 5 sub-steps"):
        GymWorlds(lambda: Broken("a goal"), [0])
    with pytest.raises(WorldError, match="no method"):
        GymWorlds(lambda: Broken(expert=False), [0]).expert(0, 0)


def test_an_environment_that_breaks_is_named_and_the_others_go_on():
    lives = iter([2, 99])
    worlds = GymWorlds(lambda: Broken(fails_at=next(lives)), [0, 1])
    still = [np.zeros(7, np.float32)] * 2
    assert worlds.step([0, 1], still) == {}
    assert worlds.step([0, 1], still) == {0: "RuntimeError: the simulator died"}


def test_observations_without_state():
    seen = gather([{"images": [np.zeros((2, 2, 3), np.uint8)]}] * 3)
    assert [camera.shape for camera in seen["images"]] == [(3, 2, 2, 3)]
    assert "state" not in seen
