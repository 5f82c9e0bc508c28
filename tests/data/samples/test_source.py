import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.images.transforms import ImageError
from eosjax.data.samples.mixture import Mixture
from eosjax.data.samples.source import split_episodes, split_mixture
from eosjax.data.samples.tokens import evaluation_prompt
from eosjax.data.stats import normalise
from eosjax.types import UserError
from tests.data.conftest import INSTRUCTIONS, source_over
from tests.data.samples.conftest import LENGTHS


@given(st.integers(2, 200), st.floats(0.001, 0.99), st.integers(0, 100))
@settings(deadline=None, derandomize=True)
def test_split_is_a_partition_with_both_sides(num_episodes, share, seed):
    train, val = split_episodes(num_episodes, share, seed)
    assert sorted([*train, *val]) == list(range(num_episodes))
    assert len(train) >= 1
    assert len(val) >= 1
    assert abs(len(val) - share * num_episodes) <= 1
    np.testing.assert_array_equal(val, split_episodes(num_episodes, share, seed)[1])


def test_split_without_validation_and_errors():
    train, val = split_episodes(3, 0.0, 0)
    assert (train.tolist(), val.tolist()) == ([0, 1, 2], [])
    with pytest.raises(ValueError, match="expected at least 2 episodes"):
        split_episodes(1, 0.1, 0)
    with pytest.raises(ValueError, match=r"expected 0 <= val_share < 1, got 1\.0"):
        split_episodes(5, 1.0, 0)


def test_train_and_validation_share_no_frame(make_source):
    train, val = split_episodes(len(LENGTHS), 0.5, 0)
    sides = [set(make_source(LENGTHS, episodes=episodes).anchors.tolist()) for episodes in (train, val)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(sum(LENGTHS)))


@st.composite
def labelled_episodes(draw):
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    ends = draw(st.lists(st.integers(0, sum(lengths) - 1), unique=True))
    return lengths, ends, draw(st.integers(1, 9))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(labelled_episodes())
def test_chunks_stay_in_their_episode_and_every_end_is_exposed_at_every_slot(make_source, case):
    lengths, ends, chunk = case
    source = make_source(lengths, ends, chunk=chunk)
    batch = source.batch(np.arange(len(source)))
    store, stats = source.data.datasets[0].store, source.data.datasets[0].stats
    exposed = collections.Counter()
    for anchor, (eos, valid, actions) in enumerate(zip(batch.eos, batch.valid, batch.actions, strict=True)):
        episode, step = store.locate(anchor)
        left = lengths[episode] - step
        assert valid.tolist() == [slot < left for slot in range(chunk)]
        assert not eos[~valid].any()
        frames = anchor + np.arange(min(chunk, left))
        expected = normalise(store.actions[frames], stats.action)
        np.testing.assert_array_equal(actions[: len(frames)], expected)
        np.testing.assert_array_equal(actions[len(frames) :], np.repeat(expected[-1:], chunk - len(frames), axis=0))
        exposed.update((anchor + int(slot), int(slot)) for slot in np.flatnonzero(eos))
    # Slot j shows the end at step t from the anchor t - j, if the episode has that step.
    steps = {end: store.locate(end)[1] for end in ends}
    assert exposed == {(end, slot): 1 for end, step in steps.items() for slot in range(min(chunk, step + 1))}


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_label_reaches_a_model_input(source, seed, training):
    rng = np.random.default_rng(seed)
    ends = rng.random(source.data.num_frames) < 0.5
    (dataset,) = source.data.datasets
    flipped = dataclasses.replace(source, data=Mixture([dataclasses.replace(dataset, labels=dataset.labels._replace(ends=ends))]))
    indices = rng.integers(0, len(source), 6)
    epoch = np.full(6, 2) if training else None
    one, two = (each.batch(indices, epoch) for each in (source, flipped))
    for field in ("images", "input_ids", "attn_mask", "proprio", "actions", "valid", "key"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field), err_msg=field)
    np.testing.assert_array_equal(two.eos[:, 0], ends[source.anchors[indices]])


def test_shapes_types_and_content(make_source):
    source = make_source(LENGTHS, ends=(4,))
    batch = source.batch(np.array([4, 7]))
    length = source.length
    expected = {
        "images": ((2, 2, 8, 8, 3), np.uint8),
        "input_ids": ((2, length), np.int32),
        "attn_mask": ((2, length), np.bool_),
        "proprio": ((2, 8), np.float32),
        "actions": ((2, 8, 7), np.float32),
        "eos": ((2, 8), np.float32),
        "valid": ((2, 8), np.bool_),
        "key": ((2,), np.int32),
    }
    assert {name: (value.shape, value.dtype) for name, value in batch._asdict().items()} == expected
    assert batch.images[:, :, 0, 0].tolist() == [[[0, 4, 0], [0, 4, 1]], [[2, 1, 0], [2, 1, 1]]]
    np.testing.assert_array_equal(batch.proprio, source.data.proprio[[4, 7]])
    prompts = [evaluation_prompt(INSTRUCTIONS[frame % 3]) for frame in (4, 7)]
    np.testing.assert_array_equal(batch.input_ids, source.tokenizer.encode(prompts, length, 56)[0])


