"""What the EOS head learns from: the class-balanced buffer, or the rows of each forward pass as they come.

  BufferObjective          rows drawn from the buffer in fixed shares of the classes: the default
  BufferAndFreshObjective  these for the head, and the fresh rows for head and policy
  FreshObjective           the fresh rows, with a loss that makes up for how rare the ends are

All take part in the differentiated loss of a forward pass (`eosjax.training.step`), where it is decided, too, whether their gradient goes
on into the policy. What is stored in a buffer is stored without gradient.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from eosjax import losses
from eosjax.buffer import BalancedBuffer, BalancedBufferState
from eosjax.ends.calibration import prior_shift
from eosjax.training.collectives import all_gather, pmean, psum
from eosjax.training.keys import ForwardKeys
from eosjax.training.metrics import EOS_SUMS, FRESH_LOSS, eos_sums
from eosjax.types import EosSample

HeadFn = Callable[[jax.Array], jax.Array]  # hidden states [n a d] -> logits f32 [n], with dropout


class EosRows(NamedTuple):
    """The rows of one forward pass on one device."""

    hidden: jax.Array  # [n a d]
    labels: jax.Array  # f32 [n]
    valid: jax.Array  # bool [n]
    scale: jax.Array  # f32 []: makes sums over these rows add up to the mean over all rows of the update


class EosTerm(NamedTuple):
    """The EOS loss of one forward pass."""

    loss: jax.Array  # f32 []
    state: Any  # of the objective, with this forward pass in it
    sums: dict[str, jax.Array]  # those that the objective names, the same on every device


@dataclasses.dataclass(frozen=True)
class EosObjective(abc.ABC):
    """What all objectives have in common. Hashable, so that a jitted step can close over it.

    Attributes:
      threshold: raw probability from which a row counts as an end in the logged confusion counts.
    """

    threshold: float

    @property
    def sums(self) -> tuple[str, ...]:
        """Names of what a forward pass sums up."""
        return EOS_SUMS

    @abc.abstractmethod
    def init(self, item: jax.ShapeDtypeStruct) -> Any:
        """The state before the first update: a pytree of arrays, or None. `item`: the hidden states [a d] of one row."""

    @abc.abstractmethod
    def loss(self, head: HeadFn, state: Any, rows: EosRows, keys: ForwardKeys, axis_name: str | None = None) -> EosTerm:
        """The loss of a forward pass; to be called within the differentiated function.

        Args:
          head: the EOS head with the parameters that are differentiated.
          state: of the objective; the same on every device.
          rows: of this device.
          keys: of the forward pass, of which an objective uses `intake` and `draw`.
          axis_name: of the mapped axis, or None.
        """


@dataclasses.dataclass(frozen=True)
class BufferObjective(EosObjective):
    """Binary cross-entropy on rows drawn from the class-balanced buffer.

    Attributes:
      buffer: what is kept, and drawn.
      age_match: of the steps without an end, let only as many into the buffer as there are ends. The two rings then turn over at the
        same pace, so that how old a row is does not tell its class while the policy changes under it.
    """

    buffer: BalancedBuffer
    age_match: bool = False

    def init(self, item: jax.ShapeDtypeStruct) -> BalancedBufferState:
        """An empty buffer."""
        return self.buffer.init(item)

    def loss(self, head, state, rows, keys, axis_name=None) -> EosTerm:
        """The mean over a draw; exactly 0, without gradient, while the buffer is not ready."""
        state, sample = self._draw(state, rows, keys, axis_name)
        return self._term(head(sample.items), state, sample)

    def _draw(
        self, state: BalancedBufferState, rows: EosRows, keys: ForwardKeys, axis_name: str | None
    ) -> tuple[BalancedBufferState, EosSample]:
        """The buffer with the rows of all devices in it, and a draw."""
        labels, valid = all_gather((rows.labels, rows.valid), axis_name)
        if self.age_match:
            valid = match_intake(labels, valid, keys.intake)
        hidden = gather_intake(lax.stop_gradient(rows.hidden), labels, valid, self.buffer.capacity, axis_name)
        state = self.buffer.count_update(self.buffer.add(state, hidden, labels, valid))
        return state, self.buffer.sample(state, keys.draw)

    def _term(self, logits: jax.Array, state: BalancedBufferState, sample: EosSample) -> EosTerm:
        """The mean over a draw; `logits` f32 [rows of a draw]."""
        loss = losses.balanced_bce(logits, sample.labels, sample.weights)
        return EosTerm(loss, state, eos_sums(logits, sample, loss, self.buffer.can_sample(state), self.threshold))


def gather_intake(hidden: jax.Array, labels: jax.Array, valid: jax.Array, capacity: int, axis_name: str | None) -> jax.Array:
    """The hidden states of all devices, of which each device sends no more than can enter the buffer.

    Of each class that is the newest `capacity` valid rows of a device: newer ones of the same device push any older one out.

    Args:
      hidden: [n a d], of this device.
      labels, valid: f32 and bool [devices * n], of all devices.
      capacity: of a ring.
      axis_name: of the mapped axis, or None.

    Returns:
      [devices * n a d]; what stands in the rows that cannot enter, is any other row.
    """
    n, most = len(hidden), 2 * capacity
    if axis_name is None or n <= most:
        return all_gather(hidden, axis_name)
    positive = (labels > 0.5).reshape(-1, n)
    valid = valid.reshape(-1, n)

    def newest(rows: jax.Array) -> jax.Array:
        return rows & (jnp.cumsum(rows[:, ::-1], axis=1)[:, ::-1] <= capacity)

    enters = newest(valid & positive) | newest(valid & ~positive)
    first = jnp.argsort(~enters[lax.axis_index(axis_name)])[:most]  # those that enter, in order; the sort is stable
    sent = all_gather(hidden[first], axis_name)
    place = jnp.clip(jnp.cumsum(enters, axis=1) - 1, 0) + most * jnp.arange(len(enters))[:, None]
    return sent[place.reshape(-1)]


def match_intake(labels: jax.Array, valid: jax.Array, key: jax.Array) -> jax.Array:
    """Leaves as many valid negatives as there are valid positives, chosen at random, and all valid positives.

    Args:
      labels: f32 [n].
      valid: bool [n].
      key: of the choice.

    Returns:
      bool [n].
    """
    positive, negative = valid & (labels > 0.5), valid & (labels <= 0.5)
    score = jnp.where(negative, jax.random.uniform(key, labels.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(score))
    return positive | (negative & (rank < positive.sum()))


@dataclasses.dataclass(frozen=True)
class BufferAndFreshObjective(BufferObjective):
    """Draws from the buffer, and the fresh rows, whose gradient goes on into the policy, so that hidden states learn to tell the ends.

        loss = BCE(draw) + fresh_weight * BCE(fresh rows at the share of ends of the data)

    The head answers for the share of ends in the draws. Its logits of fresh rows are therefore corrected to the share in the data before
    they are compared with the labels (`calibration.prior_shift`): both terms then have their minimum at the same head, and ask nothing of
    the policy that is only about how often ends are shown. The term of the fresh rows waits for the buffer, too: a head that has not learnt
    yet has nothing to teach the policy.

    Attributes:
      fresh_weight: of the fresh rows, the draw's being 1.
      share_of_ends: in the training data, between 0 and 1; without it there is no loss, but everything else.
    """

    fresh_weight: float = 0.1
    share_of_ends: float | None = None

    @property
    def sums(self) -> tuple[str, ...]:
        """Beside those of the draws, `FRESH_LOSS`: the mean over the fresh rows, without its weight."""
        return (*EOS_SUMS, FRESH_LOSS)

    def loss(self, head, state, rows, keys, axis_name=None) -> EosTerm:
        """Both terms; exactly 0, without gradient, while the buffer is not ready. Raises `ValueError` without `share_of_ends`."""
        if self.share_of_ends is None:
            raise ValueError("share_of_ends: expected a number, got None")
        state, sample = self._draw(state, rows, keys, axis_name)
        logits = head(jnp.concatenate([sample.items, rows.hidden]))  # at once: the head drops each row by numbers of its own
        drawn = len(sample.labels)
        term = self._term(logits[:drawn], state, sample)
        corrected = logits[drawn:] + prior_shift(self.buffer.drawn_share, self.share_of_ends)
        each = losses.bce(corrected, rows.labels, 0.0) * rows.valid
        fresh = term.sums["eos_updates"] * jnp.sum(each) * rows.scale
        return EosTerm(term.loss + self.fresh_weight * fresh, state, term.sums | {FRESH_LOSS: pmean(fresh, axis_name)})


@dataclasses.dataclass(frozen=True)
class FreshObjective(EosObjective):
    """A loss on the rows of each forward pass.

    Attributes:
      kind: a name of `losses.FRESH_LOSSES`.
      share_of_ends: in the training data, between 0 and 1; without it there is no loss, but everything else.
    """

    kind: str
    share_of_ends: float | None

    def init(self, item: jax.ShapeDtypeStruct) -> None:
        """None: nothing is kept."""
        return None

    def loss(self, head, state, rows, keys, axis_name=None) -> EosTerm:
        """The mean over all valid rows of the update. Raises `ValueError` without `share_of_ends`."""
        if self.share_of_ends is None:
            raise ValueError(f"share_of_ends: expected a number for the loss {self.kind!r}, got None")
        logits = head(rows.hidden)
        weights = rows.valid.astype(jnp.float32)
        each = losses.FRESH_LOSSES[self.kind](logits, rows.labels, math.log(self.share_of_ends / (1 - self.share_of_ends)))
        loss = jnp.sum(each * weights) * rows.scale
        ages = jnp.zeros(weights.shape, jnp.int32)
        sums = eos_sums(logits, EosSample(None, rows.labels, weights, ages), loss, jnp.ones((), bool), self.threshold)
        means = {name: pmean(sums.pop(name), axis_name) for name in ("eos_loss", "eos_updates")}
        return EosTerm(loss, state, psum(sums, axis_name) | means)
