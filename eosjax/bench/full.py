"""The bench's full path: the policy and its EOS head trained together, as `train.py` does, once for each method and seed.

A method is a set of flags. Runs keep their checkpoints, and what heads on cached hidden states cannot show is read off them: how old the
rows of the buffer are, how far the policy has moved meanwhile, and whether the head is as good on fresh rows as on those it learns from.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eosjax import config as configs
from eosjax import flags
from eosjax.bench import probes
from eosjax.buffer import BalancedBufferState
from eosjax.config import TrainConfig
from eosjax.data.samples.loader import EvalLoader, TrainLoader
from eosjax.data.samples.source import SampleSource
from eosjax.ends.baselines import baselines_on
from eosjax.ends.comparison import HEAD
from eosjax.ends.comparison import compare as compare_methods
from eosjax.ends.events import MAIN_COLLAR
from eosjax.ends.measure import DEPLOYED, measure_decisions, measure_scores
from eosjax.ends.operating_points import OperatingPoint, cross_fit, selection
from eosjax.ends.protocols import ChunkedEpisode
from eosjax.models.parts import abstract_params, split_params
from eosjax.reports.bench_plots import policy_curves
from eosjax.reports.bench_tables import buffer_rows, policy_quality
from eosjax.reports.plots import svg
from eosjax.reports.tables import markdown
from eosjax.runs.checkpoint import restore_part
from eosjax.runs.data import RunData, episode_ends, reopen_data
from eosjax.runs.load import SavedRun, load_run, open_tokenizer
from eosjax.training.hidden_states import hidden_fn
from eosjax.training.run import run
from eosjax.training.state import init_state, make_buffer, make_learner
from eosjax.types import UserError

FULL_METHODS: Mapping[str, Mapping[str, Any]] = {
    "plain BCE": {"eos_loss": "bce"},
    "plain BCE, into the policy": {"eos_loss": "bce", "eos_backbone_grad": True},
    "buffer 50": {"eos_buffer_capacity": 50},
    "buffer 50 and fresh rows, into the policy": {"eos_buffer_capacity": 50, "eos_loss": "buffer_fresh"},
    "buffer 500": {"eos_buffer_capacity": 500},
    "buffer 5000": {"eos_buffer_capacity": 5000},
    "buffer 500, age-matched": {"eos_buffer_capacity": 500, "eos_age_match": True},
}
DEFAULT, REFERENCE = "buffer 50", "plain BCE"
SAVES = 60  # of a run, kept until it is measured: rows of a small buffer are a few updates old
_VALIDATIONS = 6
_PROBES = 128  # anchors whose hidden states tell how far the policy has moved
_FRESH_BATCHES = 40
RESULT = "bench.json"


def method_config(base: TrainConfig, method: str, seed: int, folder: Path) -> TrainConfig:
    """The run of a method: the recipe with the default loss and draws, and the method's flags.

    Args:
      base: the recipe.
      method: a name in `FULL_METHODS`.
      seed: of the run.
      folder: that the run goes into.
    """
    names = ("eos_loss", "eos_sample_positive", "eos_sample_negative", "eos_min_positive", "eos_min_negative")
    learns = {name: getattr(TrainConfig, name) for name in names}
    every = max(base.max_steps // SAVES, 1)
    name = f"{method.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    frequent = {"save_freq": every, "val_freq": SAVES // _VALIDATIONS * every, "keep_checkpoints": SAVES + 1}
    chosen = {"eos_operating_point": f"f1:{MAIN_COLLAR}"}
    run_flags = {"seed": seed, "run_root_dir": folder, "run_id_override": name, "use_tensorboard": False}
    return dataclasses.replace(base, **{**learns, **chosen, **frequent, **run_flags, **FULL_METHODS[method]})


def train_and_look(config: TrainConfig) -> dict[str, Any]:
    """Trains a run (or goes on with one that was stopped) and measures it; a run that has been measured is only read.

    Of its checkpoints only the last is kept then: all of them would be half a gigabyte a run of the demo model.

    Raises:
      UserError: the run was stopped before its last update, or was measured with other flags.
    """
    result = config.run_dir / RESULT
    if result.is_file():
        _check_flags(config)
    else:
        _train(config)
        scratch = result.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(look(config), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(scratch, result)
    for step in range(config.save_freq, config.max_steps, config.save_freq):
        shutil.rmtree(config.run_dir / configs.CHECKPOINTS / str(step), ignore_errors=True)
    return json.loads(result.read_text(encoding="utf-8"))


def _check_flags(config: TrainConfig) -> None:
    """Raises `UserError` if a run that has been measured was trained with other flags than these, but for places."""
    then, now = (dataclasses.asdict(each) for each in (flags.load(config.run_dir / configs.CONFIG_FILE), config))
    found = [name for name in now if then[name] != now[name] and name not in ("resume", "run_root_dir", "data_root_dir", "cache_dir")]
    if found:
        changes = "; ".join(f"--{name} is {now[name]}, was {then[name]}" for name in found)
        raise UserError(f"{config.run_dir}: measured with other flags: {changes}; choose another folder")


def _train(config: TrainConfig) -> None:
    """To its last update, from where a stopped run stands. Raises `UserError` if it is stopped again."""
    if not _finished(config):
        run(dataclasses.replace(config, resume=(config.run_dir / configs.CONFIG_FILE).is_file()))
        if not _finished(config):
            raise UserError(f"{config.run_dir}: stopped; the same command goes on from there")


def _finished(config: TrainConfig) -> bool:
    return (config.run_dir / configs.CHECKPOINTS / str(config.max_steps)).is_dir()


def look(config: TrainConfig) -> dict[str, Any]:
    """All figures of a finished run: of its last checkpoint on held-out episodes, and of its buffer at half time and at the end."""
    saved = load_run(config.run_dir, config.max_steps)
    data = reopen_data(saved.config, saved.record.run, open_tokenizer(config.run_dir, saved.record))
    held_out = held_out_figures(saved, data)
    content: dict[str, Any] = {"held_out": {name: _defined(figures) for name, figures in held_out.items()}}
    if config.uses_buffer:
        steps = {"half": config.max_steps // (2 * config.save_freq) * config.save_freq, "end": config.max_steps}
        content["buffer"] = {when: _defined(look_at_buffer(config, data, step)) for when, step in steps.items()}
    return content


def _defined(figures: Mapping[str, float]) -> dict[str, float | None]:
    """None for what is not a number: JSON knows no other."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def held_out_figures(saved: SavedRun, data: RunData) -> dict[str, dict[str, float]]:
    """Figures of the head and of the baselines without images, by name, on all held-out episodes.

    What is chosen or fitted for an episode, is so on the episodes of other folds. Of the baselines there are the figures of
    `eosjax.ends.comparison` alone; of the head also the action loss of the policy.
    """
    assert data.val is not None
    episodes = chunked_episodes(saved, data.val)
    how = selection(saved.config, saved.record.run.share_of_ends, episode_ends(data.train))
    points = cross_fit(episodes, how)
    unfitted = [OperatingPoint.unseen(how.exact, saved.config.eos_threshold).dense(each) for each in episodes]
    fitted = [point.dense(each) for point, each in zip(points, episodes, strict=True)]
    decisions = measure_decisions([point.deployed(each) for point, each in zip(points, episodes, strict=True)], replicates=0)
    measured = compare_methods({HEAD: unfitted, **baselines_on(data.mixture, data.train.anchors, data.val.episodes)}, replicates=0).measured
    figures = {name: dict(each.values) for name, each in measured.items()}
    assert saved.record.validation is not None
    figures[HEAD]["val/action_loss"] = saved.record.validation.figures["val/action_loss"]
    figures[HEAD] |= {f"{DEPLOYED}{name}": value for name, value in decisions.values.items()}
    for kind, scored in (("exact", unfitted), ("fitted", fitted)):
        values = measure_scores(scored, saved.config.eos_threshold, replicates=0).values
        figures[HEAD] |= {f"{kind}/{name}": values[name] for name in ("frame/nll", "frame/ece")}
    return figures


