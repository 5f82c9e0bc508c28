"""A policy with networks behind the server says what it says in process."""

import copy
import dataclasses

import numpy as np
import pytest

from eosjax.demo import table
from eosjax.demo.dataset import demonstration
from eosjax.demo.recordings import pictures
from eosjax.demo.scene import substep_instructions
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import Clock, Rule, cut_chunk
from eosjax.serving.broker import Broker
from eosjax.serving.client import RemotePolicy
from eosjax.serving.hosted import HostedPolicy
from eosjax.serving.inference import Request
from eosjax.serving.observation import ObservationError
from tests.serving.conftest import TINY
from tests.serving.served import ask, running


@pytest.fixture(scope="module")
def hosted(policy):
    found = HostedPolicy(policy)
    found.warm_up(2)
    return found


def rows_of(observation, count):
    return [{"images": [view[row] for view in observation["images"]], "state": observation["state"][row]} for row in range(count)]


def test_over_the_wire_it_is_the_policy_in_process(policy, hosted, observe):
    row = rows_of(observe(1), 1)[0]
    sent = {"observation/image": row["images"][0], "observation/wrist_image": row["images"][1], "observation/state": row["state"]}
    with running(hosted, max_batch=1) as server, server.connect() as connection:
        reply = ask(connection, sent | {"prompt": "close it"})
        assert connection.metadata["gripper"] == "minus_open_plus_closed"
    here = policy(row, "close it", Clock())
    np.testing.assert_array_equal(reply["eos"], here.eos)
    np.testing.assert_array_equal(reply["actions"][:, :6], here.actions[:, :6])
    np.testing.assert_allclose(reply["actions"][:, 6], 1 - 2 * here.actions[:, 6])
    cut = cut_chunk(here.eos, policy.settings.rule, Clock())
    assert (reply["cut"], reply["clock"]) == (-1 if cut.slot is None else cut.slot, cut.clock._asdict())


def test_rows_of_a_batch_are_those_of_the_requests(policy, hosted, observe):
    rows, instructions = rows_of(observe(2), 2), ["close it", "open the drawer"]
    rows[1]["images"] = [np.repeat(image, 2, axis=0) for image in rows[1]["images"]]  # robots with other cameras
    chunks = hosted.predict([Request(row, instruction) for row, instruction in zip(rows, instructions, strict=True)])
    for row, instruction, chunk in zip(rows, instructions, chunks, strict=True):
        np.testing.assert_allclose(chunk.eos, policy(row, instruction).eos, atol=1e-5)
        assert chunk.actions.shape == (TINY.chunk, TINY.action_dim)


@pytest.mark.parametrize(
    ("change", "instruction", "message"),
    [
        ({"state": np.zeros(3)}, "close it", "state: expected 8 numbers"),
        ({"images": []}, "close it", "images: expected those of 2"),
        ({}, ["close it"], "instruction: expected a text, got list"),
        ({}, "!", "instruction: expected a text with a letter"),
    ],
)
def test_a_request_is_checked_before_its_turn(hosted, observe, change, instruction, message):
    with pytest.raises(ObservationError, match=message):
        hosted.check(Request(rows_of(observe(1), 1)[0] | change, instruction))


def test_a_policy_without_state_does_not_read_it(make_policy, observe):
    hosted = HostedPolicy(make_policy(config=dataclasses.replace(TINY, proprio_dim=0)))
    assert not hosted.with_state
    hosted.check(Request(rows_of(observe(1), 1)[0] | {"state": "none"}, "close it"))


@pytest.mark.parametrize("sees_state", [True, False])
def test_what_was_learnt_as_differences_is_answered_as_targets(make_policy, observe, sees_state):
    config = TINY if sees_state else dataclasses.replace(TINY, proprio_dim=0)
    differences, targets = make_policy(config=config), make_policy(config=config, from_anchor=True)
    rows = rows_of(observe(2), 2)
    requests = [Request(row, "close it") for row in rows]
    hosted = HostedPolicy(targets)
    assert (hosted.with_state, hosted.facts["state_dim"]) == (True, 8)
    for row, target, difference in zip(rows, hosted.predict(requests), HostedPolicy(differences).predict(requests), strict=True):
        np.testing.assert_allclose(target.actions[:, :6], difference.actions[:, :6] + row["state"][:6].astype(np.float32))
        np.testing.assert_array_equal(target.actions[:, 6], difference.actions[:, 6])
    hosted.warm_up(1)
    with pytest.raises(ObservationError, match="state: expected 8 numbers, got none"):
        hosted.check(Request({"images": rows[0]["images"]}, "close it"))


@pytest.fixture(scope="module")
def ending(policy):
    """The policy with a rule by which sub-steps of a demo episode end, by the score and by the time."""
    found = copy.copy(policy)
    episode = demonstration(3)
    instructions = substep_instructions(episode.scene)
    scores = [policy(frame(episode, step), each).eos for step in range(0, 60, 5) for each in instructions]
    rule = Rule(float(np.quantile(scores, 0.8)), debounce=2, min_steps=3, time_out=19)
    point = OperatingPoint(policy.settings.eos.calibration, rule, 0.5, 0.5)
    found.settings = dataclasses.replace(policy.settings, eos=point)
    return found


def frame(episode, step):
    state = episode.states.rows(np.array([step]))
    views = pictures([episode.seed], [episode.scene], state)
    return {"images": [view[0] for view in views], "state": table.robot_state(state)[0]}


def test_a_demo_episode_through_server_and_broker_is_the_one_in_process(ending):
    """The loop of docs/serving.md over the frames of a demonstration, and the same with the robot on the other side of a websocket."""
    episode = demonstration(3)
    instructions = substep_instructions(episode.scene)
    actions, ends = [], []
    for instruction in instructions:
        clock, cut = Clock(), None
        while cut is None:
            step = ending(frame(episode, len(actions)), instruction, clock)
            clock, cut = step.clock, step.cut
            actions.extend(step.actions if cut is None else step.actions[: cut + 1])
        ends.append(len(actions))
    assert len({stop - start for start, stop in zip([0, *ends], ends, strict=False)}) > 1, "ends by the score and by the time"

    played, ended = [], []
    with running(HostedPolicy(ending), max_batch=1) as server:
        remote = RemotePolicy(server.url, deadline=20)
        broker = Broker(remote, instructions)

        def observe():
            seen = frame(episode, broker.step)
            keys = ("observation/image", "observation/wrist_image", "observation/state")
            return dict(zip(keys, [*seen["images"], seen["state"]], strict=True))

        while not broker.done:
            played.append(broker.act(observe))
            if len(broker.ended) > len(ended):
                ended.append(broker.step)
        remote.close()
    assert (ended, broker.outcome) == (ends, "completed")
    np.testing.assert_array_equal(np.array(played)[:, :6], np.array(actions)[:, :6])
    np.testing.assert_allclose(np.array(played)[:, 6], 1 - 2 * np.array(actions)[:, 6])

    here = Broker(HostedPolicy(ending), instructions)
    same = []
    while not here.done:
        same.append(here.act(lambda: frame(episode, here.step)))
    np.testing.assert_array_equal(same, played)
