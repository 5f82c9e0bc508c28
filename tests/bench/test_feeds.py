"""Which rows each update brings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.bench.feeds import Split, balanced, stream, tiles
from eosjax.types import UserError


@given(st.integers(2, 12), st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.integers(0, 3))
def test_stream_is_epoch_behind_epoch(count, chunk, updates, batch, seed):
    frames = 3 * np.arange(count) + 1
    rows = stream(frames, chunk, updates, batch, seed)
    assert rows.shape == (updates, batch * chunk)
    slots = rows.reshape(-1, chunk)
    assert (slots % chunk == np.arange(chunk)).all()
    anchors = slots[:, 0] // chunk
    assert (slots // chunk == anchors[:, None]).all()
    for epoch in range(-(-anchors.size // count)):
        part = anchors[epoch * count : (epoch + 1) * count]
        assert np.unique(part).size == part.size
        assert np.isin(part, frames).all()
    assert np.array_equal(rows, stream(frames, chunk, updates, batch, seed))
    longer = stream(frames, chunk, updates + 5, batch, seed)
    assert np.array_equal(longer[:updates], rows)


def test_streams_of_seeds_differ():
    frames = np.arange(50)
    assert not np.array_equal(stream(frames, 2, 5, 4, 0), stream(frames, 2, 5, 4, 1))


def test_balanced_draws_of_each_class_from_training_alone():
    rng = np.random.default_rng(0)
    labels, valid = rng.random(200) < 0.2, rng.random(200) < 0.7
    drawn = balanced(labels, valid, 400, (3, 5), 1)
    assert drawn.shape == (400, 8)
    assert valid[drawn].all()
    assert labels[drawn[:, :3]].all()
    assert not labels[drawn[:, 3:]].any()
    assert set(drawn[:, :3].flat) == set(np.flatnonzero(labels & valid))  # each has its turn
    assert set(drawn[:, 3:].flat) == set(np.flatnonzero(~labels & valid))


def test_tiles_are_the_frames_in_order(cache):
    starts, chunk = cache.columns.episode_starts, cache.chunk
    episodes = np.array([1, 4])
    rows = tiles(starts, episodes, chunk)
    assert np.array_equal(rows // chunk + rows % chunk, cache.columns.frames_of(episodes))
    first = starts[cache.columns.episode_of[rows // chunk]]
    assert ((rows // chunk - first) % chunk == 0).all()


def test_split_takes_the_held_out_episodes_in_halves(cache):
    split = Split.of(cache)
    assert np.array_equal(split.train, np.flatnonzero(~cache.columns.held_out))
    assert np.array_equal(np.union1d(split.val, split.test), np.flatnonzero(cache.columns.held_out))
    assert (split.val.size, split.test.size) == (2, 2)
    assert {tuple(Split.of(cache, seed).val) for seed in range(20)} > {tuple(split.val)}


def test_split_without_ends_in_a_part_is_refused(cache):
    cache.columns.ends[cache.columns.frames_of(Split.of(cache).test)] = False
    with pytest.raises(UserError, match="none in the 2 test episodes"):
        Split.of(cache)
