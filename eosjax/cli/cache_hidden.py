"""Runs the policy of a training run once over all its episodes and stores the hidden states of every predicted action.

`eosjax bench eos` trains heads on them without running the policy again. The folder is complete without the run and its data."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from eosjax.bench.cache import Columns, check_new, fingerprint, write_cache
from eosjax.bench.full import hidden_fn
from eosjax.cli.common import to_path
from eosjax.cli.trained import add_checkpoint_flags, load_with_eos
from eosjax.cli.trained_data import add_place_flags, open_run_data
from eosjax.config import TrainConfig
from eosjax.data.samples.loader import EvalLoader
from eosjax.data.samples.source import SampleSource
from eosjax.runs.checkpoint import fetch_fingerprints
from eosjax.runs.data import RunData
from eosjax.runs.load import SavedRun
from eosjax.training.state import make_learner
from eosjax.types import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_checkpoint_flags(parser)
    add_place_flags(parser)
    parser.add_argument("--out", type=to_path, required=True, metavar="DIR", help="folder for the hidden states; must be new or empty")


def run(args: argparse.Namespace) -> int:
    """Runs the policy and writes."""
    check_new(args.out)
    saved = load_with_eos(args)
    config, data = saved.config, open_run_data(args, saved)
    source = all_episodes(args.checkpoint, data)
    columns = _columns(source, data)
    shape = saved.vla_config
    size = (len(source), shape.chunk, shape.action_dim, shape.llama.width)
    facts = {
        "run": args.checkpoint.name,
        "step": saved.step,
        "dataset": data.mixture.name,
        "batch_size": config.batch_size * config.grad_accumulation_steps,
        "eos_hidden_dim": config.eos_hidden_dim,
        "eos_dropout": config.eos_dropout,
        "fingerprint": fingerprint(fetch_fingerprints(saved.params), columns.ends, columns.episode_starts, columns.held_out),
    }
    write_cache(args.out, size, shape.dtype, hidden_blocks(saved, config, source), columns, facts)
    held_out = int(columns.held_out.sum())
    gigabytes = np.prod(size) * np.dtype(jax.numpy.dtype(shape.dtype)).itemsize / 1e9
    print(
        f"{size[0]:,} steps of {columns.held_out.size} episodes ({held_out} held out), {size[1]} x {size[2]} x {size[3]} numbers each, "
        f"{gigabytes:.2f} GB: {args.out}"
    )
    return 0


def all_episodes(run_dir: Path, data: RunData) -> SampleSource:
    """The samples of all episodes of a run, those held out included.

    Raises:
      UserError: no episode was held out.
    """
    if data.val is None:
        raise UserError(f"--checkpoint {run_dir}: held out no episodes (--use_val_set False), so that there are none to measure on")
    return dataclasses.replace(data.train, episodes=np.sort(np.concatenate([data.train.episodes, data.val.episodes])))


def hidden_blocks(saved: SavedRun, config: TrainConfig, source: SampleSource) -> Iterator[np.ndarray]:
    """The hidden states [b k a d] of all samples, batch by batch, in the dtype of the policy; as in evaluation, without dropout."""
    forward, params = hidden_fn(make_learner(config, saved.vla_config).policy), jax.device_put(saved.params)
    loader = EvalLoader(source, config.batch_size, threads=config.num_loader_threads)
    for batch in tqdm(loader, desc="hidden states", unit="batch", disable=not sys.stderr.isatty()):
        yield np.asarray(forward(params, batch))[batch.key >= 0]


def _columns(source: SampleSource, data: RunData) -> Columns:
    """What is known of the frames of the samples."""
    mixture, frames = source.data, source.anchors
    lengths = np.diff(mixture.episode_starts)[source.episodes]
    assert data.val is not None
    return Columns(
        ends=mixture.labels.ends[frames].astype(bool),
        episode_starts=np.concatenate([[0], np.cumsum(lengths)]),
        held_out=np.isin(source.episodes, data.val.episodes),
        gripper=np.asarray(mixture.gripper[frames], np.float32),
        proprio=mixture.proprio[frames],
        instruction_ids=mixture.labels.instruction_ids[frames],
    )
