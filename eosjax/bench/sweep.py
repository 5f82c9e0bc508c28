"""Trains the heads of one method, chooses its learning rate, and measures it: seeds by seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eosjax.bench import feeds, probes
from eosjax.bench.judge import Judge, Judged, mean_figures, pooled, spread
from eosjax.bench.methods import NEGATIVE, POSITIVE, Method
from eosjax.buffer import BalancedBufferState, RingBuffer
from eosjax.ends.calibration import sigmoid
from eosjax.ends.events import MAIN_COLLAR, ScoredEpisode
from eosjax.ends.frame import average_precision
from eosjax.ends.sweeps import dense_sweep
from eosjax.models.heads import EosHead
from eosjax.runs.hidden import HiddenCache
from eosjax.training.heads import HeadTrainer, Rows, Runs
from eosjax.training.metrics import EOS_SUMS

LEARNING_RATES = (3e-4, 1e-3, 3e-3)
SEGMENTS = 30  # of a run, compiled once
MEASURED = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 21, 24, 27, 30)  # after so many segments: denser while the head learns fast
FRESH = 50  # batches of the stream that come after the last update: rows that no buffer holds
NEAR_END = 0.9  # share of the end value that counts as having learnt


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all methods of a comparison have in common; JSON values.

    Attributes:
      seeds: runs of each method and learning rate; seed s is that of the weights, the order and the draws.
      updates: of each head, a multiple of `SEGMENTS`.
      batch: chunks in the stream's part of an update.
      learning_rates: of which each method gets the one that is best on the validation episodes.
    """

    seeds: int
    updates: int
    batch: int
    learning_rates: tuple[float, ...] = LEARNING_RATES


class Bench(NamedTuple):
    """What is compared on."""

    cache: HiddenCache
    split: feeds.Split
    judge: Judge
    rows: Rows
    head: EosHead
    settings: Settings

    @classmethod
    def of(cls, cache: HiddenCache, settings: Settings) -> Bench:
        """Puts the hidden states on the device."""
        k, split = cache.chunk, feeds.Split.of(cache)
        labels, valid = (jnp.asarray(each.reshape(-1)) for each in (cache.columns.labels(k), cache.columns.valid(k)))
        rows = Rows(jnp.asarray(cache.hidden.reshape(-1, *cache.hidden.shape[2:])), labels.astype(jnp.float32), valid)
        head = EosHead(hidden_dim=cache.facts["eos_hidden_dim"], dropout=cache.facts["eos_dropout"])
        return cls(cache, split, Judge(cache.columns, split, k), rows, head, settings)

    def streams(self) -> np.ndarray:
        """i32 [seeds, updates + FRESH, rows]: the batches of each seed, which every method sees."""
        frames, chunk, batch = self.cache.train_frames, self.cache.chunk, self.settings.batch
        return np.stack([feeds.stream(frames, chunk, self.settings.updates + FRESH, batch, seed) for seed in range(self.settings.seeds)])

    def feed(self, method: Method, streams: np.ndarray) -> np.ndarray:
        """i32 [seeds, updates, rows]: what each update of a method brings."""
        if not method.balanced_feed:
            return streams[:, : self.settings.updates]
        train = np.isin(np.repeat(self.cache.columns.episode_of, self.cache.chunk), self.split.train)
        labels, valid = np.asarray(self.rows.labels) > 0.5, np.asarray(self.rows.valid) & train
        counts = (POSITIVE, NEGATIVE)
        return np.stack([feeds.balanced(labels, valid, self.settings.updates, counts, seed) for seed in range(self.settings.seeds)])


class _History(NamedTuple):
    """What the runs of a method left behind; r = seeds x learning rates, seed by seed."""

    runs: Runs
    logits: np.ndarray  # f32 [points, r, m], of the validation rows that the curve is measured on
    sums: dict[str, np.ndarray]  # f32 [updates, r]