def chunked_episodes(saved: SavedRun, source: SampleSource) -> list[ChunkedEpisode]:
    """What the EOS head says at every step of the episodes of a split."""
    learner = make_learner(saved.config, saved.vla_config)
    forward, params = hidden_fn(learner.policy), jax.device_put(saved.params)
    assert learner.eos_head is not None
    head = jax.jit(functools.partial(learner.eos_head.apply, {"params": params["eos_head"]}))
    loader = EvalLoader(source, saved.config.batch_size, threads=saved.config.num_loader_threads)
    logits = np.concatenate([np.asarray(head(forward(params, batch)))[batch.key >= 0] for batch in loader])
    splits = np.cumsum(np.diff(source.data.episode_starts)[source.episodes])[:-1]
    ends = np.split(source.data.labels.ends[source.anchors].astype(bool), splits)
    rows = zip(source.episodes, np.split(logits, splits), ends, strict=True)
    return [ChunkedEpisode(f"episode {number}", each, true) for number, each, true in rows]


def load_buffer(run: SavedRun) -> BalancedBufferState | None:
    """The buffer as the checkpoint has it, in NumPy arrays; None for a run without one."""
    learner = make_learner(run.config, run.vla_config)
    trained, _ = split_params(abstract_params(run.config, run.vla_config))
    shapes = jax.eval_shape(lambda params: init_state(learner, params, jax.random.key(0)).buffer, trained)
    return None if shapes is None else restore_part(run.chosen.folder, "buffer", shapes, run.record)


