"""What is written is what is read, and half a cache is none."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.runs.hidden import COLUMNS, FACTS, HIDDEN, CacheError, fingerprint, open_cache, write_cache
from tests import hidden as made


@pytest.fixture
def cache(tmp_path):
    return made.make_cache(tmp_path / "cache")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip(tmp_path, dtype):
    columns = made.make_columns()
    hidden = made.make_hidden(columns).astype(jnp.dtype(dtype))
    write_cache(tmp_path / "c", hidden.shape, dtype, np.array_split(hidden, 5), columns, made.FACTS)
    cache = open_cache(tmp_path / "c")
    assert cache.hidden.dtype == hidden.dtype
    assert np.array_equal(cache.hidden, hidden)
    assert isinstance(cache.hidden, np.memmap)
    for field in dataclasses.fields(columns):
        assert np.array_equal(getattr(cache.columns, field.name), getattr(columns, field.name))
    assert cache.facts | made.FACTS == cache.facts
    assert jnp.asarray(cache.hidden).dtype == jnp.dtype(dtype)


def test_labels_and_valid_slots_step_by_step(cache):
    columns, chunk = cache.columns, cache.chunk
    labels, valid = columns.labels(chunk), columns.valid(chunk)
    for episode, (first, end) in enumerate(zip(columns.episode_starts, columns.episode_starts[1:], strict=False)):
        for frame in range(first, end):
            assert columns.episode_of[frame] == episode
            for slot in range(chunk):
                inside = frame + slot < end
                assert valid[frame, slot] == inside
                assert labels[frame, slot] == (inside and columns.ends[frame + slot])


def test_training_frames(cache):
    held = [np.arange(*cache.columns.episode_starts[[e, e + 1]]) for e in np.flatnonzero(cache.columns.held_out)]
    rest = np.setdiff1d(np.arange(len(cache.hidden)), np.concatenate(held))
    assert np.array_equal(cache.train_frames, rest)
    assert cache.share_of_ends == cache.columns.ends[rest].mean()


@pytest.mark.parametrize("rows", [-1, 1])
def test_wrong_number_of_rows_leaves_nothing(tmp_path, rows):
    columns = made.make_columns()
    hidden = made.make_hidden(columns)
    with pytest.raises(CacheError, match=f"expected {len(hidden)} rows"):
        write_cache(
            tmp_path / "c",
            (len(hidden), *hidden.shape[1:]),
            "float32",
            [np.resize(hidden, (len(hidden) + rows, *hidden.shape[1:]))],
            columns,
            {},
        )
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path, cache):
    folder = tmp_path / "cache"
    with pytest.raises(CacheError, match="new or empty"):
        write_cache(folder, cache.hidden.shape, "float32", [], cache.columns, {})
    with pytest.raises(CacheError, match="no cache.json"):
        open_cache(tmp_path)
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps(facts | {"format": 0}))
    with pytest.raises(CacheError, match="expected format 1, got 0"):
        open_cache(folder)
    (folder / FACTS).write_text(json.dumps(facts | {"shape": [1, 2, 3, 4]}))
    with pytest.raises(CacheError, match=r"damaged: expected float32 \[1, 2, 3, 4\]"):
        open_cache(folder)
    (folder / FACTS).write_text(json.dumps(facts))
    for name in (HIDDEN, COLUMNS):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(CacheError, match="damaged"):
            open_cache(folder)
        (folder / name).write_bytes(content)


def test_fingerprint_tells_content_and_order():
    a, b = np.arange(3), np.arange(4)
    assert fingerprint({"x": 1}, a) == fingerprint({"x": 1}, a.copy())
    assert len({fingerprint({"x": 1}, a), fingerprint({"x": 2}, a), fingerprint({"x": 1}, b), fingerprint(a, {"x": 1})}) == 4
