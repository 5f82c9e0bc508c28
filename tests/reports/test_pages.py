"""Pages by their content: what is asked for, what is escaped, and how large they get."""

import dataclasses
import itertools
import types
from pathlib import Path

import numpy as np
import pytest

from eosjax.data.labels import Labels, Problem
from eosjax.data.specs import DatasetSpec
from eosjax.ends.events import ScoredEpisode
from eosjax.reports.episode_view import view_episode
from eosjax.reports.evaluation import PolicyEvaluation, ScoreEvaluation
from eosjax.reports.pages import evaluate_page, inspect_page, score_page
from eosjax.reports.survey import JoinedLabels, survey
from tests.ends.test_operating_points import HOW, choose, made_up
from tests.page import Page

NASTY = "</title><script>x</script>\"'&$a_1$\\frac {{ 7 * 7 }}"


def scored(name, fired, true, steps=30):
    scores, ends = np.zeros(steps), np.zeros(steps, bool)
    scores[fired], ends[true] = 0.9, True
    return ScoredEpisode(name, scores, ends)


def evaluate(episodes=None, pictures=lambda number, step: []):
    episodes = made_up(noise=1.6) if episodes is None else episodes
    point = choose(made_up(noise=1.6), HOW)
    baselines = {NASTY: [point.dense(each) for each in episodes]}
    return Page(evaluate_page(PolicyEvaluation.of(NASTY, episodes, point, (), baselines, replicates=5), pictures))


def test_pictures_at_true_ends_and_firings(monkeypatch):
    asked = []

    def pictures(number, step):
        asked.append((number, step))
        return [b"\x89PNG" + bytes([step]), b"\xff\xd8" + bytes([step])]

    made = PolicyEvaluation.of("title", made_up(noise=1.6), choose(made_up(noise=1.6), HOW), (), {}, replicates=0)
    dense = ScoreEvaluation.of("title", [scored("a", [9, 20], [10, 28])], 0.5)
    object.__setattr__(made, "dense", dense)
    page = Page(evaluate_page(made, pictures))
    assert asked == [(0, 9), (0, 10), (0, 20), (0, 28)]
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == [
        f"camera {camera}, step {step}" for step, camera in itertools.product((9, 10, 20, 28), (0, 1))
    ]
    sources = [attrs["src"].partition(";")[0] for tag, attrs in page.tags if tag == "img"]
    assert sources == ["data:image/png", "data:image/jpeg"] * 4
    for caption in ("step 9: fired (-1)", "step 10: true end", "step 20: false alarm", "step 28: true end, missed"):
        assert caption in page.text
    assert page.count("figure", "end") == 2
    page.check_loads_and_runs_nothing()


def test_names_of_anybody_are_escaped():
    page = evaluate()
    page.check_loads_and_runs_nothing()
    assert page.text.count(NASTY) >= 3  # title, heading, row of the table
    page = Page(score_page(ScoreEvaluation.of(NASTY, [scored(NASTY, [9], [10]), scored("b", [9], [10])], 0.5, replicates=5)))
    page.check_loads_and_runs_nothing()
    assert f"scores and ends of episode {NASTY}" in {attrs.get("aria-label") for _, attrs in page.tags}


def test_all_texts_of_a_dataset_and_its_labels_are_escaped():
    """Name of the dataset and of its cameras, tasks, instructions, problems, path of the labels."""
    store = types.SimpleNamespace(
        name=f"name {NASTY}",
        tasks=[f"task {NASTY}"],
        num_episodes=1,
        num_frames=40,
        episode_starts=np.array([0, 40]),
        actions=np.linspace(0, 1, 280, dtype=np.float32).reshape(40, 7),
        proprio=np.linspace(0, 1, 320, dtype=np.float32).reshape(40, 8),
        images=lambda frame: [b"\x89PNG"],
    )
    labels = Labels(np.zeros(40, np.int32), [f"instruction {NASTY}"], np.arange(40) % 20 == 19, np.ones(1, bool))
    joined = JoinedLabels(labels, [Problem("wrong shape", None, f"problem {NASTY}")])
    spec = DatasetSpec(image_keys=(f"camera {NASTY}",))
    found = dataclasses.replace(survey(store, spec, Path(f"labels {NASTY}"), joined), warnings=[f"warning {NASTY}"])
    page = Page(inspect_page(found, store, [view_episode(store, labels, 0, store.proprio[:, :3], 20.0)]))
    page.check_loads_and_runs_nothing()
    for what in ("name", "task", "instruction", "problem", "labels", "warning"):
        assert f"{what} {NASTY}" in page.text
    assert {f"camera {NASTY}, step {step}" for step in (19, 39)} <= {attrs["alt"] for tag, attrs in page.tags if tag == "img"}


def test_characters_that_nobody_sees_are_blanks_in_a_page():
    text = score_page(ScoreEvaluation.of("a\x00b\x1bc\u202ed", [scored("e", [9], [10])], 0.5, replicates=0))
    assert "<h1>a b c d</h1>" in text
    assert not {"\x00", "\x1b", "\u202e"} & set(text)


def test_every_chart_has_a_name():
    drawings = [attrs for tag, attrs in evaluate().tags if tag == "svg"]
    assert len(drawings) == 5 + 3
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)


def test_intervals_stay_on_one_line():
    page = Page(score_page(ScoreEvaluation.of("t", [scored(name, [9], [10, 20]) for name in "abcd"], 0.5, replicates=5)))
    assert "1.000 [1.000,\N{NO-BREAK SPACE}1.000]" in page.text


def test_the_same_page_each_time():
    episodes = [scored("a", [9, 20], [10, 28]), scored("b", [], [3])]
    first, second = (score_page(ScoreEvaluation.of("t", episodes, 0.5, replicates=5)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("firings", [0, 2000])
def test_long_files_make_no_long_pages(firings):
    rng = np.random.default_rng(0)
    episodes = [ScoredEpisode(str(number), rng.random(2000) * (firings > 0), np.arange(2000) % 100 == 99) for number in range(20)]
    assert len(score_page(ScoreEvaluation.of("t", episodes, 0.999, replicates=0))) < 900_000