def run_method(bench: Bench, method: Method, advanced: Callable[[int], object] = lambda updates: None) -> dict[str, Any]:
    """Trains and measures all seeds of a method.

    Args:
      bench: what is compared on.
      method: how.
      advanced: told how many updates have been made since it was last told.

    Returns:
      JSON values: the choice of the learning rate, figures of each seed, their mean, spread and intervals, and the curve.
    """
    settings, streams = bench.settings, bench.streams()
    trainer = HeadTrainer(bench.head, method.objective, settings.updates)
    tiles = feeds.tiles(bench.cache.columns.episode_starts, bench.split.val, bench.cache.chunk)
    history = _train(bench, trainer, bench.feed(method, streams), tiles, advanced)

    ends = np.asarray(bench.rows.labels)[tiles] > 0.5
    curve = np.array([[average_precision(ends, logits.astype(np.float64)) for logits in point] for point in history.logits])
    by_rate = curve[-1].reshape(settings.seeds, -1).mean(0)
    best = int(np.argmax(by_rate))
    runs = np.arange(settings.seeds) * len(settings.learning_rates) + best
    events = np.array([[_best_f1(bench, logits) for logits in point] for point in history.logits[:, runs]])

    chosen = jax.tree.map(lambda leaf: leaf[runs], history.runs)
    logits = trainer.logits(bench.rows, chosen.params, bench.judge.numbers)
    judged = [bench.judge.head(each, method.calibration) for each in logits]
    training = [
        _training_figures(bench, trainer, jax.tree.map(lambda leaf, seed=seed: leaf[seed], chosen), streams[seed])
        | _counts({name: values[:, runs[seed]] for name, values in history.sums.items()}, _positives(bench, streams[seed]))
        | {"train/updates_to_90": _updates_to(curve[:, runs[seed]], settings)}
        for seed in range(settings.seeds)
    ]
    return {
        "method": method.name,
        "title": method.title,
        "learning_rates": dict(zip(map(str, settings.learning_rates), by_rate.tolist(), strict=True)),
        "learning_rate": settings.learning_rates[best],
        "curve": {"updates": _points(settings), "frame_ap": curve[:, runs].T.tolist(), "event_f1": events.T.tolist()},
        **_summary(judged, training, bench.split.test.size),
    }


def run_baselines(bench: Bench) -> dict[str, dict[str, Any]]:
    """The baselines and chance, by name: figures and intervals on the test episodes."""
    measured = {name: pooled([figures], bench.split.test.size) for name, figures in bench.judge.baselines().items()}
    return {name: {"mean": each.values, "intervals": each.intervals} for name, each in measured.items()}


def _summary(judged: list[Judged], training: list[dict[str, float]], episodes: int) -> dict[str, Any]:
    once = np.ones(episodes, np.int64)
    rows = [each.figures(once) | figures for each, figures in zip(judged, training, strict=True)]
    return {
        "seeds": [
            {"threshold": each.threshold, "deployed_threshold": each.deployed_threshold, "calibration": each.calibration.to_json(), **row}
            for each, row in zip(judged, rows, strict=True)
        ],
        "mean": mean_figures(rows),
        "spread": spread(rows),
        "intervals": pooled([each.figures for each in judged], episodes).intervals,
    }


def _train(bench: Bench, trainer: HeadTrainer, feed: np.ndarray, tiles: np.ndarray, advanced: Callable[[int], object]) -> _History:
    settings, rates = bench.settings, len(bench.settings.learning_rates)
    runs = trainer.init(bench.rows, np.repeat(np.arange(settings.seeds), rates), np.tile(settings.learning_rates, settings.seeds))
    length = settings.updates // SEGMENTS
    logits = [trainer.logits(bench.rows, runs.params, tiles)]
    sums = []
    for segment in range(SEGMENTS):
        part = feed[:, segment * length : (segment + 1) * length].repeat(rates, axis=0).swapaxes(0, 1)
        runs, new = trainer.advance(bench.rows, runs, jnp.asarray(part))
        if segment + 1 in MEASURED:
            logits.append(trainer.logits(bench.rows, runs.params, tiles))
        sums.append(jax.device_get(new))
        advanced(length)
    return _History(runs, np.stack(logits), {name: np.concatenate([part[name] for part in sums]) for name in EOS_SUMS})


