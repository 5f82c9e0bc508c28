import json
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.data.labels import Labels, Problem
from eosjax.data.specs import DatasetSpec
from eosjax.reports.episode_view import Substep, view_episode
from eosjax.reports.survey import Histogram, JoinedLabels, spread_over_tasks, survey


@given(st.lists(st.integers(0, 500), min_size=1, max_size=50), st.integers(1, 40))
def test_a_histogram_counts_every_value_once(values, bins):
    histogram = Histogram.of(np.array(values), bins)
    assert len(histogram.counts) == len(histogram.edges) - 1 <= bins
    for low, high, count in zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True):
        assert count == sum(low <= value < high for value in values)
    assert sum(histogram.counts) == len(values)
    assert (histogram.min, histogram.max) == (min(values), max(values))


def test_no_values_have_no_histogram():
    assert Histogram.of(np.array([], int)) is None


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(1, 5))
def test_chosen_episodes_are_spread_over_the_tasks(tasks, count):
    chosen = spread_over_tasks(tasks, range(len(tasks)), count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(tasks))
    assert len({tasks[episode] for episode in chosen}) == min(count, len(set(tasks)))


@pytest.fixture
def store():
    """Three episodes of 4, 3 and 5 steps."""
    rng = np.random.default_rng(0)
    return types.SimpleNamespace(
        name="made",
        tasks=["a", "b", "a"],
        num_episodes=3,
        num_frames=12,
        episode_starts=np.array([0, 4, 7, 12]),
        actions=rng.normal(size=(12, 7)).astype(np.float32),
        proprio=np.repeat(np.arange(12.0)[:, None], 8, axis=1).astype(np.float32),
    )


@pytest.fixture
def labels():
    """First episode: two sub-steps of two steps. The second one is not labelled. Third: an end at its fourth step, one step is left."""
    ends = np.isin(np.arange(12), [1, 3, 10])
    ids = np.array([0, 0, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0], np.int32)
    return Labels(ids, ["one", "two", "unlabelled"], ends, np.array([True, False, True]))


def test_unlabelled_episodes_do_not_count(store, labels):
    result = survey(store, DatasetSpec(), None, JoinedLabels(labels, [Problem("wrong shape", None, "why")]), batch_size=2)
    assert (result.episodes, result.matched_episodes, result.steps, result.matched_steps) == (3, 2, 12, 9)
    assert (result.ends, result.share_of_ends, result.episodes_without_end) == (3, 3 / 9, 0)
    assert result.ends_per_episode == [(1, 1), (2, 1)]
    assert [(each.text, each.steps, each.ends) for each in result.instructions] == [("one", 7, 2), ("two", 2, 1)]
    assert [(each.text, each.episodes, each.matched_episodes) for each in result.tasks] == [("a", 2, 2), ("b", 1, 0)]
    assert result.problems == [{"kind": "wrong shape", "episode": None, "what": "why"}]
    assert result.substep_steps is not None
    assert sum(result.substep_steps.counts) == 3
    assert result.buffer is not None
    assert result.buffer.rows_per_step == 2 * DatasetSpec().chunk
    assert json.loads(json.dumps(result.to_json()))["episode_steps"]["max"] == 5


def test_the_view_of_an_episode(store, labels):
    view = view_episode(store, labels, 2, store.proprio[:, :3], control_hz=20.0)
    assert view.substeps == [Substep("one", 0, 3, True), Substep("one", 4, 4, False)]
    np.testing.assert_allclose(view.speed, [0, *[20 * 3**0.5] * 4])
    np.testing.assert_array_equal(view.gripper, store.actions[7:, -1])
    first = view_episode(store, labels, 0, store.proprio[:, :3], control_hz=20.0)
    assert first.substeps == [Substep("one", 0, 1, True), Substep("two", 2, 3, True)]
    assert view_episode(store, labels, 1, store.proprio[:, :3], 20.0).substeps == []
    assert view_episode(store, None, 0, store.proprio[:, :3], 20.0).substeps == []
