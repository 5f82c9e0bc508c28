import base64
import copy
import io
import json

import pytest
from PIL import Image

from eosjax.cli import dataset
from eosjax.reports.pages import AROUND_END
from tests.page import Page


@pytest.fixture
def inspect(run, data, tmp_path):
    """A function (*flags) -> (status, stdout, JSON, page)."""

    def inspect(*flags):
        files = tmp_path / "out" / "report.json", tmp_path / "out" / "report.html"
        status, out, err = run("inspect", *data, "--json", files[0], f"--html={files[1]}", *flags)
        assert status in (0, 1), err
        assert all(str(file) in out for file in files)
        return status, out, json.loads(files[0].read_text()), Page(files[1].read_text())

    return inspect


def test_labels_that_fit(inspect, write_labels, bodies, tiny):
    status, out, report, _ = inspect("--substep_labels_path", write_labels(bodies), "--batch_size", "4")
    assert status == 0
    steps, ends = sum(tiny.lengths), 16  # two an episode, in eight episodes
    assert (report["episodes"], report["matched_episodes"], report["steps"], report["matched_steps"]) == (8, 8, steps, steps)
    assert (report["ends"], report["share_of_ends"], report["problems"]) == (ends, ends / steps, [])
    assert report["ends_per_episode"] == [[2, 8]]
    assert report["episodes_without_end"] == 0
    halves = [half for length in tiny.lengths for half in (length // 2, length - length // 2)]
    assert (report["substep_steps"]["min"], report["substep_steps"]["max"]) == (min(halves), max(halves))
    assert report["substep_steps"]["mean"] == pytest.approx(steps / ends)
    assert sum(report["substep_steps"]["counts"]) == ends
    first = sum(length // 2 for length in tiny.lengths)
    assert report["instructions"] == [
        {"text": "second half", "steps": steps - first, "ends": 8},
        {"text": "first half", "steps": first, "ends": 8},
    ]
    assert {task["text"]: task["episodes"] for task in report["tasks"]} == {"Do task 0": 3, "Do task 1": 3, "Do task 2": 2}
    buffer = report["buffer"]
    assert (buffer["rows_per_step"], buffer["suggested_positives"]) == (4 * 8, 20)  # 23 % of ends
    assert buffer["first_update"] == 3  # 15 ends needed, 7.3 a step
    assert len(report["action"]) == 7
    assert report["action"][6]["normalised"] is False
    assert len(report["proprio"]) == 8
    assert "8 of 8 episodes (100.0%)" in out
    assert "--eos_sample_positive 20 --eos_min_positive 20" in out


def test_labels_that_do_not_fit_are_status_1_and_reported(inspect, write_labels, bodies, tiny):
    wrong = copy.deepcopy(bodies)
    wrong[2]["total_timesteps"] += 1
    status, out, report, page = inspect("--substep_labels_path", write_labels(wrong, skip=[5]))
    assert status == 1
    problems = {(problem["kind"], problem["episode"]) for problem in report["problems"]}
    assert {("episode without labels", 5), ("length mismatch", 2)} <= problems
    assert {episode for _, episode in problems} == {2, 5}
    assert all(problem["what"] for problem in report["problems"])
    assert (report["episodes"], report["matched_episodes"], report["ends"]) == (8, 6, 12)
    assert report["matched_steps"] == sum(length for episode, length in enumerate(tiny.lengths) if episode not in (2, 5))
    assert report["share_of_ends"] == 12 / report["matched_steps"]
    assert f"DO NOT FIT: {len(problems)} problem(s)" in out
    assert "The labels do not fit." in page.text
    assert "length mismatch" in page.text


def test_unlikely_labels_are_told_and_impossible_ones_are_problems(inspect, write_labels, bodies):
    _, _, report, page = inspect("--substep_labels_path", write_labels(bodies))
    (warning,) = [each for each in report["warnings"] if "steps are ends" in each]  # the episodes have few steps
    assert warning in page.text
    for body in bodies:
        for entry in body["timestep_labels"][::2]:
            entry["is_substep_end"] = True
    status, out, report, _ = inspect("--substep_labels_path", write_labels(bodies))
    assert status == 1
    (problem,) = report["problems"]
    assert (problem["kind"], problem["episode"]) == ("implausible", None)
    assert "of the steps are ends" in problem["what"]
    assert "DO NOT FIT: 1 problem(s)" in out
    assert any("come right behind another end" in warning for warning in report["warnings"])


@pytest.mark.parametrize("content", ["{", "[]", '{"libero_spatial": {}}'])
def test_a_label_file_without_these_labels_is_status_1(inspect, tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_text(content)
    status, _, report, _ = inspect("--substep_labels_path", path)
    assert status == 1
    assert (report["matched_episodes"], report["ends"], report["share_of_ends"], report["buffer"]) == (0, 0, None, None)
    assert report["problems"]


def test_unlabelled_episodes_can_be_allowed(inspect, write_labels, bodies):
    status, _, report, _ = inspect("--substep_labels_path", write_labels(bodies, skip=[0, 5]), "--allow", "unlabelled")
    assert status == 0
    assert (report["matched_episodes"], report["ends"], report["problems"]) == (6, 12, [])


def test_without_labels_there_is_the_dataset(inspect):
    status, out, report, page = inspect("--episodes", "3")
    assert status == 0
    assert (report["labels"], report["ends"], report["share_of_ends"], report["matched_episodes"]) == (None, 0, None, 0)
    assert report["problems"] == report["instructions"] == []
    assert "none given" in out
    assert page.count("div", "strip") == 1


def test_episodes_that_training_refuses_are_told_without_labels(inspect, monkeypatch):
    read = dataset.open_dataset

    def open_dataset(args, name):
        opened = read(args, name)
        opened.store.tasks[1] = "?"
        opened.store.episode_starts[4] = opened.store.episode_starts[3]  # no steps
        return opened

    monkeypatch.setattr(dataset, "open_dataset", open_dataset)
    status, out, report, _ = inspect()
    assert status == 1
    assert "problems: 1 x blank task, 1 x empty episode" in out
    assert [(each["kind"], each["episode"]) for each in report["problems"]] == [("blank task", 1), ("empty episode", 3)]
    assert inspect("--allow", "blank_tasks,empty_episodes")[0] == 0


def test_the_page_has_a_strip_of_pictures_for_each_end(inspect, write_labels, bodies, tiny):
    _, _, _, page = inspect("--substep_labels_path", write_labels(bodies), "--episodes", "0,7")
    assert page.count("div", "strip") == 4
    assert page.count("figure", "end") == 4
    for episode in (0, 7):
        half, length = tiny.lengths[episode] // 2, tiny.lengths[episode]
        bands = {f"1. first half: steps 0 to {half - 1}", f"2. second half: steps {half} to {length - 1}"}
        assert bands <= set(page.titles)
    ends = [end for episode in (0, 7) for end in (tiny.lengths[episode] // 2 - 1, tiny.lengths[episode] - 1)]
    lengths = [tiny.lengths[episode] for episode in (0, 0, 7, 7)]
    shown = [0 <= end + at < length for end, length in zip(ends, lengths, strict=True) for at in AROUND_END]
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 2 * sum(shown)  # two cameras
    assert page.count("figure", "absent") == len(shown) - sum(shown)
    assert {f"image, step {end}" for end in ends} <= {attrs["alt"] for attrs in pictures}
    for attrs in pictures:
        camera, step = attrs["alt"].split(", step ")
        file = io.BytesIO(base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,"), validate=True))
        _, green, blue = Image.open(file).getpixel((0, 0))  # the writer's colours: of the step and of the camera
        assert (green, blue) == (10 * int(step), 100 * ("image", "wrist_image").index(camera))


def test_the_page_loads_and_runs_nothing(inspect, write_labels, bodies):
    _, _, _, page = inspect("--substep_labels_path", write_labels(bodies))
    page.check_loads_and_runs_nothing()


@pytest.mark.parametrize("nasty", ['<script>alert("&")</script>', "$x_1^2$ \\frac{a}{b}", "'><img src=http://x onerror=y>", "{{ 7 * 7 }}"])
def test_texts_of_the_labels_are_shown_as_they_are(inspect, write_labels, bodies, nasty):
    for entry in bodies[0]["timestep_labels"][:2]:
        entry["APD_step"] = nasty
    _, _, _, page = inspect("--substep_labels_path", write_labels(bodies), "--episodes", "0")
    page.check_loads_and_runs_nothing()
    assert any(title.startswith(f"1. {nasty}: steps 0 to") for title in page.titles)
    assert page.text.count(nasty) >= 3  # above the strip of pictures and in the table, too


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--episodes", "0,8", "--html", "x.html"], "--episodes: expected numbers from 0 to 7, got 8"),
        (["--position_columns", "0,8", "--html", "x.html"], "--position_columns 0,8: expected columns 0 to 7"),
        (["--batch_size", "0"], "--batch_size must be greater than 0, got 0"),
        (["--substep_labels_path", "no_such.json"], "--substep_labels_path no_such.json: no such file"),
        (["--dataset_name", "libero_goal,libero_10"], "inspect those of a mixture one by one"),
        (["--dataset_name", "../libero_goal"], "--dataset_name: expected a plain name"),
    ],
)
def test_what_the_user_can_mend_is_status_2(run, data, monkeypatch, tmp_path, flags, why):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("inspect", *data, *flags)
    assert (status, out) == (2, "")
    assert why in err
    assert not list(tmp_path.iterdir())
