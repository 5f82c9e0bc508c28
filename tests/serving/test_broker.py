import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.ends.protocols import Clock, Rule, replay
from eosjax.ends.score_file import read_scores
from eosjax.serving.broker import Broker, BrokerSettings
from eosjax.serving.chunk import Chunk
from eosjax.serving.client import ServerLostError, ServerRefusedError
from eosjax.serving.decisions import DecisionLog
from eosjax.types import UserError

K = 4
PLAIN = Rule(0.5)
TWO = ["pick", "place"]


class Script:
    """A policy that makes the plans it is given, one after the other; then plans without an end. An exception is raised instead.

    The actions of plan n are 10 n, 10 n + 1, …
    """

    chunk = K

    def __init__(self, *scores, rule=PLAIN):
        self.scores, self.rule, self.asked = list(scores), rule, []

    def plan(self, observation, instruction, clock, execute_steps):
        number = len(self.asked)
        self.asked.append((instruction, tuple(clock)))
        scores = self.scores[number] if number < len(self.scores) else 0
        if isinstance(scores, Exception):
            raise scores
        eos = None if self.rule is None else np.broadcast_to(scores, K).astype(float)
        return Chunk(10.0 * number + np.arange(K)[:, None], eos)


def play(broker, steps=100):
    """What the robot executes, until the broker is done."""
    played = []
    while not broker.done and len(played) < steps:
        action = broker.act(dict)
        played.append(None if action is None else float(action[0]))
    return played


def end_at(slot, score=0.9):
    return [score if place == slot else 0.0 for place in range(K)]


def test_a_chunk_is_cut_where_the_sub_step_ends_and_the_next_one_planned():
    policy = Script(0, end_at(1), end_at(3))
    broker = Broker(policy, TWO)
    assert play(broker) == [0, 1, 2, 3, 10, 11, 20, 21, 22, 23]
    assert policy.asked == [("pick", (0, 0)), ("pick", (4, 0)), ("place", (0, 0))]
    assert (broker.outcome, broker.ended, broker.step) == ("completed", TWO, 10)
    assert broker.act(dict) is None


def test_an_observation_is_taken_only_for_a_plan():
    looks = []
    broker = Broker(Script(), ["pick"])
    for _ in range(9):
        broker.act(lambda: looks.append(broker.step) or {})
    assert looks == [0, 4, 8]


def test_less_than_a_chunk_is_executed_and_counted():
    policy = Script(end_at(3), end_at(1), rule=Rule(0.5, min_steps=4))
    assert play(Broker(policy, ["pick"], BrokerSettings(execute_steps=2))) == [0, 1, 10, 11]
    assert [clock for _, clock in policy.asked] == [(0, 0), (2, 0)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.4, 0.9]), min_size=K, max_size=K), min_size=1, max_size=12),
    st.builds(Rule, st.just(0.4), st.integers(1, 3), st.integers(1, 4), st.none() | st.integers(5, 9), st.booleans()),
)
def test_the_ends_are_those_of_the_deployed_protocol(tmp_path_factory, scores, rule):
    """`replay` plays recorded scores as a robot would; the broker is such a robot."""
    scores = np.array(scores)
    place = [0]
    policy = Script(rule=rule)
    policy.plan = lambda *_: Chunk(np.zeros((K, 1)), np.pad(scores, ((0, 2 * K), (0, 0)))[place[0]])
    broker = Broker(policy, lambda ended: "go on")
    fired, count = [], 0
    for step in range(len(scores)):
        place[0] = step
        broker.act(dict)
        if len(broker.ended) > count:
            count += 1
            fired.append(step)
    assert fired == replay(scores, rule).fired.tolist()


def test_a_rule_of_the_robot_takes_the_place_of_the_policys():
    policy = Script([0.9, 0, 0.9, 0.9])
    stricter = BrokerSettings(rule=dataclasses.replace(policy.rule, debounce=2))
    assert play(Broker(policy, ["pick"], stricter)) == [0, 1, 2, 3]


