"""What the devices of a run send each other in an update, counted in the traced step. Nothing of the size of the model is allocated."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any, NamedTuple

import jax

from eosjax.config import TrainConfig
from eosjax.models.openvla import VLAConfig
from eosjax.models.shards import DEVICES, SHARDED, shared_kernels, take_out
from eosjax.training.plan import inner_programs, size_in_bytes, trace_step
from eosjax.training.state import make_learner
from eosjax.training.step import train_step


class Traffic(NamedTuple):
    """Bytes that a device receives in an update, and sends."""

    gradients: int
    layers: int  # frozen kernels that are shared out, each time that a layer is run
    rows: int  # hidden states and labels for the buffer

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def count_traffic(config: TrainConfig, vla_config: VLAConfig, text_length: int, devices: int) -> Traffic:
    """The traffic of an update on some devices, each reduction and each gathering going round a ring.

    Of n bytes that are gathered, a device receives (devices - 1) / devices · n; of n bytes that are summed up, twice as many.

    Args:
      config: the run.
      vla_config: the policy, with the `remat` that is used.
      text_length: l, token ids in a row.
      devices: how many the batch is split over.
    """
    step = trace_step(config, vla_config, text_length, config.batch_size)
    frozen = step.frozen
    if config.shard_frozen:
        frozen = take_out(frozen, shared_kernels(frozen, devices))
        frozen[SHARDED] = jax.tree.map(lambda leaf: _rows(leaf, devices), frozen[SHARDED])
    mapped = functools.partial(train_step, make_learner(config, vla_config, share_of_ends=0.05), axis_name=DEVICES)
    moved = _moved(jax.make_jaxpr(mapped, axis_env=[(DEVICES, devices)])(step.state, frozen, step.batch))
    ring = (devices - 1) / devices
    return Traffic(round(2 * ring * moved["gradients"]), round(ring * moved["layers"]), round(ring * moved["rows"]))


def _rows(kernel: Any, devices: int) -> jax.ShapeDtypeStruct:
    layers, rows, columns = kernel.shape
    return jax.ShapeDtypeStruct((layers, rows // devices, columns), kernel.dtype)


def _moved(jaxpr: Any) -> Counter[str]:
    """Bytes that are summed up or gathered, as every device has them afterwards, by field of `Traffic`."""
    total: Counter[str] = Counter()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if purpose := _purpose(equation):
            total[purpose] += sum(size_in_bytes(variable.aval) for variable in equation.outvars)
        rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in inner_programs(equation.params):
            total.update({purpose: rounds * size for purpose, size in _moved(inner).items()})
    return total


def _purpose(equation: Any) -> str | None:
    if equation.primitive.name.startswith("psum"):
        return "gradients"  # and a few sums for the log
    if equation.primitive.name != "all_gather":
        return None
    return "layers" if equation.outvars[0].aval.ndim == 2 else "rows"  # kernels are [rows columns]; the buffer takes [n a d] and [n]
