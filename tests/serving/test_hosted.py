"""A policy with networks behind the server says what it says in process."""

import dataclasses

import numpy as np
import pytest

from eosjax.ends.protocols import Clock, cut_chunk
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