def test_without_an_eos_head_nothing_ends():
    assert play(Broker(Script(rule=None), TWO), steps=9) == [0, 1, 2, 3, 10, 11, 12, 13, 20]


@pytest.mark.parametrize(
    ("scores", "played"),
    [
        ([end_at(2), end_at(0)], [0, 1, 10]),  # seen again at the step itself
        ([end_at(2), end_at(1)], [0, 1, 10, 11]),
        ([end_at(2), 0, end_at(1), end_at(0)], [0, 1, 10, 11, 12, 13, 20, 30]),  # not seen again; a later one is
        ([end_at(2), end_at(2), end_at(0)], [0, 1, 10, 11, 20]),  # foreseen anew
        ([end_at(0), end_at(0)], [0, 10]),  # the plan of the step itself is no confirmation of itself
    ],
)
def test_an_end_is_confirmed_by_one_more_plan(scores, played):
    assert play(Broker(Script(*scores), ["pick"], BrokerSettings(confirm=True))) == played


@pytest.mark.parametrize("confirm", [False, True])
@pytest.mark.parametrize("scores", [[0, 0], [end_at(3), end_at(1)], [0, end_at(1)], [0, end_at(0), end_at(0)]])
def test_the_time_is_up_even_while_an_end_is_to_be_confirmed(scores, confirm):
    broker = Broker(Script(*scores, rule=Rule(0.5, min_steps=4, time_out=6)), ["pick"], BrokerSettings(confirm=confirm))
    assert len(play(broker)) <= 6
    assert broker.done


@pytest.mark.parametrize(
    ("on_time_out", "answers", "outcome", "asked"),
    [
        ("advance", [], "completed", ["pick", "pick", "place", "place"]),
        ("stop", [], "time_out", ["pick", "pick"]),
        ("ask", ["continue", "advance", "stop"], "time_out", ["pick", "pick", "pick", "pick", "place", "place"]),
    ],
)
def test_what_follows_when_the_time_is_up(on_time_out, answers, outcome, asked):
    policy, questions = Script(rule=Rule(0.5, time_out=6)), []

    def ask(instruction):
        questions.append(instruction)
        return answers.pop(0)

    broker = Broker(policy, TWO, BrokerSettings(on_time_out=on_time_out), ask=ask)
    play(broker)
    assert broker.outcome == outcome
    assert [instruction for instruction, _ in policy.asked] == asked
    assert questions == (["pick", "pick", "place"] if on_time_out == "ask" else [])


def test_an_answer_that_is_none():
    broker = Broker(Script(rule=Rule(0.5, time_out=1)), TWO, BrokerSettings(on_time_out="ask"), ask=lambda instruction: "maybe")
    with pytest.raises(UserError, match="ask: expected advance, stop or continue, got 'maybe'"):
        broker.act(dict)


def test_overlapping_plans_are_averaged_within_a_sub_step_only():
    policy = Script(0, 0, end_at(0), 0)
    broker = Broker(policy, TWO, BrokerSettings(execute_steps=2, overlap=0.0))
    assert play(broker, 7) == [0, 1, np.mean([2, 10]), np.mean([3, 11]), np.mean([12, 20]), 30, 31]
    broker = Broker(Script(0, 0), TWO, BrokerSettings(execute_steps=2, overlap=np.log(3.0)))
    np.testing.assert_allclose(play(broker, 4), [0, 1, 0.25 * 2 + 0.75 * 10, 0.25 * 3 + 0.75 * 11])


def test_what_an_older_plan_has_beyond_its_own_end_belongs_to_the_next_sub_step():
    broker = Broker(Script(end_at(1), 0), TWO, BrokerSettings(confirm=True, overlap=0.0))
    assert play(broker, 4) == [0, np.mean([1, 10]), 11, 12]


LOST = ServerLostError("no server")


