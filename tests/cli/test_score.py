import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from tests.page import Page

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture
def worked(tmp_path):
    """Truth 10, 50, 90; fired 9 (.9), 12 (.8), 55 (.7), 91 (.6). Two episodes of it, the second with a name that has to be escaped."""
    fired = {9: 0.9, 12: 0.8, 55: 0.7, 91: 0.6}
    rows = [f"{name},{step},{fired.get(step, 0)},{int(step in (10, 50, 90))}" for name in ("first", "<b>&") for step in range(100)]
    path = tmp_path / "worked.csv"
    path.write_text("\n".join(["episode,step,score,label", *rows]) + "\n")
    return path


@pytest.fixture
def score(run, tmp_path):
    """A function (file, *flags) -> (stdout, metrics, page)."""

    def score(file, *flags):
        status, out, err = run("score", file, "--out", tmp_path / "out", *flags)
        assert (status, err) == (0, "")
        return out, json.loads((tmp_path / "out" / "metrics.json").read_text()), Page((tmp_path / "out" / "report.html").read_text())

    return score


def test_the_worked_case(score, worked, tmp_path):
    out, metrics, page = score(worked)
    expected = {"precision": 0.5, "recall": 2 / 3, "f1": 4 / 7, "ap": 0.5}
    for name, value in expected.items():
        assert metrics[f"event/{name}@2"] == pytest.approx(value)
        assert metrics["intervals_95"][f"event/{name}@2"] == pytest.approx([value, value])  # both episodes are the same
    assert metrics["event/delay_median"] == 1
    assert metrics["frame/share_of_ends"] == 0.03
    assert metrics["about"] == {
        "title": "worked.csv",
        "protocol": "dense",
        "threshold": 0.5,
        "nms": 2,
        "episodes": 2,
        "steps": 200,
        "ends": 6,
        "fired": 8,
    }
    assert "2 episodes, 200 steps, 6 true ends; 8 fired at threshold 0.5" in out
    assert "±2      0.500 [0.500, 0.500]  0.667 [0.667, 0.667]  0.571 [0.571, 0.571]  0.500 [0.500, 0.500]" in out
    assert f"written: {tmp_path / 'out' / 'report.html'}" in out
    assert "0.571" in page.text


def test_flags_move_what_fires(score, worked):
    _, metrics, _ = score(worked, "--threshold", "0.75", "--nms", "3")
    assert (metrics["event/precision@2"], metrics["about"]["fired"]) == (1, 2)


def test_the_page(score, worked):
    _, _, page = score(worked)
    page.check_loads_and_runs_nothing()
    assert page.count("figure", None) == 5  # charts
    assert "The best episode: first" in page.text
    assert "The worst episode: <b>&" in page.text
    assert "scores and ends of episode <b>&" in {attrs.get("aria-label") for _, attrs in page.tags}
    # Two episodes are shown. At a collar of 2 there are two hits, a miss and two false alarms in each.
    for step, missed in ((10, ""), (50, ", missed"), (90, "")):
        assert page.titles.count(f"true end at {step}{missed}") == 2
    for step, false_alarm in ((9, ""), (12, ", a false alarm"), (55, ", a false alarm"), (91, "")):
        assert page.titles.count(f"fired at {step}{false_alarm}") == 2
    assert "±2 steps: 0.667, 0.5" in page.titles  # recall and precision at the threshold
    assert "±2 steps: 0.5, 0.571" in page.titles  # threshold and F1
    assert "±2 steps: 1, 2" in page.titles  # misses and false alarms


@pytest.mark.parametrize(("score_of_all", "label"), [(0, 1), (0, 0), (1, 0), (0.3, 1)])
def test_files_in_which_something_is_not_defined(score, tmp_path, score_of_all, label):
    path = tmp_path / "flat.csv"
    path.write_text("episode,step,score,label\n" + "".join(f"a,{step},{score_of_all},{label if step == 5 else 0}\n" for step in range(9)))
    out, metrics, _ = score(path)
    assert "nan" not in out
    assert (metrics["event/recall@2"] is None) == (label == 0)
    assert (metrics["event/precision@2"] is None) == (score_of_all < 0.5)
    assert "there is one episode only" in out
    assert metrics["intervals_95"] == {}


