"""The policy of a run, read back from its folder without its data and its optimizer: for serving, evaluation and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from eosjax import config as configs
from eosjax import flags
from eosjax.config import TrainConfig
from eosjax.data.specs import spec_for
from eosjax.ends.operating_points import OperatingPoint
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.openvla import VLAConfig
from eosjax.models.parts import abstract_params, base_parts, split_params
from eosjax.models.policies import Params
from eosjax.runs.checkpoint import CheckpointError, fetch_fingerprints
from eosjax.runs.policy_source import PolicySource

T = TypeVar("T")


class SavedRun(NamedTuple):
    """What a checkpoint holds of a policy."""

    config: TrainConfig
    vla_config: VLAConfig
    params: Params  # by part, see `training.state`; what was trained as NumPy arrays, a frozen base on the default device
    statistics: dict[str, Any]  # the content of dataset_statistics.json
    step: int  # updates made
    record: dict[str, Any]  # what `training.loop` saved beside the state

    @property
    def operating_point(self) -> OperatingPoint | None:
        """What turns the raw logits of the EOS head into decisions; None without that head."""
        content = self.record["operating_point"]
        return None if content is None else OperatingPoint.from_json(content)


def load_run(run_dir: Path, step: int | None = None, *, with_base: bool = True) -> SavedRun:
    """The policy of a checkpoint.

    Args:
      run_dir: folder of the run, as `training.loop.run` leaves it.
      step: which checkpoint; None: the newest.
      with_base: read the frozen base weights, too, from the run's `vla_path`. A base that was trained is in the checkpoint anyway.

    Raises:
      CheckpointError: no run in the folder, no such checkpoint, one that is damaged or does not fit the run's configuration, or base
        weights that are not those of the run.
      eosjax.models.hf.weights.WeightsError: there is nothing at `vla_path` any more, or no such policy.
    """
    if not (run_dir / configs.CONFIG_FILE).is_file():
        raise CheckpointError(f"{run_dir}: no {configs.CONFIG_FILE}; expected the folder of a training run")
    config = flags.load(run_dir / configs.CONFIG_FILE)
    folder = _checkpoint_folder(run_dir, step)
    policy = PolicySource.open(config)
    vla_config = policy.vla_config(config, spec_for(config.mixture[0].name, config.dataset_specs))
    trained, frozen = split_params(abstract_params(config, vla_config))
    params, record = restore_part(run_dir, step, "trainable", trained)
    if "operating_point" not in record:
        raise CheckpointError(
            f"{folder}: written by an earlier version, without an operating point; go on with --resume to write a new one"
        )
    if with_base and frozen and policy.pretrained is not None:
        base = _frozen_base(policy.pretrained.load_base(vla_config, jax.device_put)[0], vla_config)
        params |= base
        _compare_base(policy.pretrained, record, fetch_fingerprints(base))
    return SavedRun(config, vla_config, params, record["statistics"], int(folder.name), record)


def check_base(run: SavedRun, pretrained: Pretrained) -> None:
    """Raises `CheckpointError` unless `pretrained` holds the frozen base weights of the run; reads them array by array."""
    if not run.record["base"]:
        return
    base = _frozen_base(pretrained.load_base(run.vla_config, fetch_fingerprints)[0], run.vla_config)
    read: dict[Any, Any] = dict(flatten_dict(base))
    found = {"".join(f"['{key}']" for key in path[:-1]): value for path, value in read.items()}
    _compare_base(pretrained, run.record, found)


def _frozen_base(base: Params, vla_config: VLAConfig) -> Params:
    """Those parts of the base weights that the run left as they were."""
    return {part: tree for part, tree in base_parts(base, vla_config).items() if vla_config.lora_rank or part == "vision_backbone"}


def _compare_base(pretrained: Pretrained, record: dict[str, Any], found: dict[str, int]) -> None:
    if found != record["base"]:
        raise CheckpointError(f"{pretrained.folder}: the base weights are not those that the run began with")


def _checkpoint_folder(run_dir: Path, step: int | None) -> Path:
    folder = (run_dir / configs.CHECKPOINTS).absolute()
    steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []
    if not steps:
        raise CheckpointError(f"{folder}: no checkpoint")
    if step is not None and step not in steps:
        raise CheckpointError(f"{folder}: no checkpoint of step {step}; there are those of {', '.join(map(str, steps))}")
    return folder / str(steps[-1] if step is None else step)


def restore_part(run_dir: Path, step: int | None, part: str, shapes: T) -> tuple[T, dict[str, Any]]:
    """A part of the `TrainState` in a checkpoint as NumPy arrays, checked, and the record."""
    folder = _checkpoint_folder(run_dir, step)
    wanted = {part: shapes}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True), record=ocp.args.JsonRestore()
    )
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(folder, args=args)
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise CheckpointError(f"{folder}: damaged: {(str(error).strip() or type(error).__name__).splitlines()[0][:300]}") from error
    arrays, record = restored["state"][part], restored["record"]
    _check_shapes(folder, shapes, arrays)
    found = {f".{part}{name}": value for name, value in fetch_fingerprints(arrays).items()}
    expected = {name: value for name, value in record.pop("fingerprints").items() if name.startswith((f".{part}[", f".{part}."))}
    changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if changed:
        raise CheckpointError(f"{folder}: damaged: the content of {', '.join(changed[:3])} is not what was saved")
    return arrays, record


def _check_shapes(folder: Path, expected: Any, found: Any) -> None:
    """Raises `CheckpointError` for an array that is not as expected: Orbax looks at no shape, and leaves what is not there as a shape."""
    arrays = dict(jax.tree_util.tree_leaves_with_path(found))
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        array = arrays[path]
        if not isinstance(array, np.ndarray) or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "nothing"
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise CheckpointError(
                f"{folder}: {name}: expected {leaf.dtype} {leaf.shape}, as {configs.CONFIG_FILE} describes the policy, got {got}"
            )