def look_at_buffer(config: TrainConfig, data: RunData, step: int) -> dict[str, float]:
    """What the buffer held at a checkpoint, and how much it was worth.

    Returns:
      `age_positive`, `age_negative`: median age of the rows held, in updates. `class_from_age`, `age_from_hidden` (of ends):
      see `eosjax.bench.probes`. `drift_positive`, `drift_negative`: how far the hidden states of held-out steps have moved over
      that median age. `loss_buffered`, `loss_fresh`: the head's cross-entropy, both classes weighing the same, on the rows held and on the
      rows of the batches that come next.
    """
    saved = load_run(config.run_dir, step)
    buffer, state = make_buffer(config), load_buffer(saved)
    assert state is not None
    rows, now = buffer.contents(state), int(state.adds)
    rings = {"positive": state.positive, "negative": state.negative}
    ages = {kind: now - buffer.ring.born(ring).astype(np.int64) for kind, ring in rings.items()}
    lags = {kind: float(np.median(age)) for kind, age in ages.items()}
    moved = drifts(config, data, saved, lags)
    return {
        **{f"age_{kind}": lag for kind, lag in lags.items()},
        "class_from_age": probes.class_from_age(ages["positive"], ages["negative"]),
        "age_from_hidden": probes.age_from_hidden(rows["positive"], ages["positive"]),
        **{f"drift_{kind}": value for kind, value in moved.items()},
        "loss_buffered": head_loss(saved, rows),
        "loss_fresh": head_loss(saved, fresh_rows(saved, data, step)),
    }


def fresh_rows(saved: SavedRun, data: RunData, step: int) -> dict[str, np.ndarray]:
    """Hidden states [n a d] of both classes in the batches that follow a checkpoint."""
    forward, params = hidden_fn(make_learner(saved.config, saved.vla_config).policy), jax.device_put(saved.params)
    loader = TrainLoader(data.train, saved.config.batch_size, saved.config.seed, start_batch=step, threads=saved.config.num_loader_threads)
    rows: dict[str, list[np.ndarray]] = {"positive": [], "negative": []}
    for _, batch in zip(range(_FRESH_BATCHES), loader, strict=False):
        hidden = np.asarray(forward(params, batch))
        for kind, chosen in (("positive", batch.eos > 0.5), ("negative", batch.eos <= 0.5)):
            rows[kind].append(hidden[chosen & batch.valid])
    return {kind: np.concatenate(parts) for kind, parts in rows.items()}


def head_loss(saved: SavedRun, rows: Mapping[str, np.ndarray]) -> float:
    """Cross-entropy of the EOS head in nats, both classes weighing the same; `rows`: hidden states [n a d] of each."""
    head = make_learner(saved.config, saved.vla_config).eos_head
    assert head is not None
    hidden = jnp.concatenate([jnp.asarray(rows[kind]) for kind in ("positive", "negative")])
    labels = np.arange(len(hidden)) < len(rows["positive"])
    return probes.class_balanced_loss(np.asarray(head.apply({"params": saved.params["eos_head"]}, hidden)), labels, prior=0.5)


def drifts(config: TrainConfig, data: RunData, saved: SavedRun, lags: Mapping[str, float]) -> dict[str, float]:
    """`probes.drift` of held-out steps within some numbers of updates up to a checkpoint.

    Between the checkpoints next to a lag it is interpolated linearly; it is 0 at lag 0.

    Args:
      config: the run.
      data: its data; probed are held-out steps, evenly spaced.
      saved: the checkpoint.
      lags: in updates, by name.
    """
    assert data.val is not None
    batch = data.val.batch(np.linspace(0, len(data.val) - 1, _PROBES).astype(np.int64))
    forward = hidden_fn(make_learner(config, saved.vla_config).policy)

    def probe(step: int) -> np.ndarray:
        params = saved.params if step == saved.step else load_run(config.run_dir, step).params
        return np.asarray(forward(jax.device_put(params), batch))

    now, every = probe(saved.step), config.save_freq
    needed = {every * n for lag in lags.values() for n in (int(lag // every), int(lag // every) + 1)} - {0}
    lag_of = [0, *sorted(lag for lag in needed if saved.step - lag >= every)]
    moved = [probes.drift(now, probe(saved.step - lag)) for lag in lag_of]
    return {name: float(np.interp(lag, lag_of, moved)) for name, lag in lags.items()}


def compare(base: TrainConfig, methods: Sequence[str], seeds: Sequence[int], folder: Path) -> None:
    """Trains and measures all runs, and writes `summary.md` with both tables and `curves.svg` of the default method; prints the tables.

    All methods of a seed come before the next seed. Runs that are in the folder already are not made again, one that was stopped goes on.

    Args:
      base: the recipe.
      methods: names in `FULL_METHODS`.
      seeds: of the runs of each.
      folder: for everything.

    Raises:
      UserError: a run was stopped before its last update.
    """
    configs_of = {(method, seed): method_config(base, method, seed, folder) for seed in seeds for method in methods}
    found = {key: train_and_look(config) for key, config in configs_of.items()}
    results = {method: [found[method, seed] for seed in seeds] for method in methods}
    tables = "\n\n".join([markdown(policy_quality(results, REFERENCE)), markdown(buffer_rows(results))])
    (folder / "summary.md").write_text(tables + "\n", encoding="utf-8")
    if DEFAULT in methods:
        runs = [configs_of[DEFAULT, seed].run_dir for seed in seeds]
        figure = policy_curves(runs, f"{base.dataset_name}, {DEFAULT}")
        (folder / "curves.svg").write_bytes(svg(figure))
    print(tables)
