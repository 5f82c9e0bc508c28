"""Statistics of actions and proprio in the layout of OpenVLA's `dataset_statistics.json`, and normalisation by them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

_MOMENTS = ("mean", "std", "max", "min", "q01", "q99")


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


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetStats:
    """Statistics of a dataset."""

    action: FieldStats
    proprio: FieldStats
    num_transitions: int
    num_trajectories: int


def compute_stats(actions: np.ndarray, proprio: np.ndarray, num_trajectories: int, action_mask: tuple[bool, ...]) -> DatasetStats:
    """Statistics of actions [N a] (gripper 1 = open) and proprio [N p]; `action_mask`: the dimensions to normalise."""
    return DatasetStats(
        action=FieldStats.of(actions, np.asarray(action_mask)),
        proprio=FieldStats.of(proprio),
        num_transitions=len(actions),
        num_trajectories=num_trajectories,
    )


def normalise(values: np.ndarray, stats: FieldStats) -> np.ndarray:
    """BOUNDS_Q99 of OpenVLA: [q01, q99] onto [-1, 1], clipped; f32 of the shape of `values` [... size].

    Dimensions outside the mask pass unchanged; dimensions that never vary (min = max) become 0.
    """
    values = np.asarray(values, np.float32)
    q01, width = stats.q01.astype(np.float32), _width(stats).astype(np.float32)
    scaled = np.clip(2.0 * (values - q01) / width - 1.0, -1.0, 1.0)
    return np.where(stats.min == stats.max, 0.0, np.where(stats.mask, scaled, values)).astype(np.float32)


def unnormalise(values: np.ndarray, stats: FieldStats) -> np.ndarray:
    """Inverse of `normalise` for values between q01 and q99; f64 of the shape of `values` [... size]. Does not clip."""
    values = np.asarray(values, np.float64)
    return np.where(stats.mask, 0.5 * (values + 1.0) * _width(stats) + stats.q01, values)


def _width(stats: FieldStats) -> np.ndarray:
    return stats.q99 - stats.q01 + 1e-8


def save_stats(path: str | Path, name: str, stats: DatasetStats) -> None:
    """Writes `{name: {action: {mean, std, …, mask}, proprio: {…}, num_transitions, num_trajectories}}` as JSON."""

    def field(values: FieldStats) -> dict[str, Any]:
        return {key: getattr(values, key).tolist() for key in (*_MOMENTS, "mask")}

    body = {
        "action": field(stats.action),
        "proprio": field(stats.proprio),
        "num_transitions": stats.num_transitions,
        "num_trajectories": stats.num_trajectories,
    }
    Path(path).write_text(json.dumps({name: body}, indent=2) + "\n")


def load_stats(path: str | Path, name: str) -> DatasetStats:
    """Reads what `save_stats` or OpenVLA wrote (a missing mask means all dimensions).

    Raises:
        ValueError: not JSON, no statistics of `name`, or a missing field; names the file and what was found.
    """
    path = Path(path)
    try:
        datasets = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if name not in datasets:
        raise ValueError(f"{path}: expected statistics of {name!r}, found those of {', '.join(datasets) or 'none'}")

    def field(key: str) -> FieldStats:
        values = datasets[name].get(key, {})
        missing = [moment for moment in _MOMENTS if moment not in values]
        if missing:
            raise ValueError(f"{path}: {name}/{key}: missing {', '.join(missing)}; found {', '.join(values) or 'nothing'}")
        moments = {moment: np.asarray(values[moment], np.float64) for moment in _MOMENTS}
        return FieldStats(**moments, mask=np.asarray(values.get("mask", [True] * len(moments["q01"])), bool))

    body = datasets[name]
    return DatasetStats(field("action"), field("proprio"), int(body["num_transitions"]), int(body["num_trajectories"]))
