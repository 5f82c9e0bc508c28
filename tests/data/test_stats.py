import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.data.stats import FieldStats, StatsError, compute_stats, describe, normalise, save_stats, stats_from_json, unnormalise

MASK = (True,) * 6 + (False,)
# Statistics of one field in which the mean and the number of trajectories are left open.
FIELDS = '{"action": {"mean": %s, "std": [0], "max": [0], "min": [0], "q01": [0], "q99": [0]}, '
FIELDS += '"num_transitions": 3, "num_trajectories": %s}'


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
    stats = stats_from_json(json.loads((golden / "data" / "norm_stats.json").read_text())["tiny_libero"])
    np.testing.assert_allclose(unnormalise(arrays["normalized"], stats.action), arrays["unnormalized"], atol=1e-7)
    proprio = normalise(arrays["proprio_raw"], stats.proprio)
    np.testing.assert_allclose(proprio, arrays["proprio_normalized_eval"], atol=1e-5)


def test_moments():
    values = np.column_stack([np.arange(101.0), np.full(101, 3.0)])
    stats = FieldStats.of(values)
    np.testing.assert_allclose(stats.mean, [50.0, 3.0])
    np.testing.assert_allclose(stats.std, [np.sqrt(850.0), 0.0])
    np.testing.assert_allclose([stats.min, stats.q01, stats.q99, stats.max], [[0, 3], [1, 3], [99, 3], [100, 3]])


@pytest.mark.parametrize("kind", ["q99", "bounds"])
def test_constant_dimensions_keep_their_value_and_unmasked_ones_pass(kind):
    """Deviation: the original (`normalize_action_and_proprio`) makes a constant dimension 0 also outside the mask, where its way back
    passes that 0 on: a gripper that is always open (1) in the data would close."""
    columns = {
        "varies": np.linspace(-5.0, 5.0, 40),
        "constant": np.full(40, 7.0),
        "passes": np.linspace(0.0, 2.0, 40),
        "always open": np.ones(40),
    }
    values = np.column_stack(list(columns.values()))
    stats = FieldStats.of(values, np.array([True, True, False, False]))
    normalised = normalise(values, stats, kind)
    np.testing.assert_array_equal(normalised[:, 1], 0.0)
    np.testing.assert_array_equal(normalised[:, 2:], values[:, 2:].astype(np.float32))
    assert (normalised[:, 0].min(), normalised[:, 0].max()) == (-1.0, 1.0)
    served = unnormalise(normalised, stats, kind)
    np.testing.assert_allclose(served[:, 1:], values[:, 1:], rtol=0, atol=1e-7)


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.floats(1e-3, 1e3), st.floats(-5, 5), st.sampled_from(["q99", "bounds"]))
def test_round_trip_within_the_range(seed, steps, scale, offset, kind):
    values = np.random.default_rng(seed).normal(scale=scale, size=(steps, 7)) + offset * scale
    stats = FieldStats.of(values, np.asarray(MASK))
    inside = np.clip(values, *stats.bounds(kind))
    inside[:, -1] = values[:, -1]  # not normalised, hence not clipped
    tolerance = 20 * np.finfo(np.float32).eps * np.abs(values).max() + 1e-8
    np.testing.assert_allclose(unnormalise(normalise(inside, stats, kind), stats, kind), inside, rtol=0, atol=tolerance)


def test_near_constant_dimensions_and_clipped_values_are_found():
    steps = np.linspace(0.0, 1.0, 1001)
    columns = {
        "wide": steps,
        "rests": np.where(steps < 0.995, 2.0, 5.0),  # hardly ever leaves one value
        "noise": 3.0 + 1e-5 * steps,
        "small": 1e-3 * steps,
        "never": np.full(1001, 4.0),  # becomes 0: nothing is magnified
        "apart": 3.0 + 1e-5 * steps,  # not normalised
    }
    values = np.column_stack(list(columns.values()))
    mask = np.array([name != "apart" for name in columns])
    report = describe(values, FieldStats.of(values, mask))
    assert [name for name, flag in zip(columns, report.near_constant, strict=True) if flag] == ["rests", "noise"]
    # One in a hundred lies below the 1 % quantile, one above the 99 % quantile.
    np.testing.assert_allclose(report.clipped[[0, 1, 3, 4, 5]], [0.02, 6 / 1001, 0.02, 0.0, 0.0], atol=2e-3)
    assert not describe(values, FieldStats.of(values, mask), "bounds").clipped.any()


@pytest.mark.parametrize("field", ["action", "proprio"])
def test_bounds_normalisation_matches_the_original(golden, field):
    arrays = np.load(golden / "data" / "normalize_tf.npz")
    normalised = normalise(arrays[field], recorded(arrays, field), "bounds")
    np.testing.assert_allclose(normalised, arrays[f"bounds_{field}"], atol=1e-6)


def test_saved_in_the_originals_layout_and_loaded_again(stats, tmp_path):
    path = tmp_path / "dataset_statistics.json"
    save_stats(path, {"some": stats, "other": stats})
    body = json.loads(path.read_text())["some"]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert list(body) == ["action", "proprio", "num_transitions", "num_trajectories"]
    assert (body["num_transitions"], body["num_trajectories"]) == (500, 12)
    assert body["action"]["mask"] == list(MASK)
    loaded = stats_from_json(body)
    for field in ("action", "proprio"):
        for key in ("mean", "std", "max", "min", "q01", "q99", "mask"):
            np.testing.assert_array_equal(getattr(getattr(loaded, field), key), getattr(getattr(stats, field), key))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FIELDS % ("[0]", "null"), "some: num_transitions, num_trajectories: expected whole numbers, got 3, None"),
        ('{"action": {"mean": [0]}, "num_transitions": 1, "num_trajectories": 1}', "some/action: missing std, max, min, q01, q99"),
        (FIELDS % ('["a"]', "2"), "some/action: expected lists of numbers"),
        (FIELDS % ("[0, 1]", "2"), "some/action: expected lists of one length, got shapes .*'mean': .2,"),
    ],
)
def test_unusable_statistics(content, message):
    with pytest.raises(StatsError, match=message):
        stats_from_json(json.loads(content), "some")
