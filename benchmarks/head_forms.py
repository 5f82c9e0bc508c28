"""Does another form of the EOS head, another target or another loss tell ends better? On the hidden states of a policy that stands still.

    eosjax fit-head --checkpoint RUN --out DIR      # computes the hidden states, in RUN/hidden/
    python benchmarks/head_forms.py RUN/hidden/STEP-FINGERPRINT

Every form is trained on the same batches of whole chunks, with cross-entropy over all slots unless it says otherwise, and measured on the
held-out episodes:

mlp                the head of this package: each slot alone
attention          a transformer block over the slots of a chunk
memory             the mlp, which also sees a summary of the hidden states one chunk earlier
smoothed targets   the mlp; the steps before and after an end are half an end
hazard             the mlp; each slot says whether the sub-step ends there if it has not ended in the chunk before: what follows the first
                   end of a chunk is not learnt, and probabilities are multiplied up
progress           the mlp with a second output, the share of the sub-step that is done, whose squared error is added to the loss
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eosjax.ends.calibration import Calibration
from eosjax.ends.measure import measure_scores
from eosjax.ends.operating_points import OperatingPoint
from eosjax.models.heads import EosHead
from eosjax.runs.hidden import Columns, HiddenCache, open_cache
from eosjax.training.head_fit import EVENT_AP, FRAME_AP, held_out_episodes

WIDTH, DROPOUT, BATCH, RATE = 256, 0.1, 64, 1e-3  # a batch is of chunks
PROGRESS_WEIGHT = 1.0

Array = Any  # of NumPy or of JAX


class Chunks(NamedTuple):
    """Some chunks, with what there is to learn of them."""

    hidden: Array  # [b k a d]
    before: Array  # [b k a d], one chunk earlier; zeros where the episode begins
    ends: Array  # f32 [b k]
    near: Array  # f32 [b k], 1 at an end and 0.5 beside one
    progress: Array  # f32 [b k], share of the sub-step that is done
    valid: Array  # f32 [b k]


class Mlp(nn.Module):
    """The head of this package."""

    @nn.compact
    def __call__(self, chunks: Chunks, train: bool) -> Any:
        """One output a slot, [b k]."""
        return EosHead(WIDTH, DROPOUT)(chunks.hidden, deterministic=not train)


class Attention(nn.Module):
    """A pre-norm transformer block over the slots."""

    width: int = 128

    @nn.compact
    def __call__(self, chunks: Chunks, train: bool) -> Any:
        """One output a slot, [b k]."""
        x = nn.Dense(self.width)(_flat(chunks.hidden))
        x = x + self.param("slots", nn.initializers.normal(0.02), x.shape[-2:])
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4, dropout_rate=DROPOUT, deterministic=not train)(h)
        h = nn.Dense(self.width)(nn.relu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
        x = x + nn.Dropout(DROPOUT)(h, deterministic=not train)
        return nn.Dense(1)(nn.relu(nn.LayerNorm()(x)))[..., 0]


class Memory(nn.Module):
    """The head, which also sees a summary of the chunk before."""

    summary: int = 64

    @nn.compact
    def __call__(self, chunks: Chunks, train: bool) -> Any:
        """One output a slot, [b k]."""
        earlier = nn.relu(nn.Dense(self.summary)(_flat(chunks.before).mean(-2)))
        earlier = jnp.broadcast_to(earlier[:, None], (*chunks.hidden.shape[:2], self.summary))
        both = jnp.concatenate([_flat(chunks.hidden), earlier], -1)
        return EosHead(WIDTH, DROPOUT)(both[..., None, :], deterministic=not train)


class Progress(nn.Module):
    """The head's layers with two outputs: an end, and the progress."""

    @nn.compact
    def __call__(self, chunks: Chunks, train: bool) -> Any:
        """Both outputs, [b k 2]."""
        x = _flat(chunks.hidden)
        for width in (WIDTH, WIDTH // 2):
            x = nn.Dropout(DROPOUT)(nn.relu(nn.Dense(width)(x)), deterministic=not train)
        return nn.Dense(2)(x)


def _flat(hidden: jax.Array) -> jax.Array:
    return hidden.reshape(*hidden.shape[:2], -1).astype(jnp.float32)


def _mean(values: jax.Array, counted: jax.Array) -> jax.Array:
    return jnp.sum(values * counted) / jnp.maximum(jnp.sum(counted), 1.0)


def cross_entropy(outputs: jax.Array, chunks: Chunks) -> jax.Array:
    """Over all slots."""
    return _mean(optax.sigmoid_binary_cross_entropy(outputs, chunks.ends), chunks.valid)


def smoothed(outputs: jax.Array, chunks: Chunks) -> jax.Array:
    """The same with soft targets."""
    return _mean(optax.sigmoid_binary_cross_entropy(outputs, chunks.near), chunks.valid)


def hazard(outputs: jax.Array, chunks: Chunks) -> jax.Array:
    """Over the slots up to the first end."""
    ended_before = jnp.cumsum(chunks.ends, -1) - chunks.ends > 0
    return _mean(optax.sigmoid_binary_cross_entropy(outputs, chunks.ends), chunks.valid * ~ended_before)


def with_progress(outputs: jax.Array, chunks: Chunks) -> jax.Array:
    """Cross-entropy of the first output, squared error of the second."""
    error = _mean((outputs[..., 1] - chunks.progress) ** 2, chunks.valid)
    return cross_entropy(outputs[..., 0], chunks) + PROGRESS_WEIGHT * error


def of_hazard(outputs: np.ndarray) -> np.ndarray:
    """Log-odds of an end at each slot [n k], from the log-odds of one there if there was none before."""
    log_none = -np.logaddexp(0, outputs)
    log_here = -np.logaddexp(0, -outputs) + np.cumsum(log_none, -1) - log_none
    return log_here - np.log(-np.expm1(np.minimum(log_here, -1e-9)))


class Form(NamedTuple):
    """A row of the table."""

    module: nn.Module
    loss: Callable[[jax.Array, Chunks], jax.Array]
    logits: Callable[[np.ndarray], np.ndarray] = lambda outputs: outputs


FORMS = {
    "mlp": Form(Mlp(), cross_entropy),
    "attention": Form(Attention(), cross_entropy),
    "memory": Form(Memory(), cross_entropy),
    "smoothed targets": Form(Mlp(), smoothed),
    "hazard": Form(Mlp(), hazard, of_hazard),
    "progress": Form(Progress(), with_progress, lambda outputs: outputs[..., 0]),
}


class Data:
    """The chunks of a cache, by the number of their first frame."""

    def __init__(self, cache: HiddenCache) -> None:
        self.cache, k = cache, cache.chunk
        columns = cache.columns
        first = columns.episode_starts[columns.episode_of]
        self._before = np.where(np.arange(columns.ends.size) - k >= first, np.arange(columns.ends.size) - k, -1)
        self._valid = columns.valid(k).astype(np.float32)
        self._frames = np.minimum(np.arange(columns.ends.size)[:, None] + np.arange(k), columns.ends.size - 1)
        self._ends = columns.labels(k).astype(np.float32)
        self._steps = (_near(columns), _progress(columns))

    def chunks(self, frames: np.ndarray) -> Chunks:
        """Those that start at some frames."""
        before = self._before[frames]
        earlier = np.where((before >= 0)[:, None, None, None], self.cache.hidden[np.maximum(before, 0)], 0)
        near, progress = (of_frame[self._frames[frames]] for of_frame in self._steps)
        return Chunks(self.cache.hidden[frames], earlier, self._ends[frames], near, progress, self._valid[frames])


def _near(columns: Columns) -> np.ndarray:
    """f32 [N]: 1 at an end, 0.5 at the steps beside it in the same episode."""
    near, last = columns.ends.astype(np.float32), columns.ends.size - 1
    for end in np.flatnonzero(columns.ends):
        for beside in (max(end - 1, 0), min(end + 1, last)):
            if columns.episode_of[beside] == columns.episode_of[end]:
                near[beside] = max(near[beside], 0.5)
    return near


def _progress(columns: Columns) -> np.ndarray:
    """f32 [N]: share of the steps of the sub-step that are done with this one; the rest of an episode is a sub-step, too."""
    stops = np.union1d(np.flatnonzero(columns.ends) + 1, columns.episode_starts[1:])
    lengths = np.diff(stops, prepend=0)
    return np.concatenate([np.arange(1, length + 1) / length for length in lengths]).astype(np.float32)


def fit(form: Form, data: Data, seed: int, passes: int) -> dict[str, float]:
    """Trains a head, and measures it on the held-out episodes."""
    frames = data.cache.train_frames
    updates = passes * (frames.size // BATCH)
    optimizer = optax.adamw(optax.piecewise_constant_schedule(RATE, {2 * updates // 3: 0.1}), weight_decay=0.01)
    params = form.module.init(jax.random.key(seed), data.chunks(frames[:1]), False)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, state: Any, chunks: Chunks, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            outputs: Any = form.module.apply(params, chunks, True, rngs={"dropout": key})
            return form.loss(outputs, chunks)

        changes, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, changes), state

    rng, key, number = np.random.default_rng(seed), jax.random.key(seed), 0
    for _ in range(passes):
        order = rng.permutation(frames)
        for first in range(0, frames.size - BATCH + 1, BATCH):
            chunks = data.chunks(np.sort(order[first : first + BATCH]))
            params, state = update(params, state, chunks, jax.random.fold_in(key, number))
            number += 1
    apply = jax.jit(lambda params, chunks: form.module.apply(params, chunks, False))
    held_out = data.cache.columns.frames_of(np.flatnonzero(data.cache.columns.held_out))
    outputs = [np.asarray(apply(params, data.chunks(part))) for part in np.array_split(held_out, -(-held_out.size // 512))]
    point = OperatingPoint.unseen(Calibration(), 0.5)
    episodes = held_out_episodes(data.cache, form.logits(np.concatenate(outputs)))
    return measure_scores([point.dense(each) for each in episodes], point.dense_threshold, replicates=0).values


def main() -> None:
    """Prints the table, mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hidden", type=Path, help="folder of hidden states")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="heads of each form (%(default)s)")
    parser.add_argument("--passes", type=int, default=8, metavar="N", help="over the training frames (%(default)s)")
    args = parser.parse_args()
    data = Data(open_cache(args.hidden))
    print("| form | frame AP | event AP@2 |\n| --- | --- | --- |", flush=True)
    for name, form in FORMS.items():
        found = [fit(form, data, seed, args.passes) for seed in range(args.seeds)]
        cells = [np.array([each[figure] for each in found]) for figure in (FRAME_AP, EVENT_AP)]
        print(f"| {name} | " + " | ".join(f"{cell.mean():.3f} ± {cell.std(ddof=args.seeds > 1):.3f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
