"""A rollout whose policy is behind a server plays what it plays in process; and what becomes of it when the server does not serve."""

import contextlib
import dataclasses
import json
import ssl
import types

import numpy as np
import pytest
import trustme

from eosjax import cli
from eosjax.cli import rollout as rollout_command
from eosjax.cli import rollout_policy
from eosjax.demo.expert import Style
from eosjax.ends.closed_loop import ORACLE, Switch, Trace
from eosjax.ends.decision_file import read_decisions
from eosjax.ends.protocols import Rule
from eosjax.ends.score_file import read_scores
from eosjax.envs import served as module
from eosjax.envs.decisions import DecisionFolder
from eosjax.envs.demo import DemoWorlds
from eosjax.envs.planner import PolicyPlanner
from eosjax.envs.rollout import EXPERT, POLICY, Asked, play
from eosjax.envs.served import ServedPlanner
from eosjax.envs.switchers import EOS, NONE, make_switcher
from eosjax.serving.client import RemotePolicy
from eosjax.serving.door import Budget
from eosjax.serving.hosted import HostedPolicy
from eosjax.serving.mapping import ROBOTS
from eosjax.serving.policy import Origin
from tests.serving.conftest import POINT, make_policy, stats  # noqa: F401  # fixtures
from tests.serving.served import running

RULE = Rule(0.0945, debounce=10, min_steps=3, time_out=21)  # a row of crossings is longer than a chunk
ORIGIN = Origin("f" * 64, 3)
SEEDS = [(5, 1), (5, 2)]


@pytest.fixture(scope="module")
def policy(make_policy):  # noqa: F811
    """Random weights; its rule sees some ends, and others are timed out."""
    return make_policy(eos=dataclasses.replace(POINT, rule=RULE), origin=ORIGIN)


@pytest.fixture(scope="module")
def server(policy):
    with running(HostedPolicy(policy), max_batch=1) as found:
        yield found


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("eosjax.envs.demo.LIMIT", 60)
    monkeypatch.setattr(rollout_policy, "_WAIT", 0.05)
    monkeypatch.setattr(rollout_policy, "_PATIENCE", 5.0)


def remote(url):
    return contextlib.closing(RemotePolicy(url, deadline=20.0))


@pytest.mark.parametrize(
    ("switch", "executor", "extra_steps"), [(EOS, POLICY, 0), (EOS, POLICY, 3), (ORACLE, EXPERT, 0), (EOS, EXPERT, 0), (NONE, POLICY, 0)]
)
def test_the_broker_decides_as_the_loop_in_process(policy, server, switch, executor, extra_steps):
    def episodes(planner):
        worlds = DemoWorlds(SEEDS, style=Style())
        found = play(worlds, [0, 1], planner, switch, make_switcher(switch, None), executor, lambda number: True, extra_steps)
        return sorted(found, key=lambda each: each.trace.episode)

    here = episodes(PolicyPlanner(policy, 2))
    with remote(server.url) as link:
        there = episodes(ServedPlanner(link))
    assert [each.trace for each in there] == [each.trace for each in here]
    for one, other in zip(there, here, strict=True):
        np.testing.assert_allclose(one.film.eos, other.film.eos, atol=1e-6)
        assert one.film.at == other.film.at
    if switch == EOS:
        assert {switched.timed_out for each in here for switched in each.trace.switches} == {True, False}


@pytest.fixture
def rollout(policy, tmp_path, monkeypatch, capsys):
    """A function (flags…) -> exit status, output and rows, if there are; --checkpoint names a run with the policy."""
    saved = types.SimpleNamespace(step=3, operating_point=policy.settings.eos, record=types.SimpleNamespace(fingerprint=ORIGIN.record))
    monkeypatch.setattr(rollout_policy, "load", lambda args, with_base: saved)
    monkeypatch.setattr(rollout_policy.Policy, "load", lambda *args: policy)

    def run(*flags, out="out", switch="eos,oracle,none"):
        given = ["--env", "demo", "--episodes", 2, "--switch", switch, "--out", tmp_path / out, *flags]
        status = cli.main(["rollout", *map(str, given)])
        output, path = capsys.readouterr(), tmp_path / out / "results.json"
        return status, output.out + output.err, json.loads(path.read_text()) if path.exists() else None

    run.saved = saved
    return run


def test_the_command_gives_the_rows_of_the_one_in_process(rollout, server):
    status, text, here = rollout("--checkpoint", "RUN", "--executor", "all", out="here")
    assert status == 0, text
    status, text, there = rollout("--server", server.url, "--executor", "all", out="there")
    assert status == 0, text
    assert there["rows"] == here["rows"]
    assert len(here["rows"]) == 6
    assert there["about"] == {**here["about"], "checkpoint": None, "server": server.url, "record": ORIGIN.record}
    status, text, _ = rollout("--server", server.url, out="here")  # other rounding is possible: never mixed
    assert status == 2
    assert "other settings: through None, now 'a server'" in text


