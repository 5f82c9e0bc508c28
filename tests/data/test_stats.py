import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.stats import FieldStats, compute_stats, load_stats, normalise, save_stats, unnormalise

MASK = (True,) * 6 + (False,)


@pytest.fixture
def stats():
    rng = np.random.default_rng(0)
    return compute_stats(rng.normal(size=(500, 7)), rng.normal(size=(500, 8)), 12, MASK)


def recorded(arrays, field: str) -> FieldStats:
    moments = {key: arrays[f"stat_{field}_{key}"] for key in ("mean", "std", "max", "min", "q01", "q99")}
    mask_key = f"stat_{field}_mask"
    mask = arrays[mask_key] if mask_key in arrays else np.ones(len(moments["q01"]), bool)
    return FieldStats(**moments, mask=mask)


@pytest.mark.parametrize("field", ["action", "proprio"])
def test_normalise_matches_the_original(golden, field):
    arrays = np.load(golden / "data" / "normalize_tf.npz")
    normalised = normalise(arrays[field], recorded(arrays, field))
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, arrays[f"bounds_q99_{field}"], atol=1e-6)


def test_unnormalise_and_evaluation_proprio_match_the_original(golden):
    arrays = np.load(golden / "data" / "unnormalize.npz")
    stats = load_stats(golden / "data" / "norm_stats.json", "tiny_libero")
    np.testing.assert_allclose(unnormalise(arrays["normalized"], stats.action), arrays["unnormalized"], atol=1e-7)
    proprio = normalise(arrays["proprio_raw"], stats.proprio)
    np.testing.assert_allclose(proprio, arrays["proprio_normalized_eval"], atol=1e-5)


def test_moments():
    values = np.column_stack([np.arange(101.0), np.full(101, 3.0)])
    stats = FieldStats.of(values)
    np.testing.assert_allclose(stats.mean, [50.0, 3.0])
    np.testing.assert_allclose(stats.std, [np.sqrt(850.0), 0.0])
    np.testing.assert_allclose([stats.min, stats.q01, stats.q99, stats.max], [[0, 3], [1, 3], [99, 3], [100, 3]])


def test_constant_dimension_is_zero_and_unmasked_one_passes(stats):
    values = np.column_stack([np.linspace(-5.0, 5.0, 40), np.full(40, 7.0), np.linspace(0.0, 2.0, 40)])
    normalised = normalise(values, FieldStats.of(values, np.array([True, True, False])))
    np.testing.assert_array_equal(normalised[:, 1], 0.0)
    np.testing.assert_array_equal(normalised[:, 2], values[:, 2].astype(np.float32))
    assert normalised[:, 0].min() == -1.0
    assert normalised[:, 0].max() == 1.0


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.floats(1e-3, 1e3))
def test_round_trip_within_the_range(seed, steps, scale):
    values = np.random.default_rng(seed).normal(scale=scale, size=(steps, 7))
    stats = FieldStats.of(values, np.asarray(MASK))
    inside = np.clip(values, stats.q01, stats.q99)
    np.testing.assert_allclose(unnormalise(normalise(inside, stats), stats), inside, atol=2e-6 * scale * 10)


def test_saved_in_the_originals_layout_and_loaded_again(stats, tmp_path):
    path = tmp_path / "dataset_statistics.json"
    save_stats(path, "some", stats)
    body = json.loads(path.read_text())["some"]
    assert list(body) == ["action", "proprio", "num_transitions", "num_trajectories"]
    assert (body["num_transitions"], body["num_trajectories"]) == (500, 12)
    assert body["action"]["mask"] == list(MASK)
    loaded = load_stats(path, "some")
    for field in ("action", "proprio"):
        for key in ("mean", "std", "max", "min", "q01", "q99", "mask"):
            np.testing.assert_array_equal(getattr(getattr(loaded, field), key), getattr(getattr(stats, field), key))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"other": {}}', "expected statistics of 'some', found those of other"),
        ('{"some": {"action": {"mean": [0]}}}', "some/action: missing std, max, min, q01, q99; found mean"),
    ],
)
def test_unusable_files(tmp_path, content, message):
    path = tmp_path / "stats.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        load_stats(path, "some")
