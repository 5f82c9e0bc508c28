"""The comparison of methods as a whole, on made-up hidden states."""

import json

import numpy as np
import pytest

from eosjax.bench import sweep
from eosjax.bench.methods import all_methods, choose
from eosjax.types import UserError
from tests.hidden import make_cache

SETTINGS = sweep.Settings(seeds=2, updates=60, batch=6, learning_rates=(1e-5, 1e-2))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return sweep.Bench.of(make_cache(tmp_path_factory.mktemp("sweep") / "cache", 16), SETTINGS)


@pytest.fixture(scope="module")
def results(bench):
    """By method, of those that differ in what the comparison does with them."""
    methods = all_methods(bench.cache.share_of_ends)
    told = []
    found = {name: sweep.run_method(bench, methods[name], told.append) for name in ("buffer_50", "bce", "detached", "balanced_sampler")}
    assert sum(told) == 4 * SETTINGS.updates
    return found


def test_all_methods_see_the_same_batches(bench):
    streams = bench.streams()
    feeds = {name: bench.feed(method, streams) for name, method in all_methods(bench.cache.share_of_ends).items()}
    drawn = feeds.pop("balanced_sampler")
    for feed in feeds.values():
        assert np.array_equal(feed, streams[:, : SETTINGS.updates])
    assert drawn.shape == (2, SETTINGS.updates, 35)
    held_out = bench.cache.columns.held_out
    for rows in (streams, drawn):
        assert not held_out[bench.cache.columns.episode_of[rows // bench.cache.chunk]].any()
    assert np.array_equal(np.asarray(bench.rows.labels)[drawn][..., :15], np.ones((2, SETTINGS.updates, 15)))


def test_learning_beats_the_detached_mistake(results):
    for name in ("buffer_50", "bce", "balanced_sampler"):
        assert results[name]["learning_rate"] == 1e-2
        assert results[name]["mean"]["frame/average_precision"] > results["detached"]["mean"]["frame/average_precision"] + 0.2
    for seed in results["detached"]["curve"]["frame_ap"]:
        assert len(set(seed)) == 1  # a head that never changes
    untrained = [each["curve"]["frame_ap"][0][0] for each in results.values()]
    assert len(set(untrained)) == 1  # every method begins with the same heads


def test_counts_of_training(results, bench):
    mean = {name: each["mean"] for name, each in results.items()}
    assert mean["detached"]["train/update_share"] == 0
    assert np.isnan(mean["detached"]["train/first_update"])
    assert mean["detached"]["train/uses_per_positive"] == 0
    assert (mean["bce"]["train/update_share"], mean["bce"]["train/first_update"], mean["bce"]["train/uses_per_positive"]) == (1, 1, 1)
    assert np.isnan(mean["bce"]["train/class_from_age"])
    labels = np.asarray(bench.rows.labels)
    for seed, figures in enumerate(results["buffer_50"]["seeds"]):
        passed = np.cumsum(labels[bench.streams()[seed][: SETTINGS.updates]].sum(1))
        first = int(np.argmax(passed >= 15)) + 1  # of the others there are 20 long before
        assert figures["train/first_update"] == first
        updates = SETTINGS.updates - first + 1
        assert figures["train/update_share"] == pytest.approx(updates / SETTINGS.updates)
        assert figures["train/uses_per_positive"] == pytest.approx(15 * updates / passed[-1])
        assert figures["train/age_positive"] > figures["train/age_negative"] > 0
        assert 0.5 < figures["train/class_from_age"] <= 1
        assert figures["train/loss_fresh"] > 0
        assert figures["train/loss_buffered"] > 0


def test_results_are_json_with_means_of_their_seeds(results):
    for each in results.values():
        assert len(each["seeds"]) == SETTINGS.seeds
        for name in ("event/f1@2", "exact/frame/nll", "deployed/event/f1@2"):
            assert each["mean"][name] == pytest.approx(np.mean([seed[name] for seed in each["seeds"]]))
            low, high = each["intervals"][name]
            assert low <= high
        assert each["curve"]["updates"][0] == 0
        assert each["curve"]["updates"][-1] == SETTINGS.updates
        for name in ("frame_ap", "event_f1"):
            assert np.shape(each["curve"][name]) == (SETTINGS.seeds, len(sweep.MEASURED))
        json.dumps(each)


def test_updates_to_90_percent_of_the_end_value():
    curve = np.zeros(len(sweep.MEASURED))
    curve[4:] = 0.89
    curve[6] = 0.5
    curve[7:] = np.linspace(0.9, 1, len(curve) - 7)
    settings = sweep.Settings(1, 300, 1)
    assert sweep._updates_to(curve, settings) == 10 * sweep.MEASURED[7]
    assert sweep._updates_to(np.ones(len(curve)), settings) == 0


def test_a_run_twice_is_the_same(results, bench):
    methods = all_methods(bench.cache.share_of_ends)
    assert json.dumps(sweep.run_method(bench, methods["buffer_50"])) == json.dumps(results["buffer_50"])


def test_methods_by_name():
    assert [method.name for method in choose("bce, buffer_50", 0.03)] == ["bce", "buffer_50"]
    assert len(choose(None, 0.03)) == len(all_methods(0.03)) == 15
    for text, message in (("bce,adaboost", "no method 'adaboost'; there are detached"), ("bce,bce", "named twice")):
        with pytest.raises(UserError, match=message):
            choose(text, 0.03)
