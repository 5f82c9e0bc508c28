"""Episodes in the loop, with environments on a line: an action moves by its first number, the goal of sub-step k is to be at k + 1."""

import types

import numpy as np
import pytest

from eosjax.ends.closed_loop import ORACLE, Switch
from eosjax.ends.protocols import Rule
from eosjax.envs.planner import Clocks, PolicyPlanner
from eosjax.envs.rollout import EXPERT, POLICY, Asked, Chunks, play
from eosjax.envs.switchers import EOS, GRIPPER, NONE, TIME, WHOLE, Typical, make_switcher
from eosjax.envs.worlds import Truth
from eosjax.serving.policy import Prediction

PLAN = ["go to one", "go to two"]


class Line:
    """Environments at a place on a line; those of `breaks` fail at their second step."""

    limit = 12

    def __init__(self, count, breaks=()):
        self.place, self.steps, self.breaks = np.zeros(count), np.zeros(count, int), breaks
        self.tasks, self.plans, self.told = ["go far"] * count, [PLAN] * count, []

    def observe(self, rows):
        pictures = np.repeat(self.place[list(rows), None, None, None], 3, axis=-1).astype(np.uint8)
        return {"images": [np.tile(pictures, (1, 8, 8, 1))], "state": self.place[list(rows), None]}

    def truth(self, rows):
        return Truth([np.array([self.place[row] >= 1, self.place[row] >= 2]) for row in rows], self.place[list(rows)] >= 2)

    def step(self, rows, actions):
        self.steps[list(rows)] += 1
        broken = {row: "dead" for row in rows if row in self.breaks and self.steps[row] == 2}
        for row, action in zip(rows, actions, strict=True):
            self.place[row] += action[0]
        return broken

    def expert(self, row, substep):
        self.told.append(substep)
        return np.array([0.5 if self.place[row] < substep + 1 else 0.0, -1.0], np.float32)


class Planner:
    """Moves by a half; the probability of an end is `eos` of (place, slot)."""

    def __init__(self, eos=lambda place, slot: 0.0, chunk=3):
        self.eos, self.chunk, self.asked, self.clocks = eos, chunk, [], Clocks(Rule(0.5))

    def __call__(self, observation, asked):
        self.asked.append([each.instruction for each in asked])
        places = observation["state"][:, 0]
        actions = np.tile(np.array([0.5, -1.0], np.float32), (len(places), self.chunk, 1))
        eos = np.array([[self.eos(place, slot) for slot in range(self.chunk)] for place in places])
        return Chunks(actions, eos, self.clocks.ends(eos, asked))


def traces(worlds, planner, switch, executor=POLICY, rule=None, typical=None, filmed=lambda number: False, extra_steps=0, middle=0.0):
    numbers = list(range(10, 10 + len(worlds.plans)))
    switcher = make_switcher(switch, typical)
    planner.clocks = Clocks(rule or Rule(0.5))
    found = list(play(worlds, numbers, planner, switch, switcher, executor, filmed, extra_steps, middle))
    return sorted(found, key=lambda each: each.trace.episode)


def test_the_oracle_switches_with_the_step_that_shows_the_goal():
    planner = Planner()
    (episode,) = traces(Line(1), planner, ORACLE)
    assert episode.trace.switches == (Switch(0, 2, 2, False), Switch(1, 4, 4, False))
    assert episode.trace.success
    assert episode.trace.success_step == 3
    assert episode.trace.steps == 5
    assert episode.trace.reached == (True, True)
    assert planner.asked == [[PLAN[0]], [PLAN[1]]]  # the rest of a chunk is not executed after a switch


def test_the_head_switches_where_its_rule_cuts_the_chunk():
    (episode,) = traces(Line(1), Planner(lambda place, slot: float(slot == 1)), EOS)
    assert episode.trace.switches == (Switch(0, 1, -1, False), Switch(1, 3, -1, False))  # too early, both
    assert episode.trace.reached == (False, False)
    (episode,) = traces(Line(1), Planner(), EOS, rule=Rule(0.5, time_out=4))
    assert [switch.timed_out for switch in episode.trace.switches] == [True, True]
    assert [switch.step for switch in episode.trace.switches] == [3, 7]
    assert [switch.held for switch in episode.trace.switches] == [2, 4]


@pytest.mark.parametrize(("extra_steps", "ends"), [(1, [2, 5]), (2, [3, 7])])
def test_an_end_that_the_head_says_is_acted_upon_some_steps_later(extra_steps, ends):
    """It says so at the second slot of each chunk; what it says of the steps in between does not count."""
    (episode,) = traces(Line(1), Planner(lambda place, slot: float(slot == 1)), EOS, extra_steps=extra_steps)
    assert [switch.step for switch in episode.trace.switches] == ends


