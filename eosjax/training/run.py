"""A run from its flags to its end: the processes come together, open what the flags name, check it, and train."""

from __future__ import annotations

import contextlib

import jax

from eosjax.config import TrainConfig
from eosjax.runs.data import RunData, open_data, share_of_ends
from eosjax.runs.lock import RunLock, holder
from eosjax.runs.policy_source import PolicySource
from eosjax.runs.record import facts
from eosjax.training import processes, watch
from eosjax.training.data_checks import check_ends, check_plausible, describe_data, tune_counts
from eosjax.training.host_memory import keep_freed_memory
from eosjax.training.initial import suit_device
from eosjax.training.logging import Console, check_wandb
from eosjax.training.loop import Report, Trainer
from eosjax.training.parallel import choose_devices, connect
from eosjax.training.preflight import check_paths, check_run_folder, check_shared
from eosjax.training.state import make_learner

_SHARED_SECONDS = 60  # for a network file system to show the others what process 0 has written


def run(config: TrainConfig, report: Report | None = None) -> None:
    """Trains a policy as the configuration says: the whole main job, from the data to the report.

    Writes to `config.run_dir`: config.yaml, dataset_statistics.json, tokenizer.json, metrics.jsonl, tensorboard/, checkpoints/ and, with
    validation, what `report` adds to it. SIGINT and SIGTERM end the run after the current update, with a checkpoint.

    Raises:
      ConfigError: the configuration cannot be run.
      eosjax.runs.lock.LockedError: another process trains in the folder of the run.
      eosjax.data.episode.DatasetError, eosjax.data.labels.LabelError: the data cannot be used.
      eosjax.data.labels.plausibility.ImplausibleError: labels that cannot be those of a robot.
      eosjax.runs.checkpoint.CheckpointError: `resume` without a usable checkpoint.
      eosjax.training.processes.StartError, eosjax.training.processes.OtherProcessError: of a run of several processes.
    """
    processes.start(config)
    with watch.watching(config):
        _run(config, report)


def _run(config: TrainConfig, report: Report | None) -> None:
    processes.check_same({"code": processes.code(), **facts({"config": config})})
    devices = choose_devices(config.num_devices)
    connect(devices)
    if devices[0].platform == "cpu":
        keep_freed_memory()
    policy, data = processes.together(lambda: _open(config))
    share = share_of_ends(data.train)
    config, tuned = tune_counts(config, share)

    console = Console(config.max_steps, quiet=not processes.is_first())
    for line in [*describe_data(data, config.data_root_dir), *([tuned] if tuned else [])]:
        console.line(line)
    described = policy.vla_config(config, data.mixture.spec)
    vla_config = processes.together(lambda: suit_device(config, described, data.train.length, devices, console.line))
    learner = make_learner(config, vla_config, share)
    with contextlib.ExitStack() as stack:
        _take_folder(config, stack)
        trainer = processes.together(lambda: Trainer(config, data, share, learner, policy, devices, console))
        trainer.begin(policy.tokenizer_json)
        among = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        console.line(f"{len(devices)} {devices[0].platform} device(s){among}, batch {trainer.global_batch}, run {config.run_dir}")
        trainer.train(report)


def _open(config: TrainConfig) -> tuple[PolicySource, RunData]:
    """The policy and the data that the flags name, checked."""
    check_wandb(config)
    check_paths(config)
    policy = PolicySource.open(config)
    data = open_data(config, policy)
    if config.use_eos_classification:
        check_ends(data)
        for dataset in data.mixture.datasets:
            check_plausible(dataset)
    return policy, data


def _take_folder(config: TrainConfig, stack: contextlib.ExitStack) -> None:
    """Process 0 locks the folder of the run, for as long as the stack is open; the others make sure that it is the one they see."""

    def take() -> None:
        if processes.is_first():
            stack.enter_context(RunLock(config.run_dir))
            check_run_folder(config)

    processes.together(take)
    owner = processes.exchange(holder(config.run_dir))[0]
    processes.together(lambda: check_shared(config.run_dir, owner, _SHARED_SECONDS))
