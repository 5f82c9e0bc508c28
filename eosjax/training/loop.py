"""The host's side of training: prepare, restore, run, log, validate, save, report."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from eosjax import config as configs
from eosjax import flags
from eosjax.config import ConfigError, TrainConfig
from eosjax.data.labels.advice import explain_share
from eosjax.data.samples.loader import EvalLoader, TrainLoader
from eosjax.data.samples.source import SampleSource
from eosjax.data.stats import STATS_FILE, save_stats, stats_to_json
from eosjax.ends.calibration import exact_calibration
from eosjax.ends.measure import DEPLOYED
from eosjax.ends.operating_points import OperatingPoint, choose, selection
from eosjax.ends.protocols import ChunkedEpisode
from eosjax.models.hf.pretrained import PARTS, Pretrained, load_adapter
from eosjax.models.parts import base_parts, init_params, split_params
from eosjax.models.policies import Params
from eosjax.runs.checkpoint import Checkpoints, fetch_fingerprints
from eosjax.runs.data import RunData, episode_ends, open_data, share_of_ends
from eosjax.runs.policy_source import PolicySource
from eosjax.training import metrics
from eosjax.training.data_checks import check_ends, describe_data, tune_counts
from eosjax.training.host_memory import keep_freed_memory
from eosjax.training.interrupt import stop_signals
from eosjax.training.keys import run_keys
from eosjax.training.logging import Console, MetricWriter, check_wandb, eos_line, waiting_line
from eosjax.training.parallel import DataParallel, Device, choose_devices
from eosjax.training.preflight import check_paths
from eosjax.training.state import Learner, TrainState, all_finite, init_state, make_learner
from eosjax.training.timing import Clock, Lap
from eosjax.training.validation import figures, predict_split
from eosjax.types import Batch, UserError

# Of a validation, on the console
_SHOWN = (
    "val/action_loss",
    "val/frame/average_precision",
    "val/frame/share_of_ends",
    "val/event/ap_mean",
    f"val/{DEPLOYED}event/precision@2",
    f"val/{DEPLOYED}event/recall@2",
)


# Called once, behind a whole run with a validation: (folder, training split, validation split, what the head says of the latter, operating
# point) -> lines for the console.
Report = Callable[[Path, SampleSource, SampleSource, Sequence[ChunkedEpisode], OperatingPoint], str]


def run(config: TrainConfig, report: Report | None = None) -> None:
    """Trains a policy as the configuration says: the whole main job, from the data to the report.

    Writes to `config.run_dir`: config.yaml, dataset_statistics.json, metrics.jsonl, tensorboard/, checkpoints/ and, with validation,
    what `report` adds to it. SIGINT and SIGTERM end the run behind the current update, with a checkpoint.

    Raises:
      ConfigError: the configuration cannot be run.
      eosjax.data.rlds.episodes.DatasetError, eosjax.data.labels.LabelError: the data cannot be used.
      eosjax.runs.checkpoint.CheckpointError: `resume` without a usable checkpoint.
    """
    check_wandb(config)
    check_paths(config)
    devices = choose_devices(config.num_devices)
    if devices[0].platform == "cpu":
        keep_freed_memory()
    policy = PolicySource.open(config)
    data = open_data(config, policy)
    if config.use_eos_classification:
        check_ends(data)
    share = share_of_ends(data.train)
    config, tuned = tune_counts(config, share)

    console = Console(config.max_steps, quiet=jax.process_index() != 0)
    learner = make_learner(config, policy.vla_config(config, data.mixture.spec), share)
    for line in describe_data(data):
        console.line(line)
    if tuned:
        console.line(tuned)
    trainer = _Trainer(config, data, share, learner, policy.pretrained, devices, console, report)
    console.line(f"{len(devices)} {devices[0].platform} device(s), batch {trainer.global_batch}, run {config.run_dir}")
    trainer.train()


class _Trainer:
    """One run in progress: what the loop body needs, and the state that it replaces."""

    def __init__(
        self,
        config: TrainConfig,
        data: RunData,
        share: float,
        learner: Learner,
        pretrained: Pretrained | None,
        devices: list[Device],
        console: Console,
        report: Report | None,
    ) -> None:
        self.config, self.data, self.share, self.console, self.report = config, data, share, console, report
        per_device = config.batch_size * config.grad_accumulation_steps
        self.local_batch = per_device * sum(device.process_index == jax.process_index() for device in devices)
        self.global_batch = per_device * len(devices)
        self.with_eos = learner.eos_head is not None
        if self.with_eos and config.eos_loss == configs.BALANCED_BUFFER:
            rows = self.global_batch * data.mixture.spec.chunk
            console.line(explain_share(share, rows, config.eos_min_positive, config.eos_min_negative, config.eos_buffer_capacity))

        self.parallel = DataParallel(learner, devices)
        self.checkpoints = Checkpoints(config.run_dir / configs.CHECKPOINTS, config.keep_checkpoints)
        self.state, self.frozen = self._init(learner, pretrained)
        self.base_fingerprints = fetch_fingerprints(self.frozen)
        self.start = self.saved = self._restore() if config.resume else 0
        self.writer = self._open_folder()
        self.clock = Clock()
        self.pending: _LogLine | None = None

    def train(self) -> None:
        """Makes all updates, then reports; a signal ends it earlier, with a checkpoint."""
        config, validation, step = self.config, None, self.start
        batches = self._batches()
        with stop_signals() as stopped, contextlib.closing(self.checkpoints), contextlib.closing(self.writer):
            while step < config.max_steps and not stopped:
                with self.clock.waiting():
                    batch = next(batches)
                self.state, new_metrics = self.parallel.step(self.state, self.frozen, self.parallel.split(batch))
                step += 1
                self.clock.steps += 1
                self.console.advance(step)
                if self._due(step, config.log_freq):
                    self._flush_log()
                    self.pending = _LogLine(step, new_metrics, self.clock.lap())
                validation = None
                if self.data.val is not None and self._due(step, config.val_freq):
                    validation = self._validate(step, self.data.val)
                if self._due(step, config.save_freq):
                    self._save(step, validation)
            if self.saved != step:
                self._save(step, validation)
            self.checkpoints.wait()
        self.console.close()
        self._finish(step, validation)

    def _init(self, learner: Learner, pretrained: Pretrained | None) -> tuple[TrainState, Params]:
        init_key, run_key = run_keys(self.config.seed)
        example = self.data.train.batch(np.zeros(1, np.int64))
        params = jax.jit(lambda key: init_params(learner.policy, learner.eos_head, example, key, with_base=pretrained is None))(init_key)
        if pretrained is not None:
            params |= self._load(pretrained, learner, params)
        trainable, frozen = split_params(params)
        parts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in trainable.items()}
        listed = ", ".join(f"{part} {size:,}" for part, size in parts.items())
        frozen_size = sum(leaf.size for leaf in jax.tree.leaves(frozen))
        self.console.line(f"trainable parameters: {sum(parts.values()):,} ({listed}); frozen: {frozen_size:,}")
        return self.parallel.replicate(init_state(learner, trainable, run_key)), self.parallel.replicate(frozen)

    def _load(self, pretrained: Pretrained, learner: Learner, fresh: Params) -> Params:
        """The base weights of a checkpoint on all devices, and those of the `fresh` parts that lie beside them."""
        config = learner.policy.vla.config
        base, report = pretrained.load_base(config, lambda array: jax.device_put(array, self.parallel.replicated))
        self.console.line(f"base weights of {pretrained.folder}: {report}")
        loaded = base_parts(base, config)
        for part in PARTS:
            if part in fresh and (found := pretrained.load_part(part, config, fresh[part])):
                loaded[part], path = found
                self.console.line(f"{part} from {path.name}")
        adapter = self.config.lora_adapter_path
        if adapter is not None:
            loaded["lora"] = load_adapter(adapter, config)
            self.console.line(f"adapters from {adapter}")
        if "film" in fresh and (found := pretrained.load_film(config, base, merged=adapter is None)):
            loaded["film"], path = found
            self.console.line(f"film from {path.name}")
        return loaded

    def _restore(self) -> int:
        """Replaces the state by the one of the newest whole checkpoint; returns the updates it has made."""
        self.state, record = self.checkpoints.restore(self.state, self.parallel.replicated)
        step = int(self.state.step)
        if step >= self.config.max_steps:
            raise ConfigError(f"{self.config.run_dir} has made its {step} updates; raise --max_steps to go on")
        if record["samples"] != step * self.global_batch:
            raise ConfigError(
                f"--resume: the run has seen {record['samples']} samples in {step} updates, but an update now takes {self.global_batch} "
                "samples, so that the data could not go on where they stopped; keep batch_size x grad_accumulation_steps x devices"
            )
        if record["base"] != self.base_fingerprints:
            raise ConfigError(f"--resume: the base weights at --vla_path {self.config.vla_path} are not those that the run began with")
        if record["statistics"] != stats_to_json(self.data.mixture.stats):
            raise ConfigError(f"--resume: the data are not those that {self.config.run_dir} was trained on: their statistics differ")
        self.console.line(f"resumed from the checkpoint of step {step}")
        return step

    def _open_folder(self) -> MetricWriter:
        folder = self.config.run_dir
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            flags.save(self.config, folder / configs.CONFIG_FILE)
            save_stats(folder / STATS_FILE, self.data.mixture.stats)
        return MetricWriter(self.config, folder, self.start, enabled=jax.process_index() == 0)

    def _batches(self) -> Iterator[Batch]:
        return iter(
            TrainLoader(
                self.data.train,
                self.local_batch,
                self.config.seed,
                start_batch=self.start,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                threads=self.config.num_loader_threads,
            )
        )

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.max_steps

    def _flush_log(self) -> None:
        """Fetches and writes the pending log line; in the steady state its numbers were ready an interval ago."""
        if self.pending is None:
            return
        (step, values, lap), self.pending = self.pending, None
        config = self.config
        row = metrics.to_row(
            jax.device_get(values),
            lambda_eos=config.lambda_eos,
            micro_batches=config.grad_accumulation_steps,
        )
        if not math.isfinite(row["train/total_loss"]):
            raise self._diverged(step)
        row["perf/samples_per_second"] = lap.steps * self.global_batch / lap.seconds
        row["perf/data_wait_share"] = lap.waited / lap.seconds
        self.writer.write(step, row)
        speed = f"{row['perf/samples_per_second']:.1f} samples/s"
        self.console.line(f"step {step}/{config.max_steps}  action_loss = {row['train/action_loss']:.4f}  {speed}")
        if self.with_eos:
            updated = row["train/eos_updated"] > 0
            self.console.line(eos_line(row) if updated else waiting_line(row, config, step))

    def _diverged(self, step: int) -> UserError:
        return UserError(
            f"training has diverged by step {step}: the loss or a parameter is not finite; start a run with a lower --learning_rate or "
            f"a longer --lr_warmup_steps. The checkpoints in {self.config.run_dir} are from before"
        )

    def _check_finite(self, step: int) -> None:
        """Raises before anything is scored or saved that training has blown up."""
        if not all_finite(self.state.trainable):
            raise self._diverged(step)

    def _validate(self, step: int, source: SampleSource) -> _Validation:
        self._flush_log()
        self._check_finite(step)

        def predict(batch: Batch) -> Any:
            return jax.device_get(self.parallel.predict(self.state.trainable, self.frozen, self.parallel.split(batch)))

        batches = EvalLoader(source, self.local_batch, threads=self.config.num_loader_threads)
        with self.clock.stopped():
            found = predict_split(predict, batches, source.anchors, source.data.labels.ends, source.data.episode_of)
            row, point = {"val/action_loss": found.action_loss}, None
            if self.with_eos:
                point = self._choose(found.episodes)
                row |= {f"val/{name}": value for name, value in figures(found.episodes, point).items()}
        self.writer.write(step, row)
        self.console.line("  ".join(f"{name} = {row[name]:.4f}" for name in _SHOWN if name in row))
        return _Validation(row, found.episodes, point)

    def _choose(self, episodes: list[ChunkedEpisode]) -> OperatingPoint:
        """Where to operate, from what the head says of the held-out episodes."""
        return choose(episodes, selection(self.config, self.share, episode_ends(self.data.train)))

    def _save(self, step: int, validation: _Validation | None) -> None:
        """Saves behind everything that was logged up to here, so that a resumed run has the same lines."""
        self._flush_log()
        self._check_finite(step)
        folder, row = self.config.run_dir, validation.row if validation else {}
        record = {
            "samples": step * self.global_batch,
            "config": (folder / configs.CONFIG_FILE).read_text(),
            "statistics": stats_to_json(self.data.mixture.stats),
            "share_of_ends": self.share,
            "operating_point": self._operating_point(validation),
            "base": self.base_fingerprints,
            "validation": row,
        }
        score = row.get("val/frame/average_precision", -row["val/action_loss"]) if row else None
        with self.clock.stopped():
            self.checkpoints.save(step, self.state, record, score)
        self.saved = step

    def _operating_point(self, validation: _Validation | None) -> dict[str, Any] | None:
        """For the record of a checkpoint: what its own validation has chosen; without one, what needs none. None without an EOS head."""
        if not self.with_eos:
            return None
        if validation and validation.point:
            return validation.point.to_json()
        return OperatingPoint.unseen(exact_calibration(self.config, self.share), self.config.eos_threshold).to_json()

    def _finish(self, step: int, validation: _Validation | None) -> None:
        folder = self.config.run_dir
        if step < self.config.max_steps:
            self.console.line(f"stopped at step {step}, saved; go on with --resume True")
        elif self.report and validation and validation.point and self.data.val and jax.process_index() == 0:
            self.console.line(self.report(folder, self.data.train, self.data.val, validation.episodes, validation.point))
        self.console.line(f"run: {folder}")


class _Validation(NamedTuple):
    """One validation."""

    row: dict[str, float]  # the `val/…` columns of the metrics
    episodes: list[ChunkedEpisode]
    point: OperatingPoint | None  # None without an EOS head


class _LogLine(NamedTuple):
    """A log line whose numbers are still on the device."""

    step: int
    values: metrics.Metrics
    lap: Lap
