"""Data-parallel training over all devices of all processes: the only file that names `jax.pmap`.

State and frozen weights are replicated (no leading device axis), the batch is split. The mapped step reduces inside (see
`training.step`), so that what it returns is the same on every device and comes back replicated. Stacks of frozen weights may be in layers
(`models.stacks`). Their kernels may be shared out (`models.shards`): device i then holds the i-th of equal parts of their rows, behind an
axis of devices.

Every process holds its own copy of what is replicated, on its own devices: pmap takes and returns such arrays. Orbax takes arrays of all
processes; `shared` and `own` turn one into the other, without a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eosjax.models.policies import Params
from eosjax.models.shards import DEVICES, SHARDED
from eosjax.training.metrics import Metrics
from eosjax.training.state import Learner, TrainState
from eosjax.training.step import Predictions, predict, train_step
from eosjax.types import Batch, UserError

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
        local = [device for device in devices if device.process_index == jax.process_index()]
        self._mesh, mesh = (Mesh(np.asarray(each), (DEVICES,)) for each in (devices, local))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(DEVICES))
        self._local_devices, self._first = len(local), list(devices).index(local[0])
        self.step, self.predict = _map(learner, tuple(devices))

    @property
    def device_count(self) -> int:
        """Devices of all processes."""
        return self._mesh.size

    def replicate(self, tree: T) -> T:
        """Puts a tree of arrays on every device of this process."""
        return jax.device_put(tree, self.replicated)

    def share_out(self, kernel: np.ndarray) -> jax.Array:
        """Gives each device of this process its rows of [layers rows columns]: [local devices, layers, rows / devices, columns]."""
        layers, rows, columns = kernel.shape
        each = rows // self.device_count

        def share(index: Any) -> np.ndarray:
            start = (self._first + (index[0].start or 0)) * each
            return kernel[None, :, start : start + each]

        return jax.make_array_from_callback((self._local_devices, layers, each, columns), self._split, share)

    @property
    def everywhere(self) -> NamedSharding:
        """On every device of all processes."""
        return NamedSharding(self._mesh, PartitionSpec())

    def shared(self, tree: T) -> T:
        """A replicated tree as arrays of all processes."""
        if jax.process_count() == 1:
            return tree
        return multihost_utils.host_local_array_to_global_array(tree, self._mesh, PartitionSpec())

    def own(self, tree: T) -> T:
        """What `shared` was made of."""
        if jax.process_count() == 1:
            return tree
        return multihost_utils.global_array_to_host_local_array(tree, self._mesh, PartitionSpec())

    def split(self, batch: Batch) -> Batch:
        """Splits this process' batch over its devices: [n ...] becomes a device array [devices, n / devices, ...]."""
        return jax.tree.map(self._split_leaf, batch)

    def _split_leaf(self, x: Any) -> jax.Array:
        return jax.device_put(x.reshape(self._local_devices, len(x) // self._local_devices, *x.shape[1:]), self._split)


@functools.lru_cache(maxsize=2)  # a comparison of seeds trains equal learners in one process: they compile once
def _map(learner: Learner, devices: tuple[Device, ...]) -> tuple[Step, Predict]:
    """The step (its state is donated), and the prediction; they take a batch that is split, and the latter returns a device axis first."""
    mapped = functools.partial(jax.pmap, axis_name=DEVICES, in_axes=(None, None, 0, 0), devices=devices)

    def on_device(state: TrainState, whole: Params, shared: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(learner, state, whole | shared, batch, axis_name=DEVICES)

    def predict_on_device(trainable: Params, whole: Params, shared: Params, batch: Batch) -> Predictions:
        return predict(learner, trainable, whole | shared, batch)

    step, prediction = mapped(on_device, out_axes=None, donate_argnums=0), mapped(predict_on_device)
    return (
        lambda state, frozen, batch: step(state, *_by_place(frozen), batch),
        lambda trainable, frozen, batch: prediction(trainable, *_by_place(frozen), batch),
    )


def _by_place(frozen: Params) -> tuple[Params, Params]:
    """What every device has of the frozen weights, and what is shared out."""
    shared = {part: tree for part, tree in frozen.items() if part == SHARDED}
    return {part: tree for part, tree in frozen.items() if part not in shared}, shared


def connect(devices: Sequence[Device]) -> None:
    """Lets the devices of all processes meet in a reduction, so that later ones may wait. Every process must call it, as soon as it can.

    The backend connects a set of devices in the first reduction over them. On CPU it gives the processes 30 seconds to reach that one, half
    an hour for any later one. The first one of training would come after its compilation, which takes processes unequal times.
    """
    if jax.process_count() == 1:
        return
    count = sum(device.process_index == jax.process_index() for device in devices)
    meet = jax.pmap(lambda x: jax.lax.psum(x, DEVICES), axis_name=DEVICES, devices=devices)
    jax.block_until_ready(meet(np.ones(count, np.float32)))


def choose_devices(num_devices: int) -> list[Device]:
    """`num_devices` devices, the first ones of each process, or all for 0.

    Raises:
      UserError: there are fewer, or the processes would have unequal numbers.
    """
    devices, processes = jax.devices(), jax.process_count()
    if num_devices > len(devices):
        raise UserError(f"--num_devices {num_devices}: JAX sees {len(devices)} {devices[0].platform} device(s)")
    if num_devices % processes:
        raise UserError(f"--num_devices {num_devices}: expected a multiple of the number of processes, {processes}")
    each = (num_devices or len(devices)) // processes
    return [device for index in range(processes) for device in [d for d in devices if d.process_index == index][:each]]
