"""Heads fitted on stored hidden states: what each update is made of, which head is kept, and that it is that of the bench's trainer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.training import head_fit
from eosjax.training.head_fit import EVENT_AP, FRAME_AP, FitPlan, FittedHead, Pass, episodes_by, fit_heads, held_out_episodes
from tests.hidden import CHUNK, make_cache

CONFIG = TrainConfig(eos_hidden_dim=8, eos_sample_positive=2, eos_sample_negative=3, eos_min_positive=2, eos_min_negative=3)
PLAN = FitPlan(seeds=(3, 4), passes=3, patience=None, batch_size=32, learning_rate=1e-2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("fit") / "cache", episodes=9)


def fit(cache, config=CONFIG, plan=PLAN):
    """(heads, passes, calls of `advanced`)"""
    passes, advanced = [], []
    heads = fit_heads(cache, config, plan, lambda *made: advanced.append(made), passes.append)
    return heads, passes, advanced


@pytest.fixture(scope="module")
def fitted(cache):
    return fit(cache)


def test_a_head_learns_what_the_states_tell(cache, fitted):
    heads, passes, _ = fitted
    assert [head.seed for head in heads] == [3, 4]
    assert [each.number for each in passes] == [1, 2, 3]
    for i, head in enumerate(heads):
        assert (head.passes, head.figures) == (3, passes[-1].figures[i])
        assert passes[-1].loss[i] < passes[0].loss[i] < np.log(2) + 0.3
        assert head.figures[FRAME_AP] > 0.5  # ends are a fifth of the steps
    other = [np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(head.params) for head in heads), strict=True)]
    assert not all(other)


def test_what_a_kept_head_says_is_what_was_measured(cache, fitted):
    head = fitted[0][1]
    kernel = {name: np.asarray(layer["kernel"]) for name, layer in head.params.items()}
    bias = {name: np.asarray(layer["bias"]) for name, layer in head.params.items()}
    for episode in (said := episodes_by(cache, CONFIG, head.params)):
        number = int(episode.name.removeprefix("episode "))
        frames = cache.columns.frames_of(np.array([number]))
        x = np.asarray(cache.hidden[frames]).reshape(*episode.logits.shape, -1)
        for layer in ("fc1", "fc2"):
            x = np.maximum(x @ kernel[layer] + bias[layer], 0)
        np.testing.assert_allclose(episode.logits, (x @ kernel["fc3"] + bias["fc3"])[..., 0], rtol=1e-3, atol=1e-3)
        assert np.array_equal(episode.ends, cache.columns.ends[frames])
    assert len(said) == cache.columns.held_out.sum()


def test_progress_is_that_of_all_passes(cache, fitted):
    made, totals = zip(*fitted[2], strict=True)
    assert set(totals) == {sum(made)}
    rows = cache.columns.valid(CHUNK)[cache.train_frames].sum()
    assert sum(made) // 3 in range(rows // 32, rows // 32 + len(made) // 3 + 1)


def test_the_same_seed_gives_the_same_head_whatever_the_others(cache, fitted):
    """Segments are cut to what fits the memory: neither that nor the other seeds change a head, but for rounding."""
    alone, *_ = fit(cache, plan=dataclasses.replace(PLAN, seeds=(4,)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), alone[0].params, fitted[0][1].params)


@pytest.mark.parametrize("kind", ["balanced_buffer", "bce"])
def test_an_update_brings_training_rows_alone_and_in_the_shares_of_the_loss(cache, kind):
    made = head_fit._Fit(cache, dataclasses.replace(CONFIG, eos_loss=kind), PLAN)
    batches = np.concatenate(list(made._feed(3, 1))).reshape(-1, 32)
    frames, slots = np.divmod(batches, CHUNK)
    assert not cache.columns.held_out[cache.columns.episode_of[frames]].any()
    assert cache.columns.valid(CHUNK)[frames, slots].all()
    ends = cache.columns.labels(CHUNK)[frames, slots]
    if kind == "balanced_buffer":
        assert (ends.sum(1) == round(32 * 2 / 5)).all()
    else:
        assert set(batches.flat) == set(made.rows)  # each row at least once
        assert np.bincount(batches.flat).max() <= 2
        assert ends.mean() == pytest.approx(cache.columns.labels(CHUNK)[cache.train_frames].mean(), rel=0.3)
    again = np.concatenate(list(made._feed(3, 2))).reshape(-1, 32)
    assert not np.array_equal(batches, again)


def passes_of(*event_aps):
    return [Pass(n, [0.5], [{EVENT_AP: value, FRAME_AP: 0.5}]) for n, value in enumerate(event_aps, start=1)]


@pytest.mark.parametrize(
    ("patience", "kept", "made"),
    [(None, 6, 6), (1, 2, 3), (2, 5, 6), (3, 5, 6)],
)
def test_early_stopping_keeps_the_best_pass(patience, kept, made):
    best, seen = head_fit._Best(dataclasses.replace(PLAN, seeds=(3,), patience=patience)), 0
    for done in passes_of(float("nan"), 0.5, 0.5, 0.4 if patience == 1 else 0.6, 0.7, 0.1):
        runs = head_fit.Runs(None, {"eos_head": {"x": jnp.array([float(done.number)])}}, None, None, None, None)
        best.see(done, runs)
        seen = done.number
        if best.over:
            break
    assert (best.heads[0].passes, best.heads[0].params["x"], seen) == (kept, kept, made)


def test_heads_are_compared_by_event_ap():
    figures = [FittedHead(0, None, 1, {EVENT_AP: value}).event_ap for value in (0.3, float("nan"))]
    assert figures == [0.3, -1.0]


def test_held_out_episodes_are_cut_where_they_end(cache):
    frames = cache.columns.frames_of(np.flatnonzero(cache.columns.held_out))
    episodes = held_out_episodes(cache, np.repeat(frames[:, None], CHUNK, 1).astype(np.float32))
    assert np.array_equal(np.concatenate([each.logits[:, 0] for each in episodes]), frames)
    assert [each.name for each in episodes] == [f"episode {number}" for number in np.flatnonzero(cache.columns.held_out)]
