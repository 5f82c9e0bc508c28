"""What a run ends with: the head beside the rules that do not look, as a table, a JSON file and two plots."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from eosjax.data import images
from eosjax.data.loader import SampleSource
from eosjax.evaluation import baselines, report
from eosjax.evaluation.frame import FrameScores, average_precision
from eosjax.evaluation.validate import EosSetting

HEAD = "EOS head"


def summarise(folder: Path, train: SampleSource, val: SampleSource, scores: FrameScores, eos: EosSetting) -> str:
    """Writes `frame_average_precision.json`, `precision_recall.png` and `timeline.png`, and returns the table for the console.

    Args:
      folder: where the files go.
      train: the split that the rules are fitted on.
      val: the split that everything is measured on.
      scores: of the EOS head on `val`.
      eos: its priors and threshold.
    """
    data = val.data
    fitted = np.zeros(data.num_frames, bool)
    fitted[train.anchors] = True
    rules = baselines.rule_scores(data.labels.ends, data.gripper, data.episode_starts, fitted)
    on_val = {HEAD: scores.logits, **{name: values[scores.frames] for name, values in rules.items()}}
    precisions = {name: average_precision(scores.ends, values) for name, values in on_val.items()}
    facts = {"episodes": len(val.episodes), "frames": len(scores.frames), "ends": int(scores.ends.sum())}
    content = json.dumps({**facts, "frame_average_precision": precisions}, indent=2)
    (folder / "frame_average_precision.json").write_text(content + "\n")
    report.plot_precision_recall(folder / "precision_recall.png", scores.ends, on_val)
    _plot_median_episode(folder / "timeline.png", val, scores, eos)
    return _table(precisions, **facts)


def _table(precisions: dict[str, float], episodes: int, frames: int, ends: int) -> str:
    width = max(map(len, precisions))
    lines = [f"Frame average precision on {episodes} validation episodes ({frames} steps, {ends} ends)"]
    for name, value in sorted(precisions.items(), key=lambda item: -item[1]):
        note = "   (the share of ends)" if name == baselines.ALWAYS_OFF else ""
        lines.append(f"  {name:<{width}}  {value:.3f}{note}")
    return "\n".join(lines)


def _plot_median_episode(path: Path, val: SampleSource, scores: FrameScores, eos: EosSetting) -> None:
    """The episode whose own average precision is the median of all: neither the best nor the worst that there is to show."""
    starts = val.data.episode_starts
    spans = [slice(*np.searchsorted(scores.frames, starts[[episode, episode + 1]])) for episode in val.episodes]
    spans = [span for span in spans if scores.ends[span].any()]
    quality = [average_precision(scores.ends[span], scores.logits[span]) for span in spans]
    span = spans[int(np.argsort(quality)[len(quality) // 2])]
    frames, ends = scores.frames[span], scores.ends[span]
    data, first = val.data, int(frames[0])
    report.plot_timeline(
        path,
        f"{data.describe(first).rsplit(',', 1)[0]}: {data.tasks[data.episode_of[first]]}",
        eos.probabilities(scores.logits[span]),
        ends,
        [data.labels.instructions[number] for number in data.labels.instruction_ids[frames]],
        [images.decode(data.images(int(frame))[0]) for frame in frames[ends]],
    )