def test_the_decisions_of_the_brokers_are_logged(rollout, server, tmp_path, monkeypatch):
    """With the true ends of the environment; an interrupted episode is logged anew. `eosjax score` reads the file."""
    write, written = rollout_command.EpisodeFolder.write, []

    def interrupted(self, who, episode):
        write(self, who, episode)
        written.append(episode)
        if len(written) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rollout_command.EpisodeFolder, "write", interrupted)
        assert rollout("--server", server.url, "--executor", "all", switch="eos,oracle")[0] == 130
    status, text, results = rollout("--server", server.url, "--executor", "all", switch="eos,oracle")
    assert status == 0, text
    for executor in ("policy", "expert"):
        path = tmp_path / "out" / f"decisions-eos-{executor}.jsonl"
        assert f"written: {path}" in text
        decided = read_decisions(path)
        assert [each.name for each in decided] == ["0", "1"]
        assert {each.threshold for each in decided} == {RULE.threshold}
        for each in decided:
            played = rollout_command.EpisodeFolder(tmp_path / "out", {}).read(("eos", executor), int(each.name))
            assert (each.episode.trace.steps, each.episode.trace.switches) == (played.trace.steps, played.trace.switches)
            np.testing.assert_allclose(each.episode.film.eos, played.film.eos, atol=1e-6)
            assert each.episode.film.instruction == played.film.instruction
        assert [episode.name for episode in read_scores(path)] == ["0", "1"]
    assert not (tmp_path / "out" / "decisions-oracle-policy.jsonl").exists()
    rows = {(row["executor"], row["switch"]): row for row in results["rows"]}
    assert rows["policy", "eos"]["episodes"] == 2
    rollout("--server", server.url, "--extra_steps", "1", switch="eos", out="more")
    assert not (tmp_path / "more" / "decisions").exists()  # the brokers do not decide alone there


def test_a_server_that_dies_costs_the_episodes_that_were_under_way(rollout, policy, server, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_policy, "_PATIENCE", 0.3)
    plan, asked = RemotePolicy.plan, []
    with running(HostedPolicy(policy), max_batch=1) as dying:

        def counted(self, *given):
            asked.append(given)
            if len(asked) == 30:  # `none` takes 16: two episodes of 60 steps; `oracle` is under way
                dying.stop()
                dying.join()
            return plan(self, *given)

        monkeypatch.setattr(RemotePolicy, "plan", counted)
        status, text, results = rollout("--server", dying.url, switch="none,oracle")
    assert (status, results) == (2, None)
    assert f"eosjax rollout: {dying.url}: " in text
    assert "not finished: policy, oracle, episodes 0, 1." in text
    assert len(list((tmp_path / "out" / "episodes" / "none-policy").glob("*.json"))) == 2
    status, text, again = rollout("--server", server.url, switch="none,oracle")
    assert status == 0, text
    assert again["rows"] == rollout("--checkpoint", "RUN", out="whole", switch="none,oracle")[2]["rows"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "expected --checkpoint RUN, or --server URL"),
        (("--server", "http://127.0.0.1:1"), "--server http://127.0.0.1:1: expected ws://HOST:PORT"),
        (("--server", "ws://127.0.0.1:1"), "ws://127.0.0.1:1: cannot connect"),
        (("--server", "ws://127.0.0.1:1", "--step", "3"), "--step: the server was told which checkpoint"),
        (("--server", "ws://127.0.0.1:1", "--statistics_of", "a"), "--statistics_of: the server was told"),
        (("--checkpoint", "RUN", "--api_key_file", "key"), "--api_key_file: belongs to --server"),
        (("--checkpoint", "RUN", "--tls_ca", "ca.pem"), "--tls_ca: belongs to --server"),
        (("--server", "ws://127.0.0.1:1", "--tls_ca", "ca.pem"), "--tls_ca: belongs to --server wss://HOST:PORT"),
        (("--server", "wss://127.0.0.1:1", "--tls_ca", "ca.pem"), "--tls_ca ca.pem: cannot be used"),
    ],
)
def test_flags_that_do_not_fit(rollout, flags, says, tmp_path):
    status, text, _ = rollout(*flags)
    assert status == 2
    assert says in text
    assert not (tmp_path / "out").exists()


