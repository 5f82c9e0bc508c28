"""A class-balanced ring buffer that lives on the device: the newest rows of two classes, drawn from in fixed shares.

Two layers, both pure functions over immutable pytrees and both safe under `jit`, `vmap`, `scan`, `pmap` and donation:

* `RingBuffer`: a FIFO of the newest `capacity` rows, equal to `collections.deque(maxlen=capacity)`;
* `BalancedBuffer`: one ring for the positives and one for the negatives, and a balanced draw that removes nothing.

    buffer = BalancedBuffer(capacity=50, sample_positive=15, sample_negative=20, min_positive=15, min_negative=20)
    state = buffer.init(jax.ShapeDtypeStruct((7, 4096), jnp.bfloat16))
    state = buffer.add(state, hidden, labels)  # inside jit, with `state` donated: costs O(rows), not O(capacity)
    sample = buffer.sample(state, key)  # sample.weights is 0 everywhere until buffer.can_sample(state)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from eosjax.types import EosSample

PyTree = Any


@flax.struct.dataclass
class RingState:
    """The content of one ring. Read it with `RingBuffer.take` or `RingBuffer.contents`, which restore the dtypes."""

    data: PyTree  # leaves [capacity ...]; floats narrower than 32 bits are held as unsigned integers (`_held_as`)
    born: jax.Array  # i32 [capacity]: the clock when the row entered
    next: jax.Array  # i32 []: the slot that is written next
    count: jax.Array  # i32 []: rows held, at most the capacity
    seen: jax.Array  # i32 []: rows that ever entered
    dtypes: tuple[str, ...] = flax.struct.field(pytree_node=False)  # of the items, in the order of data's leaves


@flax.struct.dataclass
class BalancedBufferState:
    """The content of a `BalancedBuffer`."""

    positive: RingState
    negative: RingState
    adds: jax.Array  # i32 []: calls of `add`; the clock that ages are counted in
    updates: jax.Array  # i32 []: draws that were used for an update (see `BalancedBuffer.count_update`)


@dataclasses.dataclass(frozen=True)
class RingBuffer:
    """A FIFO of the newest `capacity` rows.

    Raises:
      ValueError: the capacity is not positive.
    """

    capacity: int

    def __post_init__(self):
        _check_positive(self)

    def init(self, item: PyTree) -> RingState:
        """An empty ring for rows like `item`: a pytree of arrays or `jax.ShapeDtypeStruct`s of ONE row.

        Raises:
          ValueError: `item` has no leaves.
        """
        specs = jax.eval_shape(lambda x: x, item)
        if not jax.tree.leaves(specs):
            raise ValueError("item: expected a pytree with at least one array, got one without leaves")
        # Each scalar is an array of its own: one array in two fields could not be donated.
        return RingState(
            data=jax.tree.map(lambda spec: jnp.zeros((self.capacity, *spec.shape), _held_as(spec.dtype)), specs),
            born=jnp.zeros(self.capacity, jnp.int32),
            next=jnp.zeros((), jnp.int32),
            count=jnp.zeros((), jnp.int32),
            seen=jnp.zeros((), jnp.int32),
            dtypes=tuple(spec.dtype.name for spec in jax.tree.leaves(specs)),
        )

    def add(self, state: RingState, items: PyTree, valid: ArrayLike, clock: ArrayLike = 0) -> RingState:
        """Appends the valid rows of `items` in order; the oldest rows make room.

        Args:
          state: the ring; donate it, or XLA copies the whole ring before it writes.
          items: leaves [n ...], shaped and typed like the item of `init` after the leading axis; n may be 0 or
            exceed the capacity. No gradient flows into what is stored.
          valid: bool [n]; rows that are False leave no trace.
          clock: i32 []; stored in `born` for the rows that enter now.

        Raises:
          ValueError: valid or a leaf of items is missing, unknown, or of the wrong shape or dtype (at trace time).
        """
        valid = jnp.asarray(valid)
        if valid.ndim != 1 or valid.dtype != bool:
            raise ValueError(f"valid: expected bool [n], got {valid.dtype} {list(valid.shape)}")
        n = valid.shape[0]
        _check_rows(items, _specs(state), n)
        slots, total = self.slots(state, valid), valid.sum(dtype=jnp.int32)

        def write(ring, rows):
            return ring.at[slots].set(_bitcast(rows, ring.dtype), mode="drop", unique_indices=True)

        return dataclasses.replace(
            state,
            data=jax.tree.map(write, state.data, jax.lax.stop_gradient(items)),
            born=write(state.born, jnp.full(n, clock, jnp.int32)),
            next=(state.next + total) % self.capacity,
            count=jnp.minimum(state.count + total, self.capacity),
            seen=state.seen + total,
        )

    def slots(self, state: RingState, valid: jax.Array) -> jax.Array:
        """The slots i32 [n] that rows with validity bool [n] enter; no two are equal.

        At or beyond the capacity for a row that stays out: an invalid one, or one that newer rows of the same batch
        push out again. (With two writes to one slot the winner would be undefined; -1 would mean the last slot.)
        """
        n = valid.shape[0]
        rank = jnp.cumsum(valid, dtype=jnp.int32) - 1
        enters = valid & (rank >= valid.sum(dtype=jnp.int32) - self.capacity)
        outside = self.capacity + jnp.arange(n, dtype=jnp.int32)
        return jnp.where(enters, (state.next + rank) % self.capacity, outside)

    def draw(self, state: RingState, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draws n slots without replacement, uniformly over the rows held, in random order.

        Returns:
          slots i32 [n], always within the capacity, and real bool [n]: False where the ring holds too few rows.

        Raises:
          ValueError: n exceeds the capacity.
        """
        if n > self.capacity:
            raise ValueError(f"n: expected at most the capacity ({self.capacity}), got {n}")
        held = (jnp.arange(self.capacity) < state.count).astype(jnp.float32)
        # Without replacement, choice takes slots of probability 0 when the others are used up: the empty ones come last.
        slots = jax.random.choice(key, self.capacity, (n,), replace=False, p=held)
        return slots.astype(jnp.int32), jnp.arange(n) < state.count

    def take(self, state: RingState, slots: jax.Array) -> PyTree:
        """The rows at `slots` i32 [n], each within the capacity, as leaves [n ...]. Slots never written hold zeros."""
        return jax.tree.map(lambda leaf, spec: _bitcast(_rows(leaf, slots), spec.dtype), state.data, _specs(state))

    def contents(self, state: RingState) -> PyTree:
        """The rows held, oldest first, as NumPy arrays [count ...]. Host side: waits for the device."""
        slots = self._held(state)
        return jax.tree.map(lambda leaf, spec: np.asarray(leaf)[slots].view(spec.dtype), state.data, _specs(state))

    def born(self, state: RingState) -> np.ndarray:
        """The clock at which each row of `contents` entered, i32 [count]. Host side, too."""
        return np.asarray(state.born)[self._held(state)]

    def _held(self, state: RingState) -> np.ndarray:
        """The slots in use, oldest row first."""
        count = int(state.count)
        return (int(state.next) - count + np.arange(count)) % self.capacity