def test_options_of_the_source(make_source):
    plain = make_source((3,))
    batch = dataclasses.replace(plain, num_images=1, use_proprio=False, image_size=4).batch(np.array([1]))
    assert batch.images.shape == (1, 1, 4, 4, 3)
    assert batch.proprio.shape == (1, 0)
    assert dataclasses.replace(plain, prompt_length=120).batch(np.array([1])).input_ids.shape == (1, 120)
    with pytest.raises(ValueError, match="--num_images_in_input: made: expected 1 to 2, got 3"):
        dataclasses.replace(plain, num_images=3)
    with pytest.raises(ValueError, match=r"'In: .*' needs a length of"):
        dataclasses.replace(plain, prompt_length=60).batch(np.array([1]))


def test_randomness_is_of_the_seed_epoch_and_index(source):
    """Neither the place in the batch nor the rest of the batch changes a sample; each of the three does."""
    alone = source.batch(np.array([3]), np.array([1]))
    among = source.batch(np.array([8, 3]), np.array([0, 1]))
    np.testing.assert_array_equal(alone.images[0], among.images[1])
    np.testing.assert_array_equal(alone.input_ids[0], among.input_ids[1])
    reseeded = dataclasses.replace(source, seed=1)
    variants = [alone, source.batch(np.array([3]), np.array([0])), reseeded.batch(np.array([3]), np.array([1]))]
    assert len({variant.images.tobytes() for variant in variants}) == 3


@pytest.mark.parametrize(("image_aug", "rephrase"), [(False, False), (False, True), (True, False)])
def test_what_is_random_is_what_was_asked_for(make_source, image_aug, rephrase):
    plain = make_source(LENGTHS, image_aug=image_aug, rephrase=rephrase)
    batches = [plain.batch(np.array([3]), np.array([epoch])) for epoch in range(20)]
    assert (len({batch.images.tobytes() for batch in batches}) > 1) == image_aug
    assert (len({batch.input_ids.tobytes() for batch in batches}) > 1) == rephrase


def test_all_wordings_are_drawn_in_training_and_one_in_evaluation(source):
    indices = np.zeros(400, np.int64)
    training = source.batch(indices, np.arange(400)).input_ids
    assert len(np.unique(training, axis=0)) == 14
    assert len(np.unique(source.batch(indices[:5]).input_ids, axis=0)) == 1


def test_a_mixture_is_split_dataset_by_dataset_and_without_unlabelled_episodes(make_dataset):
    parts = [make_dataset((2,) * 8, name="one", labelled=range(1, 8)), make_dataset((2,) * 4, name="two")]
    train, val = split_mixture(Mixture(parts), 0.25, 3)
    assert sorted([*train, *val]) == [*range(1, 8), *range(8, 12)]
    assert [np.sum(side < 8) for side in (train, val)] == [5, 2]
    assert [np.sum(side >= 8) for side in (train, val)] == [3, 1]
    alone = split_mixture(Mixture(parts[1:]), 0.25, 3)
    np.testing.assert_array_equal(alone[0], split_episodes(4, 0.25, 3)[0])
    np.testing.assert_array_equal(alone[1] + 8, val[2:])
    with pytest.raises(UserError, match=r"few: val_share: 0\.25 of 1 episode\(s\) cannot be set aside"):
        split_mixture(Mixture([parts[0], make_dataset((2,) * 4, labelled=[2], name="few")]), 0.25, 3)


def test_samples_of_a_mixture_are_those_of_its_datasets(mixed):
    batch = mixed.batch(np.array([1, 21]))
    for row, dataset, frame in ((0, mixed.data.datasets[0], 1), (1, mixed.data.datasets[1], 1)):
        expected = source_over(Mixture([dataset]), image_aug=True, prompt_length=mixed.length).batch(np.array([frame]))
        for field in ("images", "input_ids", "attn_mask", "proprio", "actions", "eos", "valid"):
            np.testing.assert_array_equal(getattr(batch, field)[row], getattr(expected, field)[0], err_msg=field)


def test_a_broken_image_of_a_mixture_is_named_by_its_dataset(make_dataset):
    mixture = Mixture([make_dataset((3,), name="sound"), make_dataset((2, 2), picture=b"no image", name="broken")])
    with pytest.raises(ImageError, match="broken: episode 1, step 0, image: 8 bytes do not decode"):
        source_over(mixture).batch(np.array([0, 5]))


def test_chunks_match_the_originals(golden, make_dataset):
    """Where the original has a chunk, at all anchors but the last K-1 of an episode; nothing is normalised here."""
    arrays = np.load(golden / "data" / "chunk_act_obs.npz")
    dataset = make_dataset((int(arrays["episode_len"]),))
    dataset.store.actions = arrays["action"]
    unmasked = dataclasses.replace(dataset.stats.action, mask=np.zeros(7, bool))
    source = source_over(Mixture([dataclasses.replace(dataset, stats=dataclasses.replace(dataset.stats, action=unmasked))]))
    chunks = source.batch(arrays["timestep"][:, 0]).actions
    np.testing.assert_array_equal(chunks, arrays["chunked_action"])