def _points(settings: Settings) -> list[int]:
    return [settings.updates // SEGMENTS * segment for segment in MEASURED]


def _best_f1(bench: Bench, logits: np.ndarray) -> float:
    """The largest event F1 that any threshold gives on the validation episodes, one vote a frame."""
    columns, episodes = bench.cache.columns, []
    scores = np.split(sigmoid(logits.astype(np.float64)), np.cumsum(np.diff(columns.episode_starts)[bench.split.val])[:-1])
    for number, each in zip(bench.split.val, scores, strict=True):
        episodes.append(ScoredEpisode(str(number), each, columns.ends[columns.episode_starts[number] :][: each.size]))
    sweep = dense_sweep(episodes, MAIN_COLLAR)
    return float(np.max(2 * sweep.hits.sum(0) / np.maximum(sweep.fired.sum(0) + sweep.true.sum(), 1)))


def _updates_to(curve: np.ndarray, settings: Settings) -> float:
    """Updates until the curve f[points] first reaches `NEAR_END` of its last value."""
    return float(_points(settings)[int(np.argmax(curve >= NEAR_END * curve[-1]))])


def _positives(bench: Bench, stream: np.ndarray) -> float:
    """Ends that the stream brings up to the last update."""
    return float(np.asarray(bench.rows.labels)[stream[: bench.settings.updates]].sum())


def _counts(sums: dict[str, np.ndarray], positives: float) -> dict[str, float]:
    """Figures from the sums f32 [updates] of one run; `positives`: ends that the stream brought."""
    updated = np.flatnonzero(sums["eos_updates"])
    used = {"positive": sums["true_positive"] + sums["false_negative"], "negative": sums["true_negative"] + sums["false_positive"]}
    ages = {f"train/age_{kind}": _ratio(sums[f"age_{kind}"].sum(), rows.sum()) for kind, rows in used.items()}
    return {
        "train/update_share": updated.size / sums["eos_updates"].size,
        "train/first_update": float(updated[0] + 1) if updated.size else float("nan"),
        "train/uses_per_positive": _ratio(used["positive"][updated].sum(), positives),
        **ages,
    }


def _training_figures(bench: Bench, trainer: HeadTrainer, run: Runs, stream: np.ndarray) -> dict[str, float]:
    """What a run's buffer does to its rows, as it is after the last update; NaN for a method without a buffer of rows."""
    names = ("train/class_from_age", "train/age_from_hidden", "train/loss_fresh", "train/loss_buffered")
    state = run.objective
    # Row numbers are integers; what else a buffer may hold is logits.
    if not isinstance(state, BalancedBufferState) or state.positive.dtypes != ("int32",):
        return {name: float("nan") for name in names}
    rings, now = (state.positive, state.negative), int(state.adds)
    reader = RingBuffer(state.positive.born.size)
    ages, held = [now - reader.born(ring).astype(np.int64) for ring in rings], [reader.contents(ring) for ring in rings]
    prior, params = POSITIVE / (POSITIVE + NEGATIVE), jax.tree.map(lambda leaf: leaf[None], run.params)

    def loss(numbers: np.ndarray) -> float:
        logits = trainer.logits(bench.rows, params, numbers)[0]
        return probes.class_balanced_loss(logits, np.asarray(bench.rows.labels)[numbers] > 0.5, prior)

    fresh = stream[bench.settings.updates :].reshape(-1)
    values = (
        probes.class_from_age(*ages),
        probes.age_from_hidden(np.asarray(bench.rows.hidden[held[0]]), ages[0]),
        loss(fresh[np.asarray(bench.rows.valid)[fresh]]),
        loss(np.concatenate(held)),
    )
    return dict(zip(names, values, strict=True))


def _ratio(total: float, count: float) -> float:
    return float(total / count) if count else float("nan")
