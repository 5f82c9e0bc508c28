"""Writes a run whose policy is that of another run, with an EOS head that was trained anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import struct

from eosjax.config import CHECKPOINTS
from eosjax.data.stats import DatasetStats
from eosjax.models.parts import split_params
from eosjax.models.policies import Params
from eosjax.runs.checkpoint import Checkpoints, fetch_fingerprints
from eosjax.runs.folder import write_run_files
from eosjax.runs.load import TOKENIZER_FILE, SavedRun
from eosjax.runs.record import CheckpointRecord, RunRecord, Validation


@struct.dataclass
class FittedState:
    """What such a checkpoint holds of a training state: all that others read, and nothing to go on from."""

    trainable: Params


def scratch_folder(out: Path) -> Path:
    """Where the run is written until it is whole."""
    return out.absolute().with_name(f".{out.name}.{os.getpid()}")


def write_refitted(
    scratch: Path, saved: SavedRun, run: RunRecord, stats: Mapping[str, DatasetStats], head: Params, validation: Validation
) -> None:
    """Writes checkpoint and files of the new run into a folder.

    Args:
      scratch: the folder; made if missing.
      saved: the policy.
      run: record of the new run.
      stats: of its data.
      head: parameters of its EOS head.
      validation: of the head.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    write_run_files(scratch, run.config, stats, (saved.folder / TOKENIZER_FILE).read_bytes())
    trainable = {**split_params(saved.params)[0], "eos_head": head}
    state = FittedState(jax.tree.map(jnp.asarray, trainable))
    record = CheckpointRecord(run, saved.step, validation, validation.operating_point, fetch_fingerprints(state))
    checkpoints = Checkpoints(scratch / CHECKPOINTS, keep=1)
    try:
        checkpoints.save(state, record)
    finally:
        checkpoints.close()


def finish(scratch: Path, out: Path) -> None:
    """The folder appears, whole; raises `OSError` if something is there by now."""
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    os.rename(scratch, out)


def discard(scratch: Path) -> None:
    """Removes what was not finished."""
    shutil.rmtree(scratch, ignore_errors=True)
