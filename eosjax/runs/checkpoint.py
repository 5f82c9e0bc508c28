"""Checkpoints: the whole training state, so that a resumed run goes on bit for bit.

A checkpoint holds the `TrainState` (step, trainable parts, optimizer, buffer, key, metric window) and a JSON record (data cursor,
configuration, dataset statistics, validation results, fingerprints). Orbax writes it asynchronously and atomically; what Orbax does not
see, a file that changed on disk, the fingerprints do.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from eosjax.types import UserError

T = TypeVar("T")
log = logging.getLogger(__name__)


class CheckpointError(UserError):
    """No checkpoint can be restored; the message names each one and its fault."""


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
                preservation_policy.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._manager = ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(preservation_policy=policy))

    def save(self, step: int, state: Any, record: Mapping[str, Any], score: float | None) -> None:
        """Starts to write a checkpoint and returns; the state may be donated at once.

        Args:
          step: number of updates made.
          state: the training state.
          record: JSON-serialisable facts to keep with it.
          score: validation score, higher is better; None where nothing was validated.
        """
        content = dict(record) | {"fingerprints": fetch_fingerprints(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(content)),
            metrics=None if score is None else {"score": score},
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(self, template: T, sharding: Sharding) -> tuple[T, dict[str, Any]]:
        """Restores the newest checkpoint that is whole, and moves damaged ones aside with a warning.

        Args:
          template: a state of the run, or its shapes and dtypes.
          sharding: where its arrays go. The number of devices may differ from that of the saving run.

        Returns:
          The state and the record saved with it.

        Raises:
          CheckpointError: there is no checkpoint, or none can be restored.
        """
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template)
        faults: list[str] = []
        for step in reversed(self.steps()):
            try:
                state, record = self._restore(step, shapes)
            except Exception as error:  # whatever a damaged file makes the readers raise
                faults.append(f"{self.directory / str(step)}: {_first_line(error)}")
                log.warning("checkpoint %s is damaged: %s", self.directory / str(step), _first_line(error))
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

    def _restore(self, step: int, shapes: T) -> tuple[T, dict[str, Any]]:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), record=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        expected, found = restored["record"].pop("fingerprints"), fetch_fingerprints(restored["state"])
        changed = [name for name in found if expected.get(name) != found[name]]
        if changed or expected.keys() != found.keys():
            raise CheckpointError(f"the content of {', '.join(changed[:3]) or 'the state'} is not what was saved")
        return restored["state"], restored["record"]

    def _set_aside(self, step: int) -> None:
        source = self.directory / str(step)
        target = self.directory.with_name(f"{self.directory.name}_damaged") / str(step)
        target.parent.mkdir(exist_ok=True)
        while target.exists():
            target = target.with_name(target.name + "_")
        shutil.move(source, target)
        self._manager.reload()
        log.warning("moved %s to %s", source, target)


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def fetch_fingerprints(tree: Any) -> dict[str, int]:
    """A number for each array of a tree, by its path; another one if any single element differs."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    values = jax.device_get(_fingerprints([leaf for _, leaf in leaves]))
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, values, strict=True)}


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
