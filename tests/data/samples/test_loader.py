import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.data.images.transforms import ImageError
from eosjax.data.samples.loader import EvalLoader, TrainLoader
from eosjax.data.samples.mixture import Mixture
from eosjax.data.samples.order import TrainingOrder, interleave
from eosjax.data.specs import DatasetSpec
from eosjax.types import UserError
from tests.data.conftest import source_over


def take(loader, count):
    return list(itertools.islice(loader, count))


def assert_same(first, second):
    for name, left, right in zip(first._fields, first, second, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize("batch_size", [4, 7])
def test_an_epoch_is_a_permutation_and_each_epoch_another(source, batch_size):
    size = len(source)
    keys = np.concatenate([batch.key for batch in take(TrainLoader(source, batch_size, seed=0), -(-3 * size // batch_size))])
    epochs = keys[: 3 * size].reshape(3, size)
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = np.concatenate([batch.key for batch in take(TrainLoader(source, batch_size, seed=1), 3)])
    assert other.tolist() != keys[: len(other)].tolist()


@pytest.mark.parametrize("start", [0, 1, 9, 23])
def test_resumed_batches_are_those_of_an_uninterrupted_run(source, start):
    whole = take(TrainLoader(source, 4, seed=5), start + 3)[start:]
    resumed = take(TrainLoader(pickle.loads(pickle.dumps(source)), 4, seed=5, start_batch=start), 3)
    for one, two in zip(whole, resumed, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(source, threads):
    batches = take(TrainLoader(source, 5, seed=1, threads=threads), 6)
    order = TrainingOrder(source.data.datasets, source.first_samples, 1)
    for number, batch in enumerate(batches):
        samples = np.array([order[position] for position in range(5 * number, 5 * number + 5)])
        assert_same(batch, source.batch(samples[:, 0], epoch=samples[:, 1]))


def test_processes_take_the_parts_of_one_global_batch(source):
    whole = take(TrainLoader(source, 6, seed=2, start_batch=3), 4)
    parts = [take(TrainLoader(source, 2, 2, start_batch=3, process_index=i, process_count=3), 4) for i in range(3)]
    for number, batch in enumerate(whole):
        joined = [np.concatenate(fields) for fields in zip(*(part[number] for part in parts), strict=True)]
        assert_same(batch, type(batch)(*joined))


def test_no_sample_to_train_on(make_source):
    with pytest.raises(ValueError, match="made: no sample in the episodes to train on"):
        iter(TrainLoader(make_source((3,), episodes=[]), 2, 0))


@pytest.mark.parametrize("batch_size", [7, 28, 50])
def test_evaluation_takes_all_in_order_and_fills_up_with_invalid_rows(source, batch_size):
    loader = EvalLoader(source, batch_size)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-len(source) // batch_size)
    keys = np.concatenate([batch.key for batch in batches])
    padding = len(keys) - len(source)
    assert keys.tolist() == [*range(len(source)), *[-1] * padding]
    for batch in batches:
        assert len(batch.images) == batch_size
        assert not batch.valid[batch.key == -1].any()
        assert not batch.eos[batch.key == -1].any()
    assert_same(batches[0], next(iter(loader)))


def test_evaluation_of_no_episode(make_source):
    assert list(EvalLoader(make_source((3,), episodes=[]), 4)) == []


@pytest.mark.parametrize("loader", [lambda source: EvalLoader(source, 3), lambda source: TrainLoader(source, 3, 0)])
def test_a_broken_image_is_named(make_source, loader):
    source = make_source((1, 1), picture=b"no image", episodes=[1])
    with pytest.raises(ImageError, match=rf"made: episode 1, step 0, {DatasetSpec().image_keys[0]}: 8 bytes do not decode"):
        next(iter(loader(source)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_interleaving_is_exact_even_and_leaves_nothing_out(shares):
    total = sum(shares)
    found = [interleave(position, shares) for position in range(2 * total)]
    for number, share in enumerate(shares):
        assert [place for sequence, place in found if sequence == number] == list(range(2 * share))
    first = np.cumsum([sequence == 0 for sequence, _ in found])
    assert np.abs(first - np.arange(1, 2 * total + 1) * shares[0] / total).max() < 1


def test_shares_follow_weight_and_size_and_epochs_stay_permutations(mixed):
    sizes = np.diff(mixed.first_samples)
    assert sizes.tolist() == [20, 10]  # the unlabelled episode of three steps is left out
    keys = np.concatenate([batch.key for batch in take(TrainLoader(mixed, 5, seed=0), 30)])
    for key, weight, size in ((keys[keys < 20], 2, 20), (keys[keys >= 20] - 20, 1, 10)):
        assert len(key) == 3 * weight * size
        assert all(sorted(epoch) == list(range(size)) for epoch in key.reshape(-1, size))
    assert set(mixed.data.episode_of[mixed.anchors]) == {0, 1, 2, 3, 5}
    order = TrainingOrder(mixed.data.datasets, mixed.first_samples, 0)
    visits = [order[position] for position in range(150)]
    assert [sample for sample, _ in visits] == keys.tolist()
    for sample in range(30):
        assert [epoch for other, epoch in visits if other == sample] == list(range(6 if sample < 20 else 3))


@pytest.mark.parametrize("start", [1, 17])
def test_a_mixture_resumes_and_is_sharded_exactly(mixed, start):
    whole = take(TrainLoader(mixed, 6, seed=5), start + 3)[start:]
    parts = [take(TrainLoader(mixed, 3, 5, start_batch=start, process_index=i, process_count=2), 3) for i in range(2)]
    for number, batch in enumerate(whole):
        joined = [np.concatenate(fields) for fields in zip(*(part[number] for part in parts), strict=True)]
        assert_same(batch, type(batch)(*joined))


def test_a_dataset_of_a_mixture_without_samples_is_named(make_dataset):
    mixture = Mixture([make_dataset((3,), name="full"), make_dataset((3,), name="empty")])
    with pytest.raises(UserError, match="empty: no sample in the episodes to train on"):
        iter(TrainLoader(source_over(mixture, episodes=[0]), 2, 0))