def test_the_server_must_serve_what_is_compared(rollout, server, policy, tmp_path):
    status, text, _ = rollout("--server", server.url, switch="time")
    assert status == 2
    assert "--switch time: reads the training data of the run; give --checkpoint" in text
    rollout.saved.record.fingerprint = "0" * 64
    status, text, _ = rollout("--server", server.url, "--checkpoint", "RUN", out="other")
    assert status == 2
    assert "serves another checkpoint (step 3, record ffffffffffff) than --checkpoint RUN (step 3, record 000000000000)" in text
    assert not (tmp_path / "other").exists()
    with running() as stub:  # of a policy that no checkpoint is known of
        status, text, _ = rollout("--server", stub.url, out="other")
    assert status == 2
    assert "its metadata lack record, step" in text


def test_a_server_with_a_key(rollout, policy, tmp_path):
    (tmp_path / "key").write_text("0123456789abcdef")
    with running(HostedPolicy(policy), max_batch=1, api_key=b"0123456789abcdef") as locked:
        status, text, _ = rollout("--server", locked.url, switch="none")
        assert (status, "HTTP 401" in text) == (2, True)
        assert rollout("--server", locked.url, "--api_key_file", tmp_path / "key", switch="none")[0] == 0


def test_a_server_with_a_certificate_of_its_own(rollout, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_policy, "_WAIT", 20.0)
    context, authority = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), trustme.CA()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with running(HostedPolicy(policy), max_batch=1, tls=context) as encrypted:
        url = encrypted.url.replace("ws:", "wss:")
        status, text, _ = rollout("--server", url, switch="none")
        assert status == 2
        assert "the certificate is not trusted" in text
        status, text, _ = rollout("--server", url, "--tls_ca", tmp_path / "ca.pem", switch="none")
        assert status == 0, text


def test_a_server_for_another_robot(rollout, policy):
    with running(HostedPolicy(policy), ROBOTS["droid"], max_batch=1) as droid:
        status, text, _ = rollout("--server", droid.url)
    assert status == 2
    assert "in the entries observation/joint_position, observation/gripper_position; expected one" in text


def test_entries_are_those_that_the_server_names(policy):
    seen = DemoWorlds(SEEDS).observe([0, 1])
    asked = [Asked(0, "a", True), Asked(1, "b", True)]
    here = PolicyPlanner(policy, 2)(seen, asked)
    with running(HostedPolicy(policy), ROBOTS["aloha"], max_batch=1) as aloha, remote(aloha.url) as link:  # channels first
        there = ServedPlanner(link)(seen, asked)
        np.testing.assert_allclose(there.actions, here.actions, atol=1e-5)
        one_camera, no_state = {**seen, "images": seen["images"][:1]}, {"images": seen["images"]}
        for lacking, says in ((one_camera, "takes images of image, wrist_image"), (no_state, "takes the state")):
            with pytest.raises(module.UserError, match=says):
                ServedPlanner(link)(lacking, asked)


def test_no_more_requests_are_sent_than_the_server_allows(policy, monkeypatch):
    now, asked = [0.0], []

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(module, "Budget", lambda rate: Budget(rate, lambda: now[0]))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(sleep=sleep))
    link = types.SimpleNamespace(metadata={"max_rate": 10.0}, chunk=8, rule=None, plan=lambda *given: asked.append(now[0]))
    paced = module._Link(link)
    for _ in range(99):
        paced.plan({}, "a", None, 8)
    assert 10.0 <= asked[-1] <= 10.0 + 2 / 9  # 9 at once, then 9 a second


def test_the_true_ends_of_a_logged_episode(tmp_path):
    """Also of the sub-step that ran at the end; what was planned beyond the end of the episode is left out."""
    folder = DecisionFolder(tmp_path, "eos-policy")
    for begin, place in ((0, 0), (4, 1)):
        log = folder.log(Asked(7, "a", True, begin, place))
        log.write("episode", episode="7", step=0, sub_step=0, instruction="a", rule=None)
        for step in range(4):
            log.write("step", episode="7", step=step, sub_step=0, instruction="a", score=0.25)
        log.write("end", episode="7", step=4, sub_step=0, instruction="a", how="seen", at=3)
        log.write("done", episode="7", step=4, sub_step=1, instruction=None, outcome="completed")
    folder.finish(Trace(7, 6, False, -1, (True, True), (Switch(0, 3, 2, False),), 5))
    path = folder.join([7])
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(each["event"], each["step"]) for each in entries] == [
        ("episode", 0),
        *(("step", step) for step in range(4)),
        ("end", 4),
        ("step", 4),
        ("step", 5),
        ("truth", 2),
        ("truth", 5),
        ("done", 6),
    ]
    assert (entries[6]["sub_step"], entries[-1]["outcome"]) == (1, "limit")
    assert read_scores(path)[0].ends.nonzero()[0].tolist() == [2, 5]
    assert folder.join([7, 8]) is None
