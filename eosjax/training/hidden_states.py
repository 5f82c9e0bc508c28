"""The hidden states of a policy that stands still, at every step of the episodes of its run: computed once, then kept in a folder."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from eosjax.data.samples.loader import EvalLoader
from eosjax.data.samples.source import SampleSource
from eosjax.models.policies import Observation, Params, Policy
from eosjax.runs.data import RunData
from eosjax.runs.hidden import Columns, fingerprint, write_cache
from eosjax.runs.load import SavedRun
from eosjax.runs.record import CheckpointRecord
from eosjax.training.keys import evaluation_keys
from eosjax.training.state import make_learner
from eosjax.types import Batch, UserError

_HEAD = ".trainable['eos_head']"  # how fingerprints of its arrays begin


@functools.cache
def hidden_fn(policy: Policy) -> Callable[[Params, Batch], jax.Array]:
    """A compiled function (parameters by part, batch) -> hidden states [b k a d], as in evaluation; compiled once for all runs."""

    @jax.jit
    def hidden(params: Params, batch: Batch) -> jax.Array:
        seen = Observation(batch.images, batch.input_ids, batch.attn_mask, batch.proprio)
        return policy.act(params, seen, evaluation_keys(batch.key)).hidden

    return hidden


def all_episodes(run_dir: Path, data: RunData) -> SampleSource:
    """The samples of all episodes of a run, those held out included.

    Raises:
      UserError: no episode was held out.
    """
    if data.val is None:
        raise UserError(f"--checkpoint {run_dir}: held out no episodes (--use_val_set False), so that there are none to measure on")
    return dataclasses.replace(data.train, episodes=np.sort(np.concatenate([data.train.episodes, data.val.episodes])))


def columns_of(source: SampleSource, data: RunData) -> Columns:
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


def states_fingerprint(record: CheckpointRecord, source: SampleSource) -> str:
    """Tells the hidden states of these samples from all others: of the policy without its EOS head, of frames, instructions and order.

    Which steps are ends is no part of it: with other labels of the same instructions the hidden states are the same.
    """
    policy = {name: value for name, value in record.fingerprints.items() if name.startswith(".trainable[") and not name.startswith(_HEAD)}
    labels, run = source.data.labels, record.run
    used, ids = np.unique(labels.instruction_ids[source.anchors], return_inverse=True)
    texts, order = np.unique([labels.instructions[number] for number in used], return_inverse=True)
    words = [texts.tolist(), order[ids].astype(np.int32)]
    return fingerprint(policy, dict(run.base), [each.frames for each in run.datasets], run.tokenizer, source.episodes, *words)


def store_hidden(folder: Path, saved: SavedRun, data: RunData) -> None:
    """Runs the policy once over all episodes, with a progress bar on a terminal, and writes what heads need to a new folder.

    Raises:
      eosjax.runs.hidden.CacheError: something is in the folder.
      UserError: no episode was held out.
    """
    source = all_episodes(saved.folder, data)
    columns, shape, config = columns_of(source, data), saved.vla_config, saved.config
    facts: dict[str, Any] = {
        "run": saved.folder.name,
        "step": saved.step,
        "dataset": data.mixture.name,
        "batch_size": config.batch_size * config.grad_accumulation_steps,
        "eos_hidden_dim": config.eos_hidden_dim,
        "eos_dropout": config.eos_dropout,
        "states": states_fingerprint(saved.record, source),
        "fingerprint": fingerprint(dict(saved.record.fingerprints), columns.ends, columns.episode_starts, columns.held_out),
    }
    size = (len(source), shape.chunk, shape.action_dim, shape.llama.width)
    write_cache(folder, size, shape.dtype, _blocks(saved, source), columns, facts)


def _blocks(saved: SavedRun, source: SampleSource) -> Iterator[np.ndarray]:
    """The hidden states [b k a d] of all samples, batch by batch, in the dtype of the policy; as in evaluation, without dropout."""
    config = saved.config
    forward, params = hidden_fn(make_learner(config, saved.vla_config).policy), jax.device_put(saved.params)
    loader = EvalLoader(source, config.batch_size, threads=config.num_loader_threads)
    for batch in tqdm(loader, desc="hidden states", unit="batch", disable=not sys.stderr.isatty()):
        yield np.asarray(forward(params, batch))[batch.key >= 0]
