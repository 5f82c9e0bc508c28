"""Checkpoints: the whole training state and the record of the run, so that a resumed run goes on bit for bit.

A checkpoint holds the training state (a pytree of arrays) and a `CheckpointRecord`. Orbax writes both asynchronously and atomically. What
Orbax does not see, a file that changed on disk, the fingerprints and the checksum of the record do.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from eosjax.models.stacks import is_apart
from eosjax.runs.faults import UnreadableError, damage_in
from eosjax.runs.record import CheckpointRecord, RecordError, RecordVersionError
from eosjax.types import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")


class CheckpointError(UserError):
    """No checkpoint can be restored; the message names each one and its fault."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint of another version of eosjax: whole, but not to be read here."""


class _Manager(ocp.CheckpointManager):
    """Leaves JAX's preemption service to the training loop.

    Orbax asks it about the step of a save, also in the background when that has ended. The service would take this for the step at which
    the process is, and might agree with the others on one that this process has passed.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and beside them the one with the best validation score.

    Args:
      directory: folder of the checkpoints, one sub-folder a step; made if missing.
      keep: number of newest checkpoints to keep.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory.absolute()
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._manager = _Manager(self.directory, options=ocp.CheckpointManagerOptions(preservation_policy=policy))

    def save(self, state: Any, record: CheckpointRecord) -> None:
        """Starts to write a checkpoint and returns; the state may be donated at once.

        Args:
          state: the training state.
          record: of the checkpoint; its fingerprints are those of `state`.
        """
        self._manager.save(
            record.step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record.to_json())),
            metrics=None if record.score is None else {"score": record.score},
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(self, template: T, sharding: Sharding, check: Callable[[CheckpointRecord], None]) -> tuple[T, CheckpointRecord]:
        """Restores the newest checkpoint that is whole, and moves damaged ones aside with a warning.

        Args:
          template: a state of the run, or its shapes and dtypes.
          sharding: where its arrays go. The number of devices may differ from that of the saving run.
          check: called with the record before the state is read; what it raises is raised, and no checkpoint is moved.

        Returns:
          The state and the record saved with it.

        Raises:
          CheckpointVersionError: another version of eosjax wrote the newest one.
          UnreadableError: one cannot be read, which shows no damage; no checkpoint is moved.
          CheckpointError: there is no checkpoint, or none can be restored.
        """
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template)
        faults: list[str] = []
        for step in reversed(self.steps()):
            folder = self.directory / str(step)
            try:
                record = read_record(folder)
            except CheckpointVersionError:
                raise
            except CheckpointError as error:
                faults.append(str(error))
                log.warning("%s", error)
                continue
            check(record)
            try:
                state = self._restore(step, shapes, record)
            except Exception as error:  # whatever a damaged file makes the readers raise
                faults.append(f"{folder}: damaged: {damage_in(error, folder)}")
                log.warning("%s", faults[-1])
                continue
            for damaged in [s for s in self.steps() if s > step]:
                self._set_aside(damaged)
            return state, record
        if not faults:
            raise CheckpointError(f"--resume: there is no checkpoint in {self.directory}; start the run again without --resume")
        raise CheckpointError("--resume: no checkpoint can be restored:\n  " + "\n  ".join(faults))

    def wait(self) -> None:
        """Blocks until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending writes and releases the threads."""
        self._manager.close()

    def _restore(self, step: int, shapes: T, record: CheckpointRecord) -> T:
        state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes)))["state"]
        _check_content(record.fingerprints, fetch_fingerprints(state))
        return state

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            self._move_aside(self.directory / str(step))
        multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
        self._manager.reload()

    def _move_aside(self, source: Path) -> None:
        target = self.directory.with_name(f"{self.directory.name}_damaged") / source.name
        try:
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(target.name + "_")
            shutil.move(source, target)
        except OSError as error:
            raise UnreadableError(f"{source}: damaged, and cannot be moved to {target}: {error.strerror}") from error
        log.warning("moved %s to %s", source, target)


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first; none where there is no folder."""
    return sorted(ocp.utils.checkpoint_steps(directory.absolute())) if directory.is_dir() else []


