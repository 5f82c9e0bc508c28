"""Statistics of actions and proprio in the layout of OpenVLA's `dataset_statistics.json`, and normalisation by them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eosjax.data.specs import Normalisation
from eosjax.types import UserError

STATS_FILE = "dataset_statistics.json"
_MOMENTS = ("mean", "std", "max", "min", "q01", "q99")
# A dimension is near-constant if its range is at most this share of its largest magnitude, or this small outright.
_NEAR_CONSTANT, _TINY = 1e-3, 1e-6


class StatsError(UserError):
    """Statistics that cannot be used."""


@dataclasses.dataclass(frozen=True, eq=False)
class FieldStats:
    """Statistics of one field over all steps: f64 [size] each; `mask` bool [size]: which dimensions are normalised."""

    mean: np.ndarray
    std: np.ndarray
    max: np.ndarray
    min: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, mask: np.ndarray | None = None) -> FieldStats:
        """Statistics of `values` [N size]; without a `mask` every dimension is normalised."""
        values = np.asarray(values, np.float64)
        q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
        return cls(
            mean=values.mean(axis=0),
            std=values.std(axis=0),
            max=values.max(axis=0),
            min=values.min(axis=0),
            q01=q01,
            q99=q99,
            mask=np.ones(values.shape[1], bool) if mask is None else np.asarray(mask, bool),
        )

    def bounds(self, kind: Normalisation) -> tuple[np.ndarray, np.ndarray]:
        """The values that become -1 and 1, f64 [size] each: the 1 % and 99 % quantiles, or the minimum and maximum."""
        return (self.q01, self.q99) if kind == "q99" else (self.min, self.max)


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetStats:
    """Statistics of a dataset."""

    action: FieldStats
    proprio: FieldStats
    num_transitions: int
    num_trajectories: int


def compute_stats(actions: np.ndarray, proprio: np.ndarray, num_trajectories: int, action_mask: tuple[bool, ...]) -> DatasetStats:
    """Statistics of actions [n a] (gripper 1 = open) and of the proprio [N p] of all steps; `action_mask`: the dimensions to normalise."""
    return DatasetStats(
        action=FieldStats.of(actions, np.asarray(action_mask)),
        proprio=FieldStats.of(proprio),
        num_transitions=len(proprio),
        num_trajectories=num_trajectories,
    )


def normalise(values: np.ndarray, stats: FieldStats, kind: Normalisation = "q99") -> np.ndarray:
    """OpenVLA's BOUNDS_Q99 ("q99") or BOUNDS: the bounds onto [-1, 1], clipped; f32 of the shape of `values` [... size].

    Dimensions outside the mask pass unchanged. Those within it that never vary (min = max) become 0, which `unnormalise` maps to their
    value. The original makes every dimension that never varies 0, also outside the mask, and there nothing maps it back: a gripper that
    is open in all of the data would be served as closed.
    """
    values = np.asarray(values, np.float32)
    low, high = stats.bounds(kind)
    width = (high - low + 1e-8).astype(np.float32)
    scaled = np.clip(2.0 * (values - low.astype(np.float32)) / width - 1.0, -1.0, 1.0)
    return np.where(stats.mask, np.where(stats.min == stats.max, 0.0, scaled), values).astype(np.float32)


def unnormalise(values: np.ndarray, stats: FieldStats, kind: Normalisation = "q99") -> np.ndarray:
    """Inverse of `normalise` for values between the bounds; f64 of the shape of `values` [... size]. Does not clip."""
    values = np.asarray(values, np.float64)
    low, high = stats.bounds(kind)
    return np.where(stats.mask, 0.5 * (values + 1.0) * (high - low + 1e-8) + low, values)


class FieldReport(NamedTuple):
    """What normalisation does to a field; [size] each."""

    near_constant: np.ndarray  # bool: normalised, though the range is so small that mostly noise would be magnified
    clipped: np.ndarray  # f64: share of the steps outside the bounds, whose values are lost


def describe(values: np.ndarray, stats: FieldStats, kind: Normalisation = "q99") -> FieldReport:
    """What `normalise` does to `values` [N size]. Dimensions that are not normalised, or that become 0, are never reported."""
    low, high = stats.bounds(kind)
    normalised = stats.mask & (stats.min != stats.max)
    magnitude = np.maximum(np.abs(stats.min), np.abs(stats.max))
    near_constant = high - low <= np.maximum(_NEAR_CONSTANT * magnitude, _TINY)
    # In the precision of the data: a bound that was rounded to float64 is not outside of itself.
    values = np.asarray(values, np.float32)
    outside = (values < low.astype(np.float32)) | (values > high.astype(np.float32))
    return FieldReport(near_constant & normalised, outside.mean(axis=0) * normalised)


def stats_to_json(stats: Mapping[str, DatasetStats]) -> dict[str, Any]:
    """`{dataset: {action: {mean, std, …, mask}, proprio: {…}, num_transitions, num_trajectories}}`, ready for JSON."""
    return {
        name: {
            "action": {key: getattr(each.action, key).tolist() for key in (*_MOMENTS, "mask")},
            "proprio": {key: getattr(each.proprio, key).tolist() for key in (*_MOMENTS, "mask")},
            "num_transitions": each.num_transitions,
            "num_trajectories": each.num_trajectories,
        }
        for name, each in stats.items()
    }


def save_stats(path: str | Path, stats: Mapping[str, DatasetStats]) -> None:
    """Writes the statistics of datasets by name as a JSON file (see `stats_to_json`), atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(stats_to_json(stats), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def stats_from_json(content: Mapping[str, Any], where: str = "statistics") -> DatasetStats:
    """The statistics of one dataset from what `stats_to_json` or OpenVLA has of it (a missing mask means all dimensions).

    Raises:
        StatsError: a missing field or one of another size; begins with `where`.
    """
    steps, episodes = content.get("num_transitions"), content.get("num_trajectories")
    if not isinstance(steps, int) or not isinstance(episodes, int):
        raise StatsError(f"{where}: num_transitions, num_trajectories: expected whole numbers, got {steps}, {episodes}")
    action, proprio = (_field(content.get(key), f"{where}/{key}") for key in ("action", "proprio"))
    return DatasetStats(action, proprio, steps, episodes)


def _field(values: Any, where: str) -> FieldStats:
    values = values if isinstance(values, dict) else {}
    missing = [moment for moment in _MOMENTS if moment not in values]
    if missing:
        raise StatsError(f"{where}: missing {', '.join(missing)}; found {', '.join(values) or 'nothing'}")
    try:
        moments = {moment: np.asarray(values[moment], np.float64) for moment in _MOMENTS}
    except (TypeError, ValueError) as error:
        raise StatsError(f"{where}: expected lists of numbers: {error}") from error
    mask = np.asarray(values.get("mask", [True] * moments["q01"].size), bool)
    shapes = {key: array.shape for key, array in (moments | {"mask": mask}).items()}
    if len(set(shapes.values())) != 1 or mask.ndim != 1:
        raise StatsError(f"{where}: expected lists of one length, got shapes {shapes}")
    return FieldStats(**moments, mask=mask)
