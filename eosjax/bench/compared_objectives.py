"""Ways to train the EOS head that are only here to be compared with: two historical mistakes, and a mixture of both sources of rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from eosjax import losses
from eosjax.buffer import BalancedBuffer, BalancedBufferState, RingState
from eosjax.training.collectives import all_gather
from eosjax.training.metrics import eos_sums
from eosjax.training.objectives import BufferObjective, EosObjective, EosTerm, FreshObjective


@dataclasses.dataclass(frozen=True)
class DetachedLogits(EosObjective):
    """The mistake of storing the head's *logits*, detached on their way in: the loss has no path back to the head, which never learns.

    Attributes:
      buffer: what is kept, and drawn.
    """

    buffer: BalancedBuffer

    def init(self, item: jax.ShapeDtypeStruct) -> BalancedBufferState:
        """An empty buffer of logits."""
        return self.buffer.init(jax.ShapeDtypeStruct((), jnp.float32))

    def loss(self, head, state, rows, keys, axis_name=None) -> EosTerm:
        """The cross-entropy of the stored logits of a draw; its gradient is zero, so that it never counts as an update."""
        logits, labels, valid = all_gather((head(rows.hidden), *rows[1:3]), axis_name)
        state = self.buffer.add(state, logits, labels, valid)  # which detaches
        sample = self.buffer.sample(state, keys.draw)
        loss = losses.balanced_bce(sample.items, sample.labels, sample.weights)
        return EosTerm(loss, state, eos_sums(sample.items, sample, loss, jnp.zeros((), bool), self.threshold))


@dataclasses.dataclass(frozen=True)
class EmptiedBuffer(BufferObjective):
    """The mistake of emptying a small buffer at each use: every row counts once at most, and most updates are waited for."""

    def loss(self, head, state, rows, keys, axis_name=None) -> EosTerm:
        """As `BufferObjective`; after a draw the buffer is empty."""
        term = super().loss(head, state, rows, keys, axis_name)
        drawn = term.sums["eos_updates"] > 0
        emptied = dataclasses.replace(term.state, positive=_emptied(term.state.positive), negative=_emptied(term.state.negative))
        return term._replace(state=jax.tree.map(lambda new, old: jnp.where(drawn, new, old), emptied, term.state))


def _emptied(ring: RingState) -> RingState:
    return dataclasses.replace(ring, next=jnp.zeros_like(ring.next), count=jnp.zeros_like(ring.count))


@dataclasses.dataclass(frozen=True)
class CrossBatchMemory(EosObjective):
    """Fresh rows and rows from a memory together, as in cross-batch memory (Wang et al. 2020, XBM, arXiv:1912.06798, algorithm 1).

        loss = fresh_weight * BCE(fresh rows) + BCE(draw from the buffer), the latter once `warmup` forward passes have been made

    Attributes:
      buffered: the term of the memory.
      fresh_weight: of the term of the fresh rows.
      warmup: forward passes without the memory, whose rows would age too fast while the policy still changes much.
    """

    buffered: BufferObjective
    fresh_weight: float = 1.0
    warmup: int = 0

    def init(self, item: jax.ShapeDtypeStruct) -> Any:
        """That of the memory."""
        return self.buffered.init(item)

    def loss(self, head, state, rows, keys, axis_name=None) -> EosTerm:
        """The sum of both; there is an update in every forward pass."""
        old = self.buffered.loss(head, state, rows, keys, axis_name)
        fresh = FreshObjective(self.threshold, "bce", share_of_ends=0.5)  # BCE needs no share
        new = fresh.loss(head, None, rows, keys, axis_name)
        on = (old.state.adds > self.warmup).astype(jnp.float32)
        sums = {name: new.sums[name] + on * old.sums[name] for name in new.sums}
        sums["eos_loss"] = self.fresh_weight * new.sums["eos_loss"] + on * old.sums["eos_loss"]
        sums["eos_updates"] = new.sums["eos_updates"]
        return EosTerm(self.fresh_weight * new.loss + on * old.loss, old.state, sums)

    def prior(self, share_of_ends: float) -> float:
        """The share of ends that the whole loss shows to the head, once both terms are on."""
        return (self.buffered.buffer.drawn_share + self.fresh_weight * share_of_ends) / (1 + self.fresh_weight)