@pytest.mark.parametrize("name", ["metrics.json", "report.html"])
def test_results_are_never_overwritten(run, worked, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("kept")
    status, _, err = run("score", worked, "--out", out)
    assert status == 2
    assert f"--out {out}: expected a folder without results, it has {name}" in err
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "kept"


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--threshold", "0"], "--threshold: expected a probability above 0, up to 1, got 0"),
        (["--threshold", "1.5"], "--threshold: expected a probability above 0, up to 1, got 1.5"),
        (["--threshold", "nan"], "--threshold: expected a probability above 0, up to 1, got nan"),
        (["--nms", "-1"], "--nms: expected 0 steps or more, got -1"),
    ],
)
def test_wrong_flags(refused, worked, tmp_path, flags, why):
    assert why in refused("score", worked, "--out", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_wrong_file_is_one_line_and_leaves_nothing(run, tmp_path):
    path = tmp_path / "wrong.csv"
    path.write_text("episode,step,score,label\na,0,2,0\n")
    status, out, err = run("score", path, "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert err == f"eosjax score: {path}, line 2, column score: expected a probability from 0 to 1, got '2'\n"
    assert not (tmp_path / "out").exists()


def printed(code):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    return out.getvalue()


def test_the_examples_of_the_docs_print_what_they_say(run, tmp_path, monkeypatch):
    blocks = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(), re.S)
    make, replay = (code for kind, code in blocks if kind == "python")
    (shown,) = (text for kind, text in blocks if kind == "text")
    command, _, expected = shown.partition("\n")
    monkeypatch.chdir(tmp_path)
    Path("scores.csv").write_text(printed(make))
    status, out, _ = run(*command.removeprefix("$ eosjax ").split())
    assert status == 0
    assert out == expected
    comments = [line.split("  # ")[1] for line in replay.splitlines() if line.startswith("print")]
    assert printed(replay).splitlines() == comments


def test_the_decision_log_of_a_robot(score, run, tmp_path):
    """Its decisions are shown also where no true end is marked, so that nothing can be measured."""
    place = {"episode": "<b>1", "sub_step": 0, "instruction": "pick"}
    lines = [{"event": "step", "step": step, "score": step / 4, **place} for step in range(4)]
    lines.append({"event": "end", "step": 4, "at": 3, "how": "seen", **place})
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, out, err = run("score", path, "--out", tmp_path / "unmarked")
    assert (status, "no true end is marked" in err) == (2, True)
    assert f"written: {tmp_path / 'unmarked' / 'decisions.html'}" in out
    path.write_text(path.read_text() + json.dumps({"event": "truth", "episode": "<b>1", "step": 3}) + "\n")
    _, metrics, _ = score(path)
    assert metrics["event/recall@2"] == 1
    page = Page((tmp_path / "out" / "decisions.html").read_text())
    page.check_loads_and_runs_nothing()
    assert "episode <b>1: not over" in page.text
    assert "sub-step 1 ends at step 3: 0 steps after the goal held" in page.text


@pytest.mark.parametrize(("rule", "drawn"), [(None, False), ({"threshold": 0.5}, True), ({"threshold": 0.5, "cumulative": True}, False)])
def test_a_threshold_is_drawn_where_single_probabilities_are_compared_with_it(run, tmp_path, rule, drawn):
    place = {"episode": "a", "sub_step": 0, "instruction": "pick"}
    lines = [{"event": "episode", "episode": "a", "rule": rule}, {"event": "step", "step": 0, "score": 0.25, **place}]
    lines += [{"event": "end", "step": 1, "at": 0, "how": "seen", **place}, {"event": "truth", "episode": "a", "step": 0}]
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("score", path, "--out", tmp_path / "out")
    page = Page((tmp_path / "out" / "decisions.html").read_text())
    assert ("dashed across: threshold" in page.text) is drawn