def test_the_clock_of_the_rule_starts_anew_whoever_switches():
    """A minimum of 4 steps: the head may end the second sub-step at its fourth step, not at the first of it."""
    (episode,) = traces(Line(1), Planner(lambda place, slot: 1.0), EOS, rule=Rule(0.5, min_steps=4))
    assert [switch.step for switch in episode.trace.switches] == [3, 7]


def test_a_clock_switches_by_the_steps_of_the_substep():
    typical = Typical(length=(4.0, 2.0), lag=(0.0, 0.0), changes=(False, False))
    (episode,) = traces(Line(1), Planner(), TIME, typical=typical)
    assert [switch.step for switch in episode.trace.switches] == [3, 5]


@pytest.mark.parametrize(("middle", "ends"), [(50.0, [4]), (0.0, [])])
def test_the_gripper_changes_where_it_passes_the_middle_of_its_range(middle, ends):
    """A command in per cent, never below 0: it closes with the fourth step."""

    class Closing(Planner):
        def __call__(self, observation, asked):
            said = super().__call__(observation, asked)
            return said._replace(actions=np.array([[[0.5, 90.0], [0.5, 90.0], [0.5, 90.0], [0.0, 10.0], [0.0, 10.0], [0.0, 10.0]]]))

    typical = Typical(length=(9.0,), lag=(1.0,), changes=(True,))
    (episode,) = traces(Line(1), Closing(chunk=6), GRIPPER, typical=typical, middle=middle)
    assert [switch.step for switch in episode.trace.switches][:1] == ends


@pytest.mark.parametrize(("switch", "told"), [(NONE, PLAN[0]), (WHOLE, "go far")])
def test_without_substeps_an_episode_ends_with_its_success(switch, told):
    planner = Planner()
    (episode,) = traces(Line(1), planner, switch)
    assert (episode.trace.success, episode.trace.steps, episode.trace.switches) == (True, 4, ())
    assert planner.asked == [[told]] * 2


def test_an_episode_ends_at_the_limit():
    (episode,) = traces(Line(1), Planner(), NONE, executor=EXPERT)  # does the first sub-step, then holds still
    assert (episode.trace.success, episode.trace.steps, episode.trace.reached) == (False, Line.limit, (True, False))


def test_the_expert_does_the_substep_that_runs():
    worlds, planner = Line(2), Planner()
    for episode in traces(worlds, planner, ORACLE, executor=EXPERT):
        assert episode.trace.success
        assert [switch.held for switch in episode.trace.switches] == [2, 5]  # it does nothing of the next sub-step before it is told
    assert worlds.told == [0] * 6 + [1] * 6
    assert planner.asked == [[PLAN[0]] * 2, [PLAN[1]] * 2]  # the policy is asked where it would plan


def test_a_dead_environment_costs_its_episode_alone():
    dead, other = traces(Line(2, breaks=(0,)), Planner(), ORACLE)
    assert dead.fault == "dead"
    assert not dead.trace.success
    assert (other.fault, other.trace.success) == (None, True)


def test_a_film_has_every_step_and_a_picture_wherever_the_policy_looked():
    (first, second) = traces(Line(2), Planner(lambda place, slot: 0.25), ORACLE, filmed=lambda number: number == 10)
    assert second.film is None
    film = first.film
    assert film.instruction == [PLAN[0]] * 3 + [PLAN[1]] * 2
    assert film.holds.tolist() == [False, False, True, False, True]
    assert film.eos.tolist() == [0.25] * 5
    assert film.at == [0, 3]
    assert [len(pictures) for pictures in film.pictures] == [1, 1]


def test_the_planner_fills_up_its_rows_and_turns_the_gripper():
    asked = []

    def policy(observation, instructions):
        (picture,) = observation["images"]  # the policy has one camera, the environment two
        asked.append((picture.shape, observation["state"].tolist(), instructions))
        actions = np.tile([0.25, 1.0], (4, 2, 1))
        return Prediction(actions, None, np.full((4, 2), 0.5), None, None)

    policy.settings = types.SimpleNamespace(gripper="minus_open_plus_closed", cameras=("image",), rule=Rule(0.5))
    seen = Line(3).observe([0, 2])
    said = PolicyPlanner(policy, 4)({**seen, "images": seen["images"] * 2}, [Asked(4, "a", True), Asked(7, "b", True)])
    assert asked == [((4, 8, 8, 3), [[0.0]] * 4, ["a", "b", "a", "a"])]
    assert said.actions.shape == (2, 2, 2)
    assert said.actions[..., 1].tolist() == [[-1.0, -1.0]] * 2  # 1 is open in the policy's units, -1 in the dataset's
    assert said.eos.shape == (2, 2)
    assert [end.slot for end in said.ends] == [0, 0]
