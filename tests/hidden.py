"""A cache of made-up hidden states in which ends can be told."""

import numpy as np

from eosjax.runs.hidden import Columns, open_cache, write_cache

CHUNK, SIZE = 3, (2, 4)
FACTS = {"run": "r", "step": 7, "dataset": "d", "batch_size": 4, "eos_hidden_dim": 8, "eos_dropout": 0.1, "fingerprint": "f"}


def make_columns(episodes=12, seed=0):
    """Episodes of 15 to 25 steps with an end every four to seven steps; a third is held out."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(15, 26, episodes)
    total = int(lengths.sum())
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.zeros(total, bool)
    for first, last in zip(starts, starts[1:] - 1, strict=False):
        ends[np.arange(last, first, -int(rng.integers(4, 8)))] = True
    held_out = np.zeros(episodes, bool)
    held_out[rng.permutation(episodes)[: episodes // 3]] = True
    return Columns(
        ends=ends,
        episode_starts=starts,
        held_out=held_out,
        gripper=rng.random(total).astype(np.float32),
        proprio=rng.random((total, 3)).astype(np.float32),
        instruction_ids=rng.integers(0, 3, total).astype(np.int32),
    )


def make_hidden(columns, seed=0):
    """Noise, of which the first number of a row is larger at ends."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((columns.ends.size, CHUNK, *SIZE)).astype(np.float32)
    hidden[..., 0, 0] += 3 * columns.labels(CHUNK)
    return hidden


def make_cache(folder, episodes=12):
    """Writes a cache to a new folder, and opens it."""
    columns = make_columns(episodes)
    hidden = make_hidden(columns)
    write_cache(folder, hidden.shape, "float32", np.array_split(hidden, 3), columns, FACTS)
    return open_cache(folder)
