"""The statistics that a LeRobot dataset states, compared with those of its frames. Training uses the latter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import DatasetStats, FieldStats
from eosjax.documents import DocumentError, read_json

_FILE = "meta/stats.json"
_MOMENTS = ("min", "max", "mean", "std", "q01", "q99")
_ROUNDING = 1e-3  # of the range of a dimension


def compare_statistics(folder: Path, spec: DatasetSpec, stats: DatasetStats) -> list[str]:
    """What the statistics in `meta/stats.json` have otherwise than the frames, one line a field; [] if there is no such file.

    Dimensions that the description converts (a gripper that is not as stored, motion) and steps that it leaves out are not compared.

    Args:
        folder: of the dataset.
        spec: its description.
        stats: of its frames, as they are trained on.
    """
    path = folder / _FILE
    if not path.exists() or spec.skip_first or spec.motion == "reached_states":
        return []
    try:
        content = read_json(path)
    except DocumentError as error:
        return [f"{error}; not compared with the frames"]
    kept = spec.action_size if spec.gripper == "as_stored" else spec.action_size - 1
    fields = [("state", spec.state_keys, stats.proprio, spec.proprio_size)]
    if spec.motion == "as_stored":
        fields.insert(0, ("action", (spec.action_key,), stats.action, kept))
    return [line for name, keys, field, size in fields for line in _compare(content, name, keys, field, size)]


def _compare(content: Any, name: str, keys: tuple[str, ...], field: FieldStats, size: int) -> Iterator[str]:
    width = np.maximum(field.max - field.min, 1e-9)[:size]
    worst: dict[str, tuple[float, int]] = {}
    for moment in _MOMENTS:
        try:
            stated = np.concatenate([np.asarray(content[key][moment], np.float64).ravel() for key in keys])
        except (KeyError, TypeError, ValueError):
            continue  # not every writer states all of them
        if stated.size != getattr(field, moment).size:
            yield f"{_FILE}: {name}: expected {getattr(field, moment).size} numbers for {moment}, got {stated.size}"
            continue
        share = np.abs(stated[:size] - getattr(field, moment)[:size]) / width
        if not (share <= _ROUNDING).all():
            dimension = int(np.argmax(np.where(np.isnan(share), np.inf, share)))
            worst[moment] = float(share[dimension]), dimension
    if worst:
        each = ", ".join(f"{moment} by {share:.2g} of the range (dimension {dimension})" for moment, (share, dimension) in worst.items())
        yield f"{_FILE}: {name}: differs from the frames: {each}; the statistics of the frames are used"
