"""What is checked on disk before anything is built: the data is there, and no earlier run is in the way."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from eosjax import config as configs
from eosjax.config import TrainConfig
from eosjax.data.labels import FORMATS
from eosjax.data.sources import own_labels
from eosjax.flag_values import ConfigError
from eosjax.hub import is_hub_name
from eosjax.names import split_revision
from eosjax.runs.checkpoint import CheckpointError, checkpoint_steps, read_record
from eosjax.runs.lock import check_unlocked, holder
from eosjax.runs.record import differences


def check_paths(config: TrainConfig) -> None:
    """Checks what the run will read and where it will write, before anything is built.

    Raises `ConfigError` for a missing dataset or label file, for a run folder that already holds a run (unless `resume`), and for
    `resume` without a run to go on from. Whether that run holds a usable checkpoint is for `runs.checkpoint` to say.
    """
    if config.dataset_specs is not None and not config.dataset_specs.is_file():
        raise ConfigError(f"--dataset_specs {config.dataset_specs}: no such file")
    if config.lora_adapter_path is not None and not config.lora_adapter_path.is_dir():
        raise ConfigError(f"--lora_adapter_path {config.lora_adapter_path}: no such folder; expected one with adapter_config.json")
    if config.substep_labels_format not in FORMATS:
        raise ConfigError(f"--substep_labels_format must be one of {', '.join(FORMATS)}, got {config.substep_labels_format}")
    for member, labels in zip(config.mixture, config.label_paths, strict=True):
        _check_dataset(config, member.name, labels)
    check_unlocked(config.run_dir)
    check_run_folder(config)
    _check_writable("--run_root_dir", config.run_root_dir)
    for flag, folder in (("--cache_dir", config.cache_dir), ("--compile_cache_dir", config.compile_cache_dir)):
        if folder is not None:
            _check_writable(flag, folder)


def check_run_folder(config: TrainConfig) -> None:
    """Raises `ConfigError` for a folder that holds a run (unless `resume`), and for `resume` without a run of these flags.

    Raises:
      eosjax.runs.lock.LockedError: another process trains in it.
    """
    folder = config.run_dir
    with_checkpoint = bool(checkpoint_steps(folder / configs.CHECKPOINTS))  # what a killed save has left is none
    with_log = _is_filled(folder / configs.METRICS_FILE)
    if with_log and not with_checkpoint:
        raise ConfigError(
            f"{folder} holds the log of a run that ended before its first checkpoint, so nothing can go on from it: delete the folder, "
            "or start another run (--run_id_note NAME, --run_root_dir DIR)"
        )
    if with_checkpoint and not config.resume:
        raise ConfigError(
            f"{folder} already holds a run: go on with it (--resume True), or start another (--run_id_note NAME, --run_root_dir DIR)"
        )
    if config.resume:
        if not with_checkpoint:
            raise ConfigError(f"--resume: {folder} holds no run to go on from; check --run_root_dir and the flags that name the run")
        _check_flags(config)


def check_shared(folder: Path, owner: str, seconds: float) -> None:
    """Raises `ConfigError` unless this machine sees within some time that `owner` has the lock of a run folder, as process 0 does.

    A network file system may show a new file to other machines later.
    """
    end = time.monotonic() + seconds
    while holder(folder) != owner:
        if time.monotonic() >= end:
            raise ConfigError(
                f"--run_root_dir: {folder.absolute()} on {socket.gethostname()} is not the folder that process 0 has taken ({owner}); "
                "expected one file system that all processes see"
            )
        time.sleep(0.2)


def _check_writable(flag: str, folder: Path) -> None:
    try:
        folder.expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {folder}: cannot be made: {error.strerror}") from error
    if not os.access(folder.expanduser(), os.W_OK):
        raise ConfigError(f"{flag} {folder}: no permission to write there")


def _check_dataset(config: TrainConfig, name: str, labels: Path | None) -> None:
    if name != configs.DEMO_DATASET and not (config.data_root_dir / name).is_dir() and not is_hub_name(split_revision(name)[0]):
        raise ConfigError(f"no dataset at {config.data_root_dir / name}: set --data_root_dir to the folder that holds {name}/")
    if labels is not None and not labels.exists():
        raise ConfigError(f"--substep_labels_path {labels}: no such file")
    if labels is not None and not (labels.is_file() or labels.is_dir()):
        raise ConfigError(f"--substep_labels_path {labels}: not a regular file; a pipe, say, can be read only once")
    if labels is None and config.use_substep_eos and name != configs.DEMO_DATASET and own_labels(config.data_root_dir, name) is None:
        raise ConfigError(
            "--substep_labels_path is missing: the ends of the sub-steps come from it (or train without them: --use_substep_eos False "
            "--use_eos_classification False)"
        )


def _is_filled(path: Path) -> bool:
    """Whether something would be lost with this file; a run that failed before its first numbers may be started again."""
    return path.is_file() and path.stat().st_size > 0


_TUNED = ("eos_sample_positive", "eos_min_positive")  # what `eos_tune auto` sets, from the data: the record has what it chose


def _check_flags(config: TrainConfig) -> None:
    """Compares the flags alone, before anything is built; the rest of the record is compared when the checkpoint is restored."""
    directory = config.run_dir / configs.CHECKPOINTS
    for step in reversed(checkpoint_steps(directory)):
        try:
            run = read_record(directory / str(step)).run
        except CheckpointError:  # damaged: is named when it is restored
            continue
        saved = run.config
        if run.head_fit is not None:
            raise ConfigError(
                f"--resume: {config.run_dir} is {run.head_fit.run} with an EOS head of `eosjax fit-head`: there is nothing to "
                f"go on with; go on with {run.head_fit.run}, and fit the head again"
            )
        tuned = _TUNED if saved.eos_tune == config.eos_tune == "auto" else ()
        found = [each for each in differences({"config": saved}, {"config": config}) if each.what.removeprefix("config.") not in tuned]
        if found:
            listed = "; ".join(str(each).replace("config.", "--") for each in found)
            raise ConfigError(f"--resume: {config.run_dir} is a run with other flags: {listed}")
        if config.max_steps < saved.max_steps:
            raise ConfigError(f"--max_steps: expected {saved.max_steps} as in {config.run_dir}, or more, got {config.max_steps}")
        return