@dataclasses.dataclass(frozen=True)
class BalancedBuffer:
    """Two rings, one a class, and a draw with fixed numbers of both.

    Attributes:
      capacity: rows held of each class.
      sample_positive, sample_negative: rows drawn of each class.
      min_positive, min_negative: rows that must be held of each class before a draw counts.

    Raises:
      ValueError: a size is not positive, a class would be drawn from before it holds a sample (min < sample), or it
        could never be drawn from (capacity < min).
    """

    capacity: int = 50
    sample_positive: int = 15
    sample_negative: int = 20
    min_positive: int = 15
    min_negative: int = 20

    def __post_init__(self):
        _check_positive(self)
        for name in ("positive", "negative"):
            sample, least = getattr(self, f"sample_{name}"), getattr(self, f"min_{name}")
            if least < sample:
                raise ValueError(f"min_{name}: expected at least sample_{name} ({sample}), got {least}")
            if self.capacity < least:
                raise ValueError(f"capacity: expected at least min_{name} ({least}), got {self.capacity}")

    @property
    def drawn_share(self) -> float:
        """The share of positives in a draw."""
        return self.sample_positive / (self.sample_positive + self.sample_negative)

    @property
    def ring(self) -> RingBuffer:
        """The ring that holds one class."""
        return RingBuffer(self.capacity)

    def init(self, item: PyTree) -> BalancedBufferState:
        """An empty buffer for rows like `item`: a pytree of arrays or `jax.ShapeDtypeStruct`s of ONE row.

        Raises:
          ValueError: `item` has no leaves.
        """
        return BalancedBufferState(
            positive=self.ring.init(item),
            negative=self.ring.init(item),
            adds=jnp.zeros((), jnp.int32),
            updates=jnp.zeros((), jnp.int32),
        )

    def add(self, state: BalancedBufferState, items: PyTree, labels: ArrayLike, valid: ArrayLike | None = None) -> BalancedBufferState:
        """Appends each valid row to the ring of its class, in batch order. Costs O(n) when `state` is donated.

        Args:
          state: the buffer.
          items: leaves [n ...]; see `RingBuffer.add`. No gradient flows into what is stored.
          labels: bool, integer or float [n]; positive where > 0.5.
          valid: bool [n]; rows that are False enter nothing. None: all rows are valid.

        Raises:
          ValueError: labels, valid or a leaf of items is of the wrong shape or dtype (at trace time).
        """
        labels = jnp.asarray(labels)
        if labels.ndim != 1:
            raise ValueError(f"labels: expected shape [n], got {list(labels.shape)}")
        positive = labels.astype(jnp.float32) > 0.5
        valid = jnp.ones(labels.shape, bool) if valid is None else jnp.asarray(valid)
        if valid.shape != labels.shape or valid.dtype != bool:
            raise ValueError(f"valid: expected bool {list(labels.shape)}, got {valid.dtype} {list(valid.shape)}")
        adds = state.adds + 1
        return dataclasses.replace(
            state,
            positive=self.ring.add(state.positive, items, valid & positive, adds),
            negative=self.ring.add(state.negative, items, valid & ~positive, adds),
            adds=adds,
        )

    def can_sample(self, state: BalancedBufferState) -> jax.Array:
        """bool []: whether both classes hold their minimum."""
        return (state.positive.count >= self.min_positive) & (state.negative.count >= self.min_negative)

    def sample(self, state: BalancedBufferState, key: jax.Array) -> EosSample:
        """Draws a balanced sample without replacement and shuffles it; the buffer stays as it is.

        The shapes are static, n = sample_positive + sample_negative. While the buffer is not ready (`can_sample`) the
        weights are 0 in every row. Ages are calls of `add` since the row entered; 0 in rows of weight 0.
        The same state and key give the same sample, on any number of devices.
        """
        draw_positive, draw_negative, shuffle = jax.random.split(key, 3)
        n = self.sample_positive + self.sample_negative
        order = jax.random.permutation(shuffle, n)
        drawn = (
            self._draw(state.positive, draw_positive, self.sample_positive),
            self._draw(state.negative, draw_negative, self.sample_negative),
        )
        items, born, real = jax.tree.map(lambda p, q: _rows(jnp.concatenate([p, q]), order), *drawn)
        real &= self.can_sample(state)
        return EosSample(
            items=items,
            labels=(order < self.sample_positive).astype(jnp.float32),
            weights=real.astype(jnp.float32),
            ages=jnp.where(real, state.adds - born, 0),
        )

    def _draw(self, state: RingState, key: jax.Array, n: int) -> tuple[PyTree, jax.Array, jax.Array]:
        slots, real = self.ring.draw(state, key, n)
        return self.ring.take(state, slots), _rows(state.born, slots), real

    def count_update(self, state: BalancedBufferState) -> BalancedBufferState:
        """The state with `updates` one higher if it can be sampled: call once for each draw that trains something."""
        return dataclasses.replace(state, updates=state.updates + self.can_sample(state).astype(jnp.int32))

    def contents(self, state: BalancedBufferState) -> dict[str, PyTree]:
        """{"positive": rows, "negative": rows}, each oldest first, as NumPy arrays. Host side: waits for the device."""
        return {"positive": self.ring.contents(state.positive), "negative": self.ring.contents(state.negative)}


