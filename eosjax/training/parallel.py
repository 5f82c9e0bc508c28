"""Data-parallel training over all devices of all processes: the only file that names `jax.pmap`.

State and frozen weights are replicated (no leading device axis), the batch is split. The mapped step reduces inside (see
`training.step`), so that what it returns is the same on every device and comes back replicated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eosjax.models.policies import Params
from eosjax.training.metrics import Metrics
from eosjax.training.state import Learner, TrainState
from eosjax.training.step import Predictions, predict, train_step
from eosjax.types import Batch, UserError

AXIS = "devices"
Device = Any  # a jax.Device
T = TypeVar("T")
Step = Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]
Predict = Callable[[Params, Params, Batch], Predictions]


class DataParallel:
    """A learner's step and prediction, mapped over devices.

    Args:
      learner: static parts of the run.
      devices: devices of all processes to use.
    """

    def __init__(self, learner: Learner, devices: Sequence[Device]) -> None:
        mesh = Mesh(np.asarray(devices), (AXIS,))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))
        self._local_devices = sum(device.process_index == jax.process_index() for device in devices)
        self.step, self.predict = _map(learner, tuple(devices))

    def replicate(self, tree: T) -> T:
        """Puts a tree of arrays on every device."""
        return jax.device_put(tree, self.replicated)

    def split(self, batch: Batch) -> Batch:
        """Splits this process' batch over its devices: [n ...] becomes a device array [devices, n / devices, ...]."""
        return jax.tree.map(self._split_leaf, batch)

    def _split_leaf(self, x: Any) -> jax.Array:
        local = x.reshape(self._local_devices, len(x) // self._local_devices, *x.shape[1:])
        return jax.make_array_from_process_local_data(self._split, local)


@functools.lru_cache(maxsize=2)  # a comparison of seeds trains equal learners in one process: they compile once
def _map(learner: Learner, devices: tuple[Device, ...]) -> tuple[Step, Predict]:
    step = jax.pmap(
        functools.partial(train_step, learner, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,  # pyright: ignore[reportArgumentType]
        donate_argnums=0,
        devices=devices,
    )
    return step, jax.pmap(functools.partial(predict, learner), axis_name=AXIS, in_axes=(None, None, 0), devices=devices)


def choose_devices(num_devices: int) -> list[Device]:
    """The first `num_devices` devices of all processes, or all for 0.

    Raises:
      UserError: there are fewer.
    """
    devices = jax.devices()
    if num_devices > len(devices):
        raise UserError(f"--num_devices {num_devices}: JAX sees {len(devices)} {devices[0].platform} device(s)")
    return devices[: num_devices or len(devices)]
