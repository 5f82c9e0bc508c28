"""`eosjax rollout` with a made-up policy on the demo table: what it writes, goes on with, and refuses."""

import json
import re
import types
from pathlib import Path

import numpy as np
import pytest

import train
from eosjax import cli
from eosjax.cli import rollout as module
from eosjax.cli import rollout_policy
from eosjax.ends.protocols import Rule
from eosjax.envs.planner import Clocks
from eosjax.envs.rollout import Chunks
from eosjax.envs.switchers import Typical
from tests.page import Page


class Planner:
    """Holds still, and says that every second sub-step of four steps ends."""

    asked = 0

    def __init__(self, policy, width):
        self.clocks = Clocks(Rule(0.5))

    def __call__(self, observation, asked):
        Planner.asked += 1
        actions, eos = np.zeros((len(asked), 4, 7), np.float32), np.tile([0.0, 0.0, 0.0, 0.9], (len(asked), 1))
        return Chunks(actions, eos, self.clocks.ends(eos, asked))


@pytest.fixture
def rollout(tmp_path, monkeypatch, capsys):
    """A function (flags…) -> exit status and output, of a run whose head ends a sub-step every fourth step."""
    point = types.SimpleNamespace(rule=Rule(0.5))
    saved = types.SimpleNamespace(step=10, operating_point=point, record=types.SimpleNamespace(fingerprint="0"))
    monkeypatch.setattr(rollout_policy, "load", lambda args, with_base: saved)
    monkeypatch.setattr(module, "_typical", lambda args, policy, switch: Typical((20.0,) * 5, (10.0,) * 5, (False,) * 5))
    monkeypatch.setattr(rollout_policy.Policy, "load", lambda *args: None)
    monkeypatch.setattr(rollout_policy, "PolicyPlanner", Planner)
    monkeypatch.setattr("eosjax.envs.demo.LIMIT", 60)
    Planner.asked = 0

    def run(*flags, out=tmp_path / "out"):
        status = cli.main(["rollout", "--checkpoint", "RUN", "--env", "demo", "--out", str(out), *map(str, flags)])
        output = capsys.readouterr()
        return status, output.out + output.err

    return run


def test_rows_page_and_films(rollout, tmp_path):
    status, text = rollout("--episodes", 2, "--executor", "all", "--video")
    assert status == 0
    assert "false alarms" in text
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    found = [(row["executor"], row["switch"]) for row in content["rows"]]
    switches = ["eos", "oracle", "time", "gripper", "none"]
    assert found == [("policy", each) for each in [*switches, "whole"]] + [("expert", each) for each in switches]
    rows = {(row["executor"], row["switch"]): row for row in content["rows"]}
    assert rows["policy", "eos"]["early_share"] == 1.0
    assert rows["policy", "eos"]["false_alarms_per_1000_steps"] == 250.0
    assert rows["policy", "eos"]["episodes"] == 2
    assert content["about"] == {
        "checkpoint": "RUN",
        "step": 10,
        "env": "demo",
        "seed": 0,
        "extra_steps": 0,
        "plain_pictures": False,
        "faults": [],
    }
    page = Page((tmp_path / "out" / "report.html").read_text())
    page.check_loads_and_runs_nothing()
    assert "too early" in page.text
    assert len(list((tmp_path / "out" / "videos").glob("*.mp4"))) == 22


def test_an_interrupted_rollout_goes_on(rollout, tmp_path, monkeypatch):
    write, written = module.EpisodeFolder.write, []

    def interrupted(self, who, episode):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(who)
        write(self, who, episode)

    flags = ("--episodes", 2, "--switch", "eos,none")
    with monkeypatch.context() as patch:
        patch.setattr(module.EpisodeFolder, "write", interrupted)
        assert rollout(*flags)[0] == 130
    assert rollout(*flags)[0] == 0
    once = (tmp_path / "out" / "results.json").read_bytes()
    assert rollout(*flags, out=tmp_path / "other")[0] == 0
    assert (tmp_path / "other" / "results.json").read_bytes() == once
    asked = Planner.asked
    assert rollout(*flags)[0] == 0  # all there already
    assert Planner.asked == asked
    assert rollout("--episodes", 3, "--switch", "eos")[0] == 0  # more of the same
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]["episodes"] == 3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--seed", 1), "other settings: seed 0, now 1"),
        (("--extra_steps", 2), "other settings: extra_steps 0, now 2"),
        (("--plain_pictures",), "other settings: plain_pictures None, now True"),
        (("--env", "libero_goal:0"), "some of the tasks 1, 4, 6, 8 of libero_goal, got 0"),
        (("--episodes", 0), "--episodes of at least 1"),
        (("--extra_steps", -1), "--extra_steps of at least 0"),
        (("--env", "mars"), "expected demo, libero_goal[:tasks]"),
        (("--env", "no_such_module:make"), "No module named"),
        (("--env", "json:nothing"), "nothing"),
    ],
)
def test_what_is_refused(rollout, flags, says):
    assert rollout("--episodes", 1, "--switch", "none")[0] == 0
    status, text = rollout("--switch", "none", *flags)
    assert status == 2
    assert says in text


def test_the_training_data_say_where_the_two_sides_of_the_gripper_part(monkeypatch):
    """In the units of the environment: per cent."""
    labels = types.SimpleNamespace(ends=np.array([0, 1, 0, 1], bool))
    data = types.SimpleNamespace(episode_starts=np.array([0, 4]), labels=labels, gripper=np.array([1.0, 0.4, 0.0, 0.6]))
    source = types.SimpleNamespace(train=types.SimpleNamespace(data=data, episodes=np.array([0])))
    monkeypatch.setattr(module, "open_run_data", lambda args, saved: source)
    record = types.SimpleNamespace(spec=types.SimpleNamespace(gripper="percent_open"))
    run = types.SimpleNamespace(dataset=lambda name: record)
    policy = types.SimpleNamespace(saved=types.SimpleNamespace(record=types.SimpleNamespace(run=run)))
    found = module._typical(types.SimpleNamespace(statistics_of=None), policy, "gripper")
    assert found.middle == 50.0
    assert found.changes == (True, True)


def test_unknown_switchers_are_listed(rollout):
    with pytest.raises(SystemExit):
        rollout("--switch", "eos,luck")


def test_the_environment_of_the_page(rollout, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "closed_loop.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_env.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    status, text = rollout("--env", "my_env:make", "--episodes", 2, "--switch", "oracle,eos", "--executor", "expert")
    assert status == 0, text
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["success"] for row in rows] == [1.0, 0.0]
    assert rows[0]["substep_success"] == [1.0, 1.0]


def test_the_demo_of_train_py_ends_with_this_command(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "run", lambda args: asked.append(args) or 0)
    assert train.play_demo(tmp_path) == 0
    assert (asked[0].checkpoint, asked[0].env, asked[0].switch) == (tmp_path, "demo", ("oracle", "eos", "none"))