def _check_positive(sizes: Any) -> None:
    for field in dataclasses.fields(sizes):
        size = getattr(sizes, field.name)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{field.name}: expected a positive integer, got {size!r}")


def _specs(state: RingState) -> PyTree:
    """The item of a ring: `jax.ShapeDtypeStruct`s of ONE row."""
    leaves, treedef = jax.tree.flatten(state.data)
    specs = [jax.ShapeDtypeStruct(leaf.shape[1:], name) for leaf, name in zip(leaves, state.dtypes, strict=True)]
    return treedef.unflatten(specs)


def _check_rows(items: PyTree, item: PyTree, n: int) -> None:
    """Raises a ValueError that names the first leaf of `items` which is not n rows like `item`."""
    want = {jax.tree_util.keystr(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(item)}
    # The dtypes as JAX sees them: NumPy float64 is float32 unless x64 is enabled.
    specs = jax.eval_shape(lambda x: x, items)
    got = {jax.tree_util.keystr(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(specs)}
    for path, spec in want.items():
        expected = f"items{path}: expected {spec.dtype} {[n, *spec.shape]}"
        if path not in got:
            raise ValueError(f"{expected}, got no such leaf (there are: {', '.join(got) or 'none'})")
        if got[path].shape != (n, *spec.shape) or got[path].dtype != spec.dtype:
            raise ValueError(f"{expected}, got {got[path].dtype} {list(got[path].shape)}")
    for path in got:
        if path not in want:
            raise ValueError(f"items{path}: the buffer has no such leaf (it has: {', '.join(want)})")


def _held_as(dtype: Any) -> Any:
    """The dtype in which a ring holds `dtype`: unsigned integers for floats narrower than 32 bits.

    XLA:CPU scatters such floats by converting the whole operand to float32 and back, and a bitcast of the operand
    round the scatter is a copy of its own: only a ring that holds the bits is written in O(rows).
    """
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return jnp.dtype(f"uint{jnp.finfo(dtype).bits}")
    return dtype


def _bitcast(rows: jax.Array, dtype: Any) -> jax.Array:
    return rows if rows.dtype == dtype else jax.lax.bitcast_convert_type(rows, dtype)


def _rows(x: jax.Array, slots: jax.Array) -> jax.Array:
    """The rows of x at `slots`, all of which must be in range."""
    return x.at[slots].get(mode="promise_in_bounds")
