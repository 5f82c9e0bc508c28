"""What the baselines, and chance, say of a split."""

from __future__ import annotations

import numpy as np

from eosjax.data.loader import SampleSource
from eosjax.evaluation.baselines import BaselineInputs, baseline_scores
from eosjax.evaluation.measure import ScoredEpisode

CHANCE = "chance (random scores)"


def baselines_on(train: SampleSource, val: SampleSource) -> dict[str, list[ScoredEpisode]]:
    """What each baseline, and chance, says of the episodes of `val`, in their order."""
    data = val.data
    fitted = np.zeros(data.num_frames, bool)
    fitted[train.anchors] = True
    inputs = BaselineInputs(data.labels.ends, data.gripper, data.proprio, data.labels.instruction_ids, data.episode_starts)
    scores = dict(baseline_scores(inputs, fitted)) | {CHANCE: np.random.default_rng(0).random(data.num_frames)}
    spans = [slice(*data.episode_starts[[number, number + 1]].tolist()) for number in val.episodes.tolist()]
    ends = data.labels.ends.astype(bool)
    return {name: [ScoredEpisode(str(span.start), each[span], ends[span]) for span in spans] for name, each in scores.items()}
