"""The decision log of a robot as episodes for a page."""

import json

import numpy as np
import pytest

from eosjax.ends.closed_loop import Switch
from eosjax.ends.decision_file import DecisionFileError, read_decisions
from eosjax.ends.protocols import Rule
from eosjax.serving.broker import Broker, BrokerSettings
from eosjax.serving.chunk import Chunk
from eosjax.serving.client import ServerLostError
from eosjax.serving.decisions import DecisionLog


class Policy:
    """Sees an end at the third of four steps; the second request is lost; the second sub-step runs into its time-out."""

    chunk, rule = 4, Rule(0.5, time_out=6)

    def __init__(self):
        self.asked = []

    def plan(self, observation, instruction, clock, execute_steps):
        self.asked.append(instruction)
        if len(self.asked) == 2:
            raise ServerLostError("gone")
        return Chunk(np.zeros((4, 7)), np.array([0.0, 0.1, 0.9 if instruction == "pick" else 0.2, 0.0]))


def test_no_threshold_is_shown_where_slots_are_read_together(tmp_path):
    path, rule = tmp_path / "decisions.jsonl", Rule(0.5, cumulative=True)
    broker = Broker(Policy(), ["pick"], BrokerSettings(rule=rule), log=DecisionLog(path))
    while broker.act(dict) is not None:
        pass
    assert [found.threshold for found in read_decisions(path)] == [None]


def test_what_a_broker_logs_is_read_back(tmp_path):
    path = tmp_path / "decisions.jsonl"
    broker = Broker(Policy(), ["pick", "place"], BrokerSettings(), log=DecisionLog(path), episode="kitchen-1")
    for step in range(11):
        broker.act(dict)
        if step == 1:  # one step before the end that the head sees
            broker.mark_end()
    assert broker.outcome == "completed"
    (found,) = read_decisions(path)
    assert (found.name, found.outcome, found.threshold, found.lost) == ("kitchen-1", "completed", 0.5, 1)
    trace, film = found.episode.trace, found.episode.film
    assert (trace.steps, trace.switches) == (9, (Switch(0, 2, 1, False), Switch(1, 8, -1, True)))
    assert film.instruction == ["pick"] * 3 + ["place"] * 6
    np.testing.assert_allclose(film.eos, [0, 0.1, 0.9, 0, 0.1, 0.2, 0, 0, 0.1], atol=1e-6)
    assert film.holds.nonzero()[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["{"], "line 1: expected an object with event and episode"),
        (["[1]"], "line 1: expected an object"),
        (['{"event": "step"}'], "line 1: expected an object"),
        (['{"event": "step", "episode": "a"}'], "episode 'a': expected entries as a broker writes them"),
        (['{"event": "step", "episode": "a", "score": "x", "instruction": "b"}'], "episode 'a': expected entries"),
    ],
)
def test_what_is_no_decision_log(tmp_path, lines, says):
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DecisionFileError, match=says):
        read_decisions(path)
    with pytest.raises(DecisionFileError, match="cannot be read"):
        read_decisions(tmp_path / "none.jsonl")


def test_an_episode_without_steps_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"event": "episode", "episode": "a"}))
    assert read_decisions(path) == []
