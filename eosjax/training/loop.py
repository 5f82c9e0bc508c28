"""The training loop on the host: restore, update, log, validate, save, report."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from eosjax import config as configs
from eosjax.config import TrainConfig
from eosjax.data.labels.advice import explain_share
from eosjax.data.samples.loader import EvalLoader, TrainLoader
from eosjax.data.samples.source import SampleSource
from eosjax.data.samples.tokens import PromptForm
from eosjax.ends.calibration import exact_calibration
from eosjax.ends.measure import DEPLOYED
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import ChunkedEpisode
from eosjax.flag_values import ConfigError
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.parts import abstract_params, split_params
from eosjax.models.policies import Params
from eosjax.runs.checkpoint import Checkpoints, checkpoint_steps, fetch_fingerprints
from eosjax.runs.data import RunData, dataset_records
from eosjax.runs.faults import FileSystemError, file_system_fault
from eosjax.runs.folder import write_run_files
from eosjax.runs.policy_source import PolicySource
from eosjax.runs.record import CheckpointRecord, RunRecord, Software, Validation, describe_differences, differences, facts, fingerprint
from eosjax.training import metrics, processes
from eosjax.training.initial import BaseWeights, initial_params
from eosjax.training.interrupt import stop_signals
from eosjax.training.keys import run_keys
from eosjax.training.logging import Console, MetricWriter, eos_line, waiting_line
from eosjax.training.parallel import DataParallel, Device
from eosjax.training.plan import count
from eosjax.training.state import Learner, TrainState, all_finite, init_state
from eosjax.training.timing import Clock, Lap
from eosjax.training.validation import operate, predict_split
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


# Called once, after a whole run with a validation: (folder, training split, validation split, what the head says of the latter, operating
# point) -> lines for the console.
Report = Callable[[Path, SampleSource, SampleSource, Sequence[ChunkedEpisode], OperatingPoint], str]


class Trainer:
    """One run in progress: what the loop body needs, and the state that it replaces."""

    def __init__(
        self,
        config: TrainConfig,
        data: RunData,
        share: float,
        learner: Learner,
        policy: PolicySource,
        devices: list[Device],
        console: Console,
    ) -> None:
        self.config, self.data, self.share, self.console = config, data, share, console
        per_device = config.batch_size * config.grad_accumulation_steps
        self.local_batch = per_device * sum(device.process_index == jax.process_index() for device in devices)
        self.global_batch = per_device * len(devices)
        self.with_eos = learner.eos_head is not None
        if self.with_eos and config.uses_buffer:
            rows = self.global_batch * data.mixture.spec.chunk
            console.line(explain_share(share, rows, config.eos_min_positive, config.eos_min_negative, config.eos_buffer_capacity))

        self.parallel = DataParallel(learner, devices)
        self.state, self.frozen, base = self._init(learner, policy.pretrained)
        self.record = RunRecord(
            config=config,
            datasets=dataset_records(data),
            share_of_ends=share,
            samples_per_update=self.global_batch,
            model=learner.policy.vla.config.portable,
            prompt=PromptForm.of(data.train.rephrase),
            tokenizer=fingerprint(policy.tokenizer_json),
            base=base,
            base_revision=policy.pretrained.revision if policy.pretrained else None,
            software=software(devices),
            wandb_id=None,
        )
        self.validation: Validation | None = None  # the last one, of this process or before it
        self.clock = Clock()
        self.pending: _LogLine | None = None

    def begin(self, tokenizer_json: bytes) -> None:
        """Makes sure that all processes have the same run before them, then opens its folder, and restores what is to go on.

        Every process must call it: whatever it does, all do.
        """
        processes.check_same(facts(self.record) | fetch_fingerprints(self.state))
        self.checkpoints = Checkpoints(self.config.run_dir / configs.CHECKPOINTS, self.config.keep_checkpoints)
        self.start = self.saved = self._restore() if self.config.resume else 0
        self.writer = self._open_folder(tokenizer_json)
        self.record = dataclasses.replace(self.record, wandb_id=self.writer.wandb_id)

    def train(self, report: Report | None) -> None:
        """Makes all updates, then reports; a signal ends it earlier, with a checkpoint.

        Raises:
          FileSystemError: the disk is full, read-only, closed or gone.
        """
        try:
            self._train(report)
        except Exception as error:
            if (fault := file_system_fault(error)) is None:
                raise
            kept = checkpoint_steps(self.config.run_dir / configs.CHECKPOINTS)
            rest = f"the newest checkpoint is of step {kept[-1]}; go on with --resume" if kept else "there is no checkpoint yet"
            raise FileSystemError(f"{self.config.run_dir}: the run has ended: {fault}; {rest}") from error

    def _train(self, report: Report | None) -> None:
        config, episodes, step = self.config, None, self.start
        batches = self._batches()
        with stop_signals() as stopped, contextlib.closing(self.checkpoints), contextlib.closing(self.writer):
            while step < config.max_steps and not stopped(step):
                with self.clock.waiting():
                    batch = next(batches)
                self.state, new_metrics = self.parallel.step(self.state, self.frozen, self.parallel.split(batch))
                step += 1
                self.clock.steps += 1
                self.console.advance(step)
                if self._due(step, config.log_freq):
                    self._flush_log()
                    self.pending = _LogLine(step, new_metrics, self.clock.lap())
                if self.data.val is not None and self._due(step, config.val_freq):
                    episodes = self._validate(step, self.data.val)
                if self._due(step, config.save_freq):
                    self._save(step)
            if self.saved != step:
                self._save(step)
            self.checkpoints.wait()
        self.console.close()
        self._finish(step, episodes, report)

    def _init(self, learner: Learner, pretrained: Pretrained | None) -> tuple[TrainState, Params, dict[str, int]]:
        init_key, run_key = run_keys(self.config.seed)
        example = self.data.train.batch(np.zeros(1, np.int64))
        adapter = self.config.lora_adapter_path
        base = BaseWeights(self.config, learner.policy.vla.config, self.parallel)
        trainable, frozen = split_params(initial_params(learner, pretrained, adapter, example, init_key, base.put, self.console.line))
        parts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in trainable.items()}
        listed = ", ".join(f"{part} {size:,}" for part, size in parts.items())
        frozen_size = count(split_params(abstract_params(self.config, learner.policy.vla.config))[1])
        self.console.line(f"trainable parameters: {sum(parts.values()):,} ({listed}); frozen: {frozen_size:,}")
        frozen = base.place(frozen)
        return self.parallel.replicate(init_state(learner, trainable, run_key)), frozen, base.fingerprints(frozen)

    def _restore(self) -> int:
        """Replaces the state by the one of the newest whole checkpoint; returns the updates it has made."""
        restored, saved = self.checkpoints.restore(self.state, self.parallel.everywhere, self._check_same_run)
        self.state = self.parallel.own(restored)
        if saved.step >= self.config.max_steps:
            raise ConfigError(
                f"--max_steps: expected more than the {saved.step} updates that {self.config.run_dir} has made, got {self.config.max_steps}"
            )
        self.validation = saved.validation
        self.record = dataclasses.replace(self.record, wandb_id=saved.run.wandb_id)
        self.console.line(f"resumed from the checkpoint of step {saved.step}")
        if saved.run.software != self.record.software:
            self.console.line(f"note: made with {saved.run.software}, goes on with {self.record.software}: results may differ in rounding")
        return saved.step

    def _check_same_run(self, saved: CheckpointRecord) -> None:
        """Raises `ConfigError` naming all that is not as in the checkpoint, but for what a run may change."""
        if found := differences(saved.run, self.record):
            raise ConfigError(
                f"--resume: {self.config.run_dir} cannot go on, it was trained on something else:\n{describe_differences(found)}\n"
                "put that back, or start another run (--run_id_note NAME)"
            )

    def _open_folder(self, tokenizer_json: bytes) -> MetricWriter:
        folder = self.config.run_dir
        if processes.is_first():
            write_run_files(folder, self.config, self.data.mixture.stats, tokenizer_json)
        return MetricWriter(self.config, folder, self.start, self.record.wandb_id, enabled=processes.is_first())

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
            lambda_eos_policy=config.lambda_eos_policy,
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

    def _validate(self, step: int, source: SampleSource) -> list[ChunkedEpisode]:
        """Runs the policy over the held-out episodes, and chooses where to operate from what its head says of them."""
        self._flush_log()
        self._check_finite(step)

        def predict(batch: Batch) -> Any:
            return jax.device_get(self.parallel.predict(self.state.trainable, self.frozen, self.parallel.split(batch)))

        batches = EvalLoader(source, self.local_batch, self.config.num_loader_threads, jax.process_index(), jax.process_count())
        with self.clock.stopped():
            found = predict_split(predict, batches, source.anchors, source.data.labels.ends, source.data.episode_of, processes.gather)
            row, point = {"val/action_loss": found.action_loss}, None
            if self.with_eos:
                point, measured = operate(found.episodes, self.config, self.share, self.data.train)
                row |= measured
        self.writer.write(step, row)
        self.console.line("  ".join(f"{name} = {row[name]:.4f}" for name in _SHOWN if name in row))
        self.validation = Validation(step, row, point)
        return found.episodes

    def _save(self, step: int) -> None:
        """Saves after everything up to here was logged, so that a resumed run has the same lines."""
        self._flush_log()
        self._check_finite(step)
        record = CheckpointRecord(self.record, step, self.validation, self._operating_point(), fetch_fingerprints(self.state))
        with self.clock.stopped():
            self.checkpoints.save(self.parallel.shared(self.state), record)
        self.saved = step

    def _operating_point(self) -> OperatingPoint | None:
        """What the last validation has chosen; before the first, what needs none. None without an EOS head."""
        if not self.with_eos:
            return None
        if self.validation is not None:
            return self.validation.operating_point
        return OperatingPoint.unseen(exact_calibration(self.config, self.share), self.config.eos_threshold)

    def _finish(self, step: int, episodes: list[ChunkedEpisode] | None, report: Report | None) -> None:
        folder, validation = self.config.run_dir, self.validation
        if step < self.config.max_steps:
            self.console.line(f"stopped at step {step}, saved; go on with --resume True")
        elif report and episodes and validation and validation.operating_point and self.data.val and processes.is_first():
            self.console.line(report(folder, self.data.train, self.data.val, episodes, validation.operating_point))
        self.console.line(f"run: {folder}")


def software(devices: list[Device]) -> Software:
    """What runs here, for the record."""
    return Software(metadata.version("eosjax"), jax.__version__, devices[0].platform, devices[0].device_kind, len(devices))


class _LogLine(NamedTuple):
    """A log line whose numbers are still on the device."""

    step: int
    values: metrics.Metrics
    lap: Lap
