"""The statistics that a LeRobot dataset states, compared with those of its frames. Training uses the latter."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eosjax.data.episode import DatasetError
from eosjax.data.lerobot.tables import read_json_lines
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import DatasetStats, FieldStats
from eosjax.documents import DocumentError, read_json

_FILE = "meta/stats.json"
_EPISODES_FILE = "meta/episodes_stats.jsonl"  # of version 2.1, which has no statistics of all episodes
_MOMENTS = ("min", "max", "mean", "std", "q01", "q99")
_OF_EPISODES = ("min", "max", "mean", "std", "count")
_ROUNDING = 1e-3  # of the range of a dimension


def compare_statistics(folder: Path, spec: DatasetSpec, stats: DatasetStats) -> list[str]:
    """What the statistics in `meta/stats.json` have otherwise than the frames, one line a field; [] if there is no such file.

    Version 2.1 states those of each episode: they are pooled. Dimensions that the description converts (a gripper that is not as stored,
    motion) and steps that it leaves out are not compared.

    Args:
        folder: of the dataset.
        spec: its description.
        stats: of its frames, as they are trained on.
    """
    file = next((name for name in (_FILE, _EPISODES_FILE) if (folder / name).exists()), None)
    if file is None or spec.skip_first or spec.motion == "reached_states":
        return []
    try:
        content = read_json(folder / file) if file == _FILE else _pooled(folder / file, {spec.action_key, *spec.state_keys})
    except (DocumentError, DatasetError) as error:
        return [f"{error}; not compared with the frames"]
    kept = spec.action_size if spec.gripper == "as_stored" else spec.action_size - 1
    fields = [("state", spec.state_keys, stats.proprio, spec.proprio_size)]
    if spec.motion == "as_stored":
        fields.insert(0, ("action", (spec.action_key,), stats.action, kept))
    return [line for name, keys, field, size in fields for line in _compare(content, file, name, keys, field, size)]


def _pooled(path: Path, keys: set[str]) -> dict[str, dict[str, np.ndarray]]:
    """The statistics of all episodes together, by feature, from a line for each episode. Quantiles cannot be pooled."""
    columns = {(key, each): array("d") for key in keys for each in _OF_EPISODES}
    sizes: dict[tuple[str, str], int] = {}
    episodes = 0
    for episodes, row in enumerate(read_json_lines(path), 1):
        for (key, each), column in columns.items():
            try:
                values = row["stats"][key][each]
                column.extend(values)
                if len(values) != sizes.setdefault((key, each), len(values)):
                    raise ValueError
            except (KeyError, TypeError, ValueError) as error:
                what = f"{', '.join(_OF_EPISODES)}, as many numbers each as in the first line"
                raise DatasetError(f"{path}, line {episodes}: stats: {key}: expected {what}") from error
    if not episodes:
        raise DatasetError(f"{path}: expected a line for each episode, got none")
    try:
        return {key: _pool(*(np.frombuffer(columns[key, each]).reshape(episodes, -1) for each in _OF_EPISODES)) for key in keys}
    except ValueError as error:
        raise DatasetError(f"{path}: expected one count, and as many numbers for mean as for std") from error


def _pool(low: np.ndarray, high: np.ndarray, mean: np.ndarray, std: np.ndarray, count: np.ndarray) -> dict[str, np.ndarray]:
    """Of statistics [E size] of episodes with `count` [E 1] steps."""
    share = count / count.sum()
    centre = (share * mean).sum(axis=0)
    spread = np.sqrt((share * (std**2 + (mean - centre) ** 2)).sum(axis=0))
    return {"min": low.min(axis=0), "max": high.max(axis=0), "mean": centre, "std": spread}


def _compare(content: Any, file: str, name: str, keys: tuple[str, ...], field: FieldStats, size: int) -> Iterator[str]:
    width = np.maximum(field.max - field.min, 1e-9)[:size]
    worst: dict[str, tuple[float, int]] = {}
    for moment in _MOMENTS:
        try:
            stated = np.concatenate([np.asarray(content[key][moment], np.float64).ravel() for key in keys])
        except (KeyError, TypeError, ValueError):
            continue  # not every writer states all of them
        if stated.size != getattr(field, moment).size:
            yield f"{file}: {name}: expected {getattr(field, moment).size} numbers for {moment}, got {stated.size}"
            continue
        share = np.abs(stated[:size] - getattr(field, moment)[:size]) / width
        if not (share <= _ROUNDING).all():
            dimension = int(np.argmax(np.where(np.isnan(share), np.inf, share)))
            worst[moment] = float(share[dimension]), dimension
    if worst:
        each = ", ".join(f"{moment} by {share:.2g} of the range (dimension {dimension})" for moment, (share, dimension) in worst.items())
        yield f"{file}: {name}: differs from the frames: {each}; the statistics of the frames are used"