def _reader() -> ocp.Checkpointer:
    """Reads a checkpoint in this process, whatever others do: by itself Orbax waits for all processes of a run."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}")
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(alone)), multiprocessing_options=alone)


def read_record(folder: Path) -> CheckpointRecord:
    """The record of a checkpoint, without its arrays.

    Raises:
      CheckpointVersionError: another version of eosjax wrote it.
      UnreadableError: its files cannot be read, which shows no damage.
      CheckpointError: there is none, it is damaged, or it is the record of another step than its folder says.
    """
    try:
        with _reader() as checkpointer:
            content = checkpointer.restore(folder.absolute(), args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise CheckpointError(f"{folder}: damaged: {damage_in(error, folder)}") from error
    try:
        record = CheckpointRecord.from_json(content)
    except RecordVersionError as error:
        raise CheckpointVersionError(f"{folder}: {error}") from error
    except RecordError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if str(record.step) != folder.name:
        raise CheckpointError(f"{folder}: expected the checkpoint of step {folder.name}, got that of step {record.step}")
    return record


def restore_part(folder: Path, part: str, shapes: T, record: CheckpointRecord) -> T:
    """A part of the training state in a checkpoint as NumPy arrays, checked.

    Args:
      folder: of the checkpoint.
      part: a field of the training state, such as `trainable`.
      shapes: of its arrays.
      record: of the checkpoint.

    Raises:
      UnreadableError: its files cannot be read, which shows no damage.
      CheckpointError: the checkpoint is damaged, or its arrays have other shapes.
    """
    wanted = {part: shapes}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True))
    try:
        with _reader() as checkpointer:
            arrays = checkpointer.restore(folder.absolute(), args=args)["state"][part]
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise CheckpointError(f"{folder}: damaged: {damage_in(error, folder)}") from error
    _check_shapes(folder, shapes, arrays)
    found = {f".{part}{name}": value for name, value in fetch_fingerprints(arrays).items()}
    expected = {name: value for name, value in record.fingerprints.items() if name.startswith((f".{part}[", f".{part}."))}
    try:
        _check_content(expected, found)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: damaged: {error}") from error
    return arrays


def _check_content(expected: Any, found: dict[str, int]) -> None:
    changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if changed:
        shown = "; ".join(f"{name}: expected fingerprint {expected.get(name)}, got {found.get(name)}" for name in changed[:3])
        raise CheckpointError(f"{len(changed)} of {len(expected)} arrays are not what was saved: {shown}")


def _check_shapes(folder: Path, expected: Any, found: Any) -> None:
    """Raises `CheckpointError` for an array that is not as expected: Orbax looks at no shape, and leaves what is not there as a shape."""
    arrays = dict(jax.tree_util.tree_leaves_with_path(found))
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        array = arrays[path]
        if not isinstance(array, np.ndarray) or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "nothing"
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise CheckpointError(f"{folder}: {name}: expected {leaf.dtype} {leaf.shape}, as the record describes the policy, got {got}")


def fetch_fingerprints(tree: Any) -> dict[str, int]:
    """A number for each array of a tree, by its path; another one if any single element differs."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    values = jax.device_get(_fingerprints([leaf for _, leaf in leaves]))
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, values, strict=True)}


def fetch_fingerprints_of_base(tree: Any) -> dict[str, int]:
    """The same of weights whose stacks may be in layers (`eosjax.models.stacks`): a number for each whole stack, made one at a time."""
    stacks = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_apart) if is_apart(leaf)]
    rest = jax.tree.map(lambda leaf: None if is_apart(leaf) else leaf, tree, is_leaf=is_apart)
    return fetch_fingerprints(rest) | {jax.tree_util.keystr(path): fetch_fingerprints(jnp.stack(leaf))[""] for path, leaf in stacks}


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    """A u32 a leaf, from integer sums, hence the same on every device: any single changed element changes it."""
    return [_fingerprint(leaf) for leaf in leaves]


def _fingerprint(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[np.dtype(leaf.dtype).itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).reshape(-1)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1  # odd factors are invertible modulo 2^32
    return jnp.sum(bits * odd, dtype=jnp.uint32)
