"""A policy on all steps of a split: its action error, and how well its EOS head tells the ends, in both protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from eosjax.config import TrainConfig
from eosjax.data.samples.source import SampleSource
from eosjax.ends.measure import DEPLOYED, measure_decisions, measure_scores
from eosjax.ends.operating_points import OperatingPoint, choose, selection
from eosjax.ends.protocols import ChunkedEpisode
from eosjax.runs.data import episode_ends
from eosjax.types import Batch


class Predictions(NamedTuple):
    """What a policy says on a split."""

    action_loss: float  # mean absolute error of the normalised actions
    episodes: list[ChunkedEpisode]  # in the order of the store; what the EOS head says, or zeros without one


def predict_split(
    predict: Callable[[Batch], Any],
    batches: Iterable[Batch],
    anchors: np.ndarray,
    ends: np.ndarray,
    episode_of: np.ndarray,
    gather: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda rows: rows,
) -> Predictions:
    """Runs the policy over a split.

    Args:
      predict: maps a host batch to something with `l1_sum`, `l1_count` and `eos_logits` (device axis first).
      batches: the split, or what this process has of it, each sample once; rows of key -1 are ignored.
      anchors: i64 [n], the frame of each sample, by key: all frames of some episodes, in order.
      ends: bool [N], truth for all frames of the store.
      episode_of: i64 [N], the episode of each frame.
      gather: makes rows [n ...] of this process those of all.
    """
    keys, found, sums = [], [], []
    for batch in batches:
        predictions = predict(batch)
        keys.append(batch.key)
        found.append(np.asarray(predictions.eos_logits, np.float32).reshape(batch.eos.shape))
        sums.append([np.sum(predictions.l1_sum), np.sum(predictions.l1_count)])
    rows = gather({"keys": np.concatenate(keys), "logits": np.concatenate(found), "sums": np.asarray(sums)})
    total, count = (sum(column.tolist()) for column in rows["sums"].T)
    order = np.flatnonzero(rows["keys"] >= 0)
    order = order[np.argsort(rows["keys"][order])]
    if not np.array_equal(rows["keys"][order], np.arange(len(anchors))):
        raise ValueError(f"batches: expected each of {len(anchors)} samples once, got the keys {rows['keys'][order]}")
    logits = rows["logits"][order]
    numbers = episode_of[anchors]
    starts = np.flatnonzero(np.diff(numbers)) + 1
    columns = (np.split(column, starts) for column in (numbers, logits, ends[anchors].astype(bool)))
    episodes = [ChunkedEpisode(f"episode {number[0]}", each, truth) for number, each, truth in zip(*columns, strict=True)]
    return Predictions(total / max(count, 1.0), episodes)


def operate(
    episodes: Sequence[ChunkedEpisode], config: TrainConfig, share: float, train: SampleSource
) -> tuple[OperatingPoint, dict[str, float]]:
    """Chooses calibration and operating point on held-out episodes, and measures there: what every validation ends with.

    Args:
      episodes: held out, with what the EOS head says.
      config: of the run that the head was trained in.
      share: of ends in the training data of that run.
      train: the training split.

    Returns:
      The point, and the `val/...` columns of the metrics.
    """
    point = choose(episodes, selection(config, share, episode_ends(train)))
    return point, {f"val/{name}": value for name, value in figures(episodes, point).items()}


def figures(episodes: Sequence[ChunkedEpisode], point: OperatingPoint) -> dict[str, float]:
    """The figures of both protocols that are defined, by name (see `eosjax.ends.measure`), the deployed one's with the prefix `DEPLOYED`.

    Args:
      episodes: at least one.
      point: at which they are measured.
    """
    dense = measure_scores([point.dense(each) for each in episodes], point.dense_threshold, replicates=0).values
    deployed = measure_decisions([point.deployed(each) for each in episodes], replicates=0).values
    both = dense | {f"{DEPLOYED}{name}": value for name, value in deployed.items()}
    return {name: value for name, value in both.items() if np.isfinite(value)}