def test_without_a_server_the_robot_holds_and_plays_nothing_old():
    times = iter(range(100))
    broker = Broker(Script(0, LOST, LOST, end_at(0)), ["pick"], BrokerSettings(overlap=0.0), now=lambda: float(next(times)))
    assert play(broker) == [0, 1, 2, 3, None, None, 30]
    assert broker.outcome == "completed"


def test_a_robot_that_holds_gives_up():
    times = iter(range(0, 1000, 10))
    broker = Broker(Script(*[LOST] * 9), ["pick"], BrokerSettings(give_up_seconds=25.0), now=lambda: float(next(times)))
    assert set(play(broker)) == {None}
    assert broker.outcome == "lost"


def test_without_a_server_the_episode_may_end():
    broker = Broker(Script(0, LOST), ["pick"], BrokerSettings(on_loss="stop"))
    assert play(broker) == [0, 1, 2, 3, None]
    assert broker.outcome == "lost"


def test_an_observation_that_the_server_refuses_is_told():
    with pytest.raises(ServerRefusedError, match="state"):
        play(Broker(Script(0, ServerRefusedError("state: expected 8 numbers")), ["pick"]))


def test_a_planner_says_what_comes_next():
    seen = []

    def planner(ended):
        seen.append(list(ended))
        return ["look", "pick", None][len(ended)]

    assert play(Broker(Script(end_at(0), end_at(1)), planner)) == [0, 10, 11]
    assert seen == [[], ["look"], ["look", "pick"]]


@pytest.mark.parametrize(
    ("instructions", "change", "message"),
    [
        ([], {}, "instructions: expected at least one"),
        (TWO, {"execute_steps": 5}, "execute_steps: expected 1 to 4, the actions of a chunk; got 5"),
        (TWO, {"on_time_out": "ask"}, "on_time_out: 'ask' needs the function"),
    ],
)
def test_what_makes_no_sense(instructions, change, message):
    with pytest.raises(UserError, match=message):
        Broker(Script(), instructions, BrokerSettings(**change))


def test_every_decision_is_logged_at_once(tmp_path):
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path)
    broker = Broker(Script(0, LOST, end_at(0)), ["pick"], log=log, episode="7")
    play(broker)
    broker.mark_end()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [
        *[("episode", 0), ("plan", 0), ("step", 0), ("step", 1), ("step", 2), ("step", 3)],
        *[("lost", 4), ("plan", 4), ("step", 4), ("end", 5), ("done", 5), ("truth", 4)],
    ]
    assert {line["episode"] for line in lines} == {"7"}
    assert lines[0]["rule"] == {"threshold": 0.5, "debounce": 1, "min_steps": 1, "time_out": None, "cumulative": False}
    assert (lines[7]["eos"], lines[7]["execute"], lines[7]["ends"]) == ([0.9, 0, 0, 0], 1, True)
    assert (lines[8]["score"], lines[9]["at"], lines[9]["how"], lines[10]["outcome"]) == (0.9, 4, "seen", "completed")
    (scored,) = read_scores(path)
    np.testing.assert_allclose(scored.scores, [0, 0, 0, 0, 0.9])
    assert (scored.name, scored.true.tolist()) == ("7", [4])
    log.close()
    log = DecisionLog(path)
    Broker(Script(), ["pick"], log=log, episode="8")
    log.close()
    assert len(path.read_text().splitlines()) == len(lines) + 1
    with pytest.raises(UserError, match="nowhere/log: cannot be written: No such file"):
        DecisionLog(tmp_path / "nowhere" / "log")


def test_the_clock_is_what_a_policy_in_process_would_have():
    policy = Script(end_at(3), [0.9, 0.9, 0, 0], rule=Rule(0.5, debounce=2))
    play(Broker(policy, ["pick"]), steps=5)
    assert policy.asked == [("pick", tuple(Clock())), ("pick", (4, 1))]
