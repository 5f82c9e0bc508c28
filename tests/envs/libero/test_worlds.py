"""Simulators in processes, with objects that stand for them."""

import os

import numpy as np
import pytest

from eosjax.envs.libero.processes import SimulatorDiedError, SimulatorProcess
from eosjax.envs.libero.session import Begin, Facts
from eosjax.envs.libero.tasks import Goal, Task
from eosjax.envs.libero.worlds import LiberoWorlds, Pool
from eosjax.envs.worlds import WorldError

TASK = Task("libero_goal", 8, "put the bowl on the plate", "", Goal("akita_black_bowl_1", "plate_1"))


class Served:
    """What a process of the tests does."""

    def add(self, one, other):
        return one + other

    def fail(self):
        raise ValueError("no contact")

    def refuse(self):
        raise WorldError("no OpenGL")

    def die(self):
        os._exit(7)


def test_a_process_answers_and_its_end_is_told():
    process = SimulatorProcess(Served)
    process.ask("add", 2, 3)
    assert process.reply() == 5
    process.ask("fail")
    with pytest.raises(SimulatorDiedError, match="ValueError: no contact"):
        process.reply()
    process.ask("refuse")
    with pytest.raises(WorldError, match="no OpenGL"):
        process.reply()
    assert process.alive
    process.ask("die")
    with pytest.raises(SimulatorDiedError, match=r"died \(exit code 7\)"):
        process.reply()
    assert not process.alive
    process.ask("add", 1, 1)
    with pytest.raises(SimulatorDiedError, match="died"):
        process.reply()


def test_a_process_that_does_not_answer_is_ended(monkeypatch):
    monkeypatch.setattr("eosjax.envs.libero.processes._PATIENCE", 0.0)
    monkeypatch.setattr("eosjax.envs.libero.processes._ENDING", 0.0)
    process = SimulatorProcess(Served)
    with pytest.raises(SimulatorDiedError, match="did not answer"):
        process.reply()
    assert not process._process.is_alive()


class Stub:
    """A simulator in this process that answers `Facts`; dies when `dies` is asked of it."""

    made = 0

    def __init__(self, dies=None):
        self.dies, self.alive, self.asked, self.steps = dies, True, [], 0
        Stub.made += 1

    def ask(self, name, *args):
        self.asked.append(name)
        self.last = name, args

    def reply(self):
        name, args = self.last
        if name == self.dies or not self.alive:
            self.alive = False
            raise SimulatorDiedError(f"died at {name}")
        self.steps += name == "step"
        if name == "observe":
            return [np.full((256, 256, 3), self.steps, np.uint8)] * 2, np.full(8, self.steps, np.float32)
        if name == "expert":
            return np.full(7, args[0], np.float32)
        return Facts(np.arange(5) < self.steps, self.steps >= 4)


def worlds_of(*stubs):
    waiting = list(stubs)
    pool = Pool(lambda: waiting.pop(0))
    return LiberoWorlds(pool, [Begin(TASK, 0, turn, True) for turn in range(len(stubs))]), pool


def test_each_row_is_a_process():
    one, other = Stub(), Stub()
    worlds, _ = worlds_of(one, other)
    assert worlds.tasks == [TASK.language] * 2
    assert worlds.plans == [TASK.plan] * 2
    assert worlds.step([1], [np.zeros(7)]) == {}
    truth = worlds.truth([0, 1])
    assert [each.sum() for each in truth.goals] == [0, 1]
    assert truth.success.tolist() == [False, False]
    assert worlds.expert(1, 3).tolist() == [3.0] * 7
    assert "observe" not in one.asked + other.asked  # rendered only where somebody looks
    seen = worlds.observe([1, 0])
    assert seen["state"][:, 0].tolist() == [1.0, 0.0]
    assert [camera.shape for camera in seen["images"]] == [(2, 256, 256, 3)] * 2


@pytest.mark.parametrize("at", ["begin", "observe", "expert", "step"])
def test_a_dead_simulator_costs_its_row_alone_wherever_it_dies(at):
    worlds, pool = worlds_of(Stub(dies=at), Stub())
    seen = worlds.observe([0, 1])
    assert len(seen["state"]) == 2
    action = worlds.expert(0, 0)
    assert worlds.step([0, 1], [action, np.zeros(7)]) == {0: f"died at {at}"}
    assert worlds.step([1], [np.zeros(7)]) == {}
    assert worlds.truth([1]).goals[0].sum() == 2
    assert [len(each) for each in worlds.truth([0, 1]).goals] == [5, 5]
    pool._start = lambda: Stub()
    fresh, kept = pool.take(2)
    assert fresh.asked == []
    assert kept is worlds._processes[1]
