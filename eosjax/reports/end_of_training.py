"""What a training run ends with: the head beside baselines without images, as a table, a JSON file and two plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from eosjax.data.images import transforms
from eosjax.data.samples.source import SampleSource
from eosjax.ends.baselines import baselines_on
from eosjax.ends.comparison import HEAD, Comparison, compare
from eosjax.ends.events import ScoredEpisode
from eosjax.ends.frame import average_precision
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import ChunkedEpisode
from eosjax.reports.episode_plots import picture_timeline
from eosjax.reports.plots import png
from eosjax.reports.score_plots import frame_precision_recall
from eosjax.reports.tables import comparison_json, comparison_rows, table

COMPARISON_FILE = "comparison.json"


def write_comparison(
    folder: Path, train: SampleSource, val: SampleSource, episodes: Sequence[ChunkedEpisode], point: OperatingPoint
) -> str:
    """Writes `comparison.json`, `precision_recall.png` and `timeline.png`, and returns the table for the console.

    Args:
      folder: where the files go.
      train: the split that the baselines are fitted on.
      val: the split that everything is measured on.
      episodes: what the EOS head says of `val`, in its order.
      point: its probabilities.
    """
    head = [point.dense(each) for each in episodes]
    methods = {HEAD: head, **baselines_on(val.data, train.anchors, val.episodes)}
    comparison = compare(methods)
    ends = np.concatenate([each.ends for each in head])
    facts = {"episodes": len(head), "steps": ends.size, "ends": int(ends.sum())}
    (folder / COMPARISON_FILE).write_text(json.dumps({**facts, "methods": comparison_json(comparison)}, indent=1) + "\n", encoding="utf-8")
    scores = {name: np.concatenate([each.scores for each in episodes]) for name, episodes in methods.items()}
    (folder / "precision_recall.png").write_bytes(png(frame_precision_recall(ends, scores)))
    (folder / "timeline.png").write_bytes(png(_median_episode(val, head)))
    return _table(comparison, **facts)


def _table(comparison: Comparison, episodes: int, steps: int, ends: int) -> str:
    above = f"On {episodes} held-out episodes ({steps} steps, {ends} ends; every step judged; 95 % intervals over episodes)"
    return "\n  ".join([above, *table(comparison_rows(comparison)).splitlines()])


def _median_episode(val: SampleSource, head: Sequence[ScoredEpisode]) -> Figure:
    """The episode whose own average precision is the median of all: neither the best nor the worst that there is to show."""
    with_ends = [number for number, each in enumerate(head) if each.ends.any()]
    quality = [average_precision(head[number].ends, head[number].scores) for number in with_ends]
    number = with_ends[int(np.argsort(quality)[len(quality) // 2])]
    data, first = val.data, int(val.data.episode_starts[val.episodes[number]])
    frames = first + np.arange(head[number].ends.size)
    return picture_timeline(
        f"{data.describe(first).rsplit(',', 1)[0]}: {data.tasks[data.episode_of[first]]}",
        head[number].scores,
        head[number].ends,
        [data.labels.instructions[number] for number in data.labels.instruction_ids[frames]],
        [transforms.decode(data.images(int(frame))[0]) for frame in frames[head[number].ends]],
    )
