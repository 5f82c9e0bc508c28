import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.data.images.transforms import decode
from eosjax.data.labels import Labels
from eosjax.data.samples.mixture import Mixture, check_conventions, check_unscaled, merge_labels, stats_of
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import FieldStats, normalise
from eosjax.types import UserError


@pytest.fixture(scope="module")
def parts(make_dataset):
    one = make_dataset((5, 1, 3), ends=(2, 8), name="one")
    return one, make_dataset((2, 4), ends=(1,), name="two", instructions=("push it", "a new one"), labelled=[1])


@pytest.fixture(scope="module")
def mixture(parts):
    return Mixture(parts)


def test_frames_and_episodes_are_numbered_through(parts, mixture):
    assert (mixture.name, mixture.num_frames, mixture.num_episodes) == ("one + two", 15, 5)
    assert mixture.frame_starts.tolist() == [0, 9, 15]
    assert mixture.first_episodes.tolist() == [0, 3, 5]
    assert mixture.episode_starts.tolist() == [0, 5, 6, 9, 11, 15]
    assert mixture.episode_of.tolist() == [0] * 5 + [1] + [2] * 3 + [3] * 2 + [4] * 4
    assert mixture.tasks == [*parts[0].store.tasks, *parts[1].store.tasks]
    np.testing.assert_array_equal(mixture.gripper, np.concatenate([part.store.actions[:, -1] for part in parts]))


@pytest.mark.parametrize("mixed", [lambda mixture: mixture, lambda mixture: pickle.loads(pickle.dumps(mixture))])
def test_images_come_from_the_frames_own_dataset(mixture, mixed):
    seen = [decode(mixed(mixture).images(frame)[1])[0, 0].tolist() for frame in (0, 8, 9, 14)]
    assert seen == [[0, 0, 1], [2, 2, 1], [0, 0, 1], [1, 3, 1]]  # episode and step within the dataset, and the camera
    for frame in (-1, 15):
        with pytest.raises(IndexError, match=r"one \+ two: expected 0 to 14"):
            mixture.images(frame)


def test_a_frame_is_described_by_its_own_dataset(mixture):
    assert mixture.describe(8) == "one: episode 2, step 2"
    assert mixture.describe(14, view=1) == "two: episode 1, step 3, wrist_image"


def test_each_dataset_is_normalised_by_its_own_statistics(parts):
    scaled = FieldStats.of(parts[1].store.proprio * 3 + 1)
    parts = [parts[0], dataclasses.replace(parts[1], stats=dataclasses.replace(parts[1].stats, proprio=scaled))]
    expected = [normalise(part.store.proprio, part.stats.proprio) for part in parts]
    np.testing.assert_array_equal(Mixture(parts).proprio, np.concatenate(expected))
    assert (expected[1] != normalise(parts[1].store.proprio, parts[0].stats.proprio)).any()


def test_each_dataset_is_normalised_in_its_own_way(parts):
    other = dataclasses.replace(parts[1], spec=dataclasses.replace(parts[1].spec, normalisation="bounds"))
    actions = Mixture([parts[0], other]).action_chunks(np.arange(15), np.arange(15)[:, None])[:, 0]
    np.testing.assert_array_equal(actions[:9], normalise(parts[0].store.actions, parts[0].stats.action, "q99"))
    np.testing.assert_array_equal(actions[9:], normalise(other.store.actions, other.stats.action, "bounds"))


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=4))
def test_merged_labels_say_the_same_of_every_frame(texts):
    parts = []
    for text in texts:
        instructions = sorted(set(text))
        ids = np.array([instructions.index(letter) for letter in text], np.int32)
        parts.append(Labels(ids, instructions, np.array([letter < "c" for letter in text]), np.ones(1, bool)))
    merged = merge_labels(parts)
    joined = [letter for text in texts for letter in text]
    assert [merged.instructions[number] for number in merged.instruction_ids] == joined
    assert merged.ends.tolist() == [letter < "c" for letter in joined]
    assert merged.instructions == sorted(set(joined))
    assert merged.instruction_ids.dtype == np.int32


def test_labelled_episodes_are_numbered_through(mixture):
    assert mixture.labels.labelled.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 4}, "one has chunk 8 and two has 4: they cannot be mixed"),
        ({"action_size": 5, "action_mask": (True,) * 5}, "one has action_size 7 and two has 5"),
        ({"proprio_size": 9}, "one has proprio_size 8 and two has 9"),
    ],
)
def test_sizes_that_differ_are_refused(parts, change, message):
    other = dataclasses.replace(parts[1], spec=dataclasses.replace(parts[1].spec, **change))
    with pytest.raises(UserError, match=f"--dataset_name: {message}"):
        Mixture([parts[0], other])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gripper": "as_stored"}, "one has gripper 1 = open and two has as stored: .* --allow mixed_conventions"),
        ({"motion": "reached_states"}, "one has motion as_stored and two has reached_states"),
        ({"action_mask": (True,) * 7}, r"one has action_mask \[True, .*, False\] and two has \[True, .*, True\]"),
        ({"control_hz": 5.0}, "one has control_hz 20.0 and two has 5.0"),
    ],
)
def test_conventions_that_differ_are_refused(parts, change, message):
    other = dataclasses.replace(parts[1], spec=dataclasses.replace(parts[1].spec, **change))
    with pytest.raises(UserError, match=f"--dataset_name: {message}"):
        check_conventions([parts[0], other])


def test_grippers_that_mean_the_same_once_they_are_read_can_be_mixed(parts):
    check_conventions([parts[0], dataclasses.replace(parts[1], spec=dataclasses.replace(parts[1].spec, gripper="binarised"))])


@pytest.mark.parametrize(("high", "tokens", "refused"), [(850, False, True), (1.5, False, False), (1.5, True, True), (1, True, False)])
def test_dimensions_that_are_not_normalised_must_be_of_that_size(high, tokens, refused):
    actions = np.full((3, 7), 50.0, np.float32)
    actions[:, 6] = [-1, high, 0]
    spec = DatasetSpec()
    if not refused:
        check_unscaled("one", actions, spec, tokens)
        return
    with pytest.raises(UserError, match=f"one: action dimension 6 is not normalised and ranges from -1 to {high:g}: .* action_mask"):
        check_unscaled("one", actions, spec, tokens)
    check_unscaled("one", actions, dataclasses.replace(spec, action_mask=(True,) * 7), tokens)


def test_the_cameras_are_those_that_all_have(parts):
    other = dataclasses.replace(parts[1], spec=dataclasses.replace(parts[1].spec, image_keys=("image",)))
    assert Mixture([parts[0], other]).num_cameras == 1


def test_statistics_are_those_of_the_description_at_hand(make_store):
    """An edited description, such as another mask, takes effect at the next start, whatever was opened before."""
    store = make_store((6, 3))
    masks = [(True,) * 6 + (False,), (True,) * 7]
    for mask in [*masks, *masks]:
        stats = stats_of(store, DatasetSpec(action_mask=mask))
        assert stats.action.mask.tolist() == list(mask)
        assert (stats.num_transitions, stats.num_trajectories) == (9, 2)
        np.testing.assert_array_equal(stats.action.max, store.actions.max(axis=0))
