"""Trains an EOS head anew on the hidden states of a policy that stands still.

The states come from a folder (`runs.hidden`), read in place: of all rows, an update needs its own in memory. A row is one slot of one
chunk. Several heads, one a seed, are trained at once (`training.heads`), and after each pass over the training rows they are measured on
the held-out episodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eosjax.config import TrainConfig
from eosjax.ends.calibration import exact_calibration
from eosjax.ends.events import MAIN_COLLAR
from eosjax.ends.measure import measure_scores
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import ChunkedEpisode
from eosjax.models.heads import EosHead
from eosjax.runs.hidden import HiddenCache
from eosjax.training.heads import BLOCK, HeadTrainer, Rows, Runs
from eosjax.training.objectives import FreshObjective

EVENT_AP, FRAME_AP = f"event/ap@{MAIN_COLLAR}", "frame/average_precision"
_GATHERED = 128_000_000  # bytes of hidden states that are brought to the device at once


@dataclasses.dataclass(frozen=True)
class FitPlan:
    """How heads are fitted.

    Attributes:
      seeds: of weights, order and draws, one head each.
      passes: over the training rows: as many updates as it takes to bring as many rows as there are.
      patience: passes without a better event AP of any head, after which no more are made, and each head is that of its best pass; None:
        all passes are made, and each head is that of the last.
      batch_size: rows of an update.
      learning_rate: a tenth of it from two thirds of the passes on.
    """

    seeds: tuple[int, ...]
    passes: int
    patience: int | None
    batch_size: int
    learning_rate: float


class Pass(NamedTuple):
    """What is known after a pass; lists by seed."""

    number: int  # from 1 on
    loss: list[float]  # mean over the pass
    figures: list[dict[str, float]]  # on the held-out episodes, dense protocol, without a fitted calibration


class FittedHead(NamedTuple):
    """A head that is done."""

    seed: int
    params: Any
    passes: int  # made
    figures: dict[str, float]  # of that pass

    @property
    def event_ap(self) -> float:
        """By which heads are compared; -1 where the held-out episodes have no end."""
        return float(np.nan_to_num(self.figures[EVENT_AP], nan=-1.0))


def fit_heads(
    cache: HiddenCache, config: TrainConfig, plan: FitPlan, advanced: Callable[[int, int], object], report: Callable[[Pass], object]
) -> list[FittedHead]:
    """Fits a head for each seed.

    With a loss that draws from a buffer (`config.uses_buffer`) every update draws from *all* training rows, in the shares of the classes
    that the flags name. With another loss it brings the next rows of a permutation, a new one each pass.

    Args:
      cache: hidden states, with the labels to be learnt.
      config: its `eos_*` flags describe head and loss.
      plan: of the fit.
      advanced: told the updates just made, and those of all passes.
      report: told what is known after each pass.

    Returns:
      The heads, in the order of the seeds.
    """
    fit = _Fit(cache, config, plan)
    runs, best = fit.start(), _Best(plan)
    for number in range(1, plan.passes + 1):
        runs, loss = fit.make_pass(runs, number, advanced)
        logits = held_out_logits(cache, fit.trainer, runs.params)
        done = Pass(number, loss, [fit.measure(each) for each in logits])
        report(done)
        best.see(done, runs)
        if best.over:
            break
    return best.heads


class _Best:
    """Keeps the heads that the plan asks for."""

    def __init__(self, plan: FitPlan) -> None:
        self._plan = plan
        self._since = 0  # passes without a better one
        self.heads: list[FittedHead] = []

    def see(self, done: Pass, runs: Runs) -> None:
        """Takes those heads of a pass that are better than before, or all without early stopping."""
        old = self.heads or [None] * len(self._plan.seeds)
        new = [
            FittedHead(seed, jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), runs.params["eos_head"]), done.number, done.figures[i])
            for i, seed in enumerate(self._plan.seeds)
        ]
        better = [self._beats(now, before) for now, before in zip(new, old, strict=True)]
        self._since = 0 if any(better) else self._since + 1
        self.heads = [now if wins or before is None else before for now, before, wins in zip(new, old, better, strict=True)]

    @property
    def over(self) -> bool:
        """Whether the patience is at its end."""
        return self._plan.patience is not None and self._since >= self._plan.patience

    def _beats(self, now: FittedHead, before: FittedHead | None) -> bool:
        return self._plan.patience is None or before is None or now.event_ap > before.event_ap


class _Fit:
    """What stays the same from pass to pass."""

    def __init__(self, cache: HiddenCache, config: TrainConfig, plan: FitPlan) -> None:
        self.cache, self.plan = cache, plan
        k = cache.chunk
        labels, valid = cache.columns.labels(k).reshape(-1), cache.columns.valid(k).reshape(-1)
        slots = (cache.train_frames[:, None] * k + np.arange(k)).reshape(-1)
        self.labels, self.rows = labels, slots[valid[slots]]
        self.positive_share = None
        if config.uses_buffer:
            self.positive_share = config.eos_sample_positive / (config.eos_sample_positive + config.eos_sample_negative)
        share = cache.share_of_ends
        head = EosHead(hidden_dim=config.eos_hidden_dim, dropout=config.eos_dropout)
        objective = FreshObjective(config.eos_threshold, "bce" if config.uses_buffer else config.eos_loss, share)
        needed = -(-self.rows.size // plan.batch_size)
        row_bytes = int(np.prod(cache.hidden.shape[2:])) * cache.hidden.dtype.itemsize
        self.segment = int(np.clip(_GATHERED // (row_bytes * plan.batch_size * len(plan.seeds)), 1, needed))  # updates at once
        self.segments = -(-needed // self.segment)
        self.updates = plan.passes * self.segments * self.segment
        self.trainer = HeadTrainer(head, objective, self.updates)
        self._point = OperatingPoint.unseen(exact_calibration(config, share), config.eos_threshold)

    def start(self) -> Runs:
        """Heads before the first update."""
        one = self._gathered(self.rows[:1])
        return self.trainer.init(one, np.asarray(self.plan.seeds), np.full(len(self.plan.seeds), self.plan.learning_rate))

    def make_pass(self, runs: Runs, number: int, advanced: Callable[[int, int], object]) -> tuple[Runs, list[float]]:
        """The heads after one more pass, and the mean loss of each; `number` of the pass, from 1 on."""
        feeds = [self._feed(seed, number) for seed in self.plan.seeds]
        losses = []
        for parts in zip(*feeds, strict=True):
            numbers = np.stack(parts, axis=1)  # [updates, seeds, rows]
            place = np.arange(numbers.size, dtype=np.int32).reshape(numbers.shape)
            runs, sums = self.trainer.advance(self._gathered(numbers.reshape(-1)), runs, jnp.asarray(place))
            losses.append(np.asarray(sums["eos_loss"]))
            advanced(self.segment, self.updates)
        return runs, np.concatenate(losses).mean(0).tolist()

    def measure(self, logits: np.ndarray) -> dict[str, float]:
        """Figures of one head on the held-out episodes; `logits` f32 [frames, k]."""
        episodes = held_out_episodes(self.cache, logits)
        values = measure_scores([self._point.dense(each) for each in episodes], self._point.dense_threshold, replicates=0).values
        return {name: values[name] for name in (FRAME_AP, EVENT_AP)}

    def _feed(self, seed: int, number: int) -> Iterator[np.ndarray]:
        """The rows of a pass of one head, i64 [updates, rows] a segment."""
        rng = np.random.default_rng((seed, number))
        shape = (self.segment, self.plan.batch_size)
        if self.positive_share is None:
            order = np.resize(rng.permutation(self.rows), (self.segments, *shape))  # the last batches begin anew
            yield from order
            return
        ends, others = self.rows[self.labels[self.rows]], self.rows[~self.labels[self.rows]]
        count = int(np.clip(round(self.plan.batch_size * self.positive_share), 1, self.plan.batch_size - 1))
        for _ in range(self.segments):
            drawn = rng.choice(ends, (self.segment, count)), rng.choice(others, (self.segment, self.plan.batch_size - count))
            yield np.concatenate(drawn, axis=1)

    def _gathered(self, numbers: np.ndarray) -> Rows:
        """Some rows, on the device; all of them count."""
        hidden = _rows_of(self.cache, numbers)
        return Rows(jnp.asarray(hidden), jnp.asarray(self.labels[numbers], jnp.float32), jnp.ones(numbers.size, bool))


def _rows_of(cache: HiddenCache, numbers: np.ndarray) -> np.ndarray:
    """Hidden states [n a d]; a row is slot j of frame i: i * k + j."""
    frames, slots = np.divmod(numbers, cache.chunk)
    return cache.hidden[frames, slots]


def held_out_logits(cache: HiddenCache, trainer: HeadTrainer, params: Any) -> np.ndarray:
    """f32 [heads, frames, k]: what heads (`params` [heads ...], in the dict of parts) say of the frames of the held-out episodes."""
    k = cache.chunk
    frames = cache.columns.frames_of(np.flatnonzero(cache.columns.held_out))
    numbers = (frames[:, None] * k + np.arange(k)).reshape(-1)
    found, block = [], np.zeros((BLOCK, *cache.hidden.shape[2:]), cache.hidden.dtype)
    none = jnp.zeros(0)  # labels are not looked at
    for first in range(0, numbers.size, BLOCK):
        part = numbers[first : first + BLOCK]
        block[: part.size] = _rows_of(cache, part)
        found.append(trainer.logits(Rows(jnp.asarray(block), none, none), params, np.arange(BLOCK))[:, : part.size])
    return np.concatenate(found, axis=1).reshape(-1, frames.size, k)


def held_out_episodes(cache: HiddenCache, logits: np.ndarray) -> list[ChunkedEpisode]:
    """The held-out episodes with what a head says of them; `logits` f32 [frames, k]."""
    columns = cache.columns
    numbers = np.flatnonzero(columns.held_out)
    splits = np.cumsum(np.diff(columns.episode_starts)[numbers])[:-1]
    ends = columns.ends[columns.frames_of(numbers)]
    parts = zip(numbers, np.split(logits, splits), np.split(ends, splits), strict=True)
    return [ChunkedEpisode(f"episode {number}", each, truth) for number, each, truth in parts]


def episodes_by(cache: HiddenCache, config: TrainConfig, head: Any) -> list[ChunkedEpisode]:
    """What a head with these parameters says of the held-out episodes; `config` names its size."""
    module = EosHead(hidden_dim=config.eos_hidden_dim, dropout=config.eos_dropout)
    trainer = HeadTrainer(module, FreshObjective(config.eos_threshold, "bce", None), 1)
    params = {"eos_head": jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], head)}
    return held_out_episodes(cache, held_out_logits(cache, trainer, params)[0])
