"""Absolute targets, learnt as differences from the state at the anchor of their chunk."""

import dataclasses
import types

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.frames.store import source_fingerprint
from eosjax.data.samples.mixture import Mixture, stats_of
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import normalise, unnormalise
from eosjax.data.targets import learnt_actions, to_differences, to_targets
from tests.data.conftest import source_over

SPEC = DatasetSpec(motion="target_minus_state", chunk=3)


def made(lengths, seed=0):
    rng = np.random.default_rng(seed)
    count = sum(lengths)
    columns = rng.normal(size=(count, 7)).astype(np.float32), rng.normal(size=(count, 8)).astype(np.float32)
    return types.SimpleNamespace(actions=columns[0], proprio=columns[1], episode_starts=np.cumsum([0, *lengths]))


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any), seed=st.integers(0, 9))
def test_statistics_are_of_all_differences_that_samples_have(lengths, seed):
    store = made(lengths, seed)
    expected = []
    for slot in range(SPEC.chunk):
        for start, stop in zip(store.episode_starts, store.episode_starts[1:], strict=False):
            for anchor in range(start, stop - slot):
                target = store.actions[anchor + slot].copy()
                target[:6] -= store.proprio[anchor, :6]
                expected.append(target)
    found = learnt_actions(store, SPEC)
    np.testing.assert_array_equal(found, np.array(expected))
    few = learnt_actions(store, SPEC, most_rows=4)
    assert len(few) <= max(len(found), 2 * 7 * SPEC.chunk + len(found) // 2 + SPEC.chunk)
    np.testing.assert_array_equal([few.min(axis=0), few.max(axis=0)], [found.min(axis=0), found.max(axis=0)])


def test_other_actions_are_as_stored():
    store = made([3])
    assert learnt_actions(store, DatasetSpec()) is store.actions


def test_a_robot_gets_the_targets_back():
    store = made([9])
    state = store.proprio[:, None]
    targets = np.stack([store.actions, store.actions[::-1]], axis=1)
    np.testing.assert_allclose(to_targets(to_differences(targets, state), state), targets, atol=1e-6)


def test_a_batch_has_the_differences_from_the_state_at_its_anchors(make_dataset):
    """Of a dataset that says so; another one of the mixture has its actions as they are."""
    parts = []
    for number, motion in enumerate(("as_stored", "target_minus_state")):
        dataset = make_dataset((4, 5), chunk=3, name=f"part {number}")
        spec = dataclasses.replace(dataset.spec, motion=motion)
        parts.append(dataclasses.replace(dataset, spec=spec, stats=stats_of(dataset.store, spec)))
    batch = source_over(Mixture(parts), image_size=8).batch(np.arange(18))
    plain, relative = parts
    assert relative.stats.num_transitions == 9
    for anchor in range(9):
        last = 3 if anchor < 4 else 8
        frames = np.minimum(anchor + np.arange(3), last)
        np.testing.assert_array_equal(batch.actions[anchor], normalise(plain.store.actions[frames], plain.stats.action))
        differences = to_differences(relative.store.actions[frames], relative.store.proprio[anchor])
        np.testing.assert_array_equal(batch.actions[9 + anchor], normalise(differences, relative.stats.action))
        valid = batch.valid[9 + anchor]
        served = to_targets(unnormalise(batch.actions[9 + anchor], relative.stats.action), relative.store.proprio[anchor])
        inside = ((differences >= relative.stats.action.q01) & (differences <= relative.stats.action.q99))[:, :6] & valid[:, None]
        np.testing.assert_allclose(served[:, :6][inside], relative.store.actions[frames][:, :6][inside], atol=1e-4)


def test_a_frame_store_has_the_targets(tmp_path):
    folder = tmp_path / "made/1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "made", "version": "1.0.0", "fileFormat": "tfrecord", "splits": []}')
    plain, relative, reached = (
        source_fingerprint(tmp_path, "made", dataclasses.replace(SPEC, motion=motion))
        for motion in ("as_stored", "target_minus_state", "reached_states")
    )
    assert plain == relative != reached
