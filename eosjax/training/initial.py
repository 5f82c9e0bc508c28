"""What a run starts from: the policy suited to its device, and the first parameters, random or of a pretrained checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eosjax.config import TrainConfig
from eosjax.models.attention import check_attention
from eosjax.models.hf.pretrained import FILM, Pretrained
from eosjax.models.hf.weights import Put
from eosjax.models.openvla import VLAConfig
from eosjax.models.parts import abstract_params, base_parts, init_params, split_params
from eosjax.models.policies import Params
from eosjax.models.shards import SHARDED, in_base, in_stack, shared_kernels, take_out
from eosjax.models.stacks import take_apart, unrolls
from eosjax.runs.checkpoint import fetch_fingerprints, fetch_fingerprints_of_base
from eosjax.training.parallel import DataParallel, Device
from eosjax.training.plan import choose_remat
from eosjax.training.state import Learner
from eosjax.types import Batch, UserError

Say = Callable[[str], None]  # prints a line on the console


class BaseWeights:
    """Where base weights go as they are read: to every device, in layers if these are unrolled; or, with `--shard_frozen`, shared out.

    Args:
      config: the run.
      vla_config: the policy.
      parallel: the devices.

    Raises:
      UserError: `--shard_frozen` with nothing that these devices could share out.
    """

    def __init__(self, config: TrainConfig, vla_config: VLAConfig, parallel: DataParallel) -> None:
        self._parallel, self._unroll = parallel, vla_config.unroll
        self._paths: dict[tuple[str, ...], tuple[str, ...]] = {}  # in a part, by path in the base
        self._fingerprints: dict[str, int] = {}
        if not config.shard_frozen:
            return
        count = parallel.device_count
        found = shared_kernels(split_params(abstract_params(config, vla_config))[1], count)
        if count < 2 or not found:
            raise UserError(f"--shard_frozen True: {count} device(s) have nothing to share out; use two or more, as a power of two")
        self._paths = {in_base(path): path for path in found}

    def put(self, path: tuple[str, ...], array: np.ndarray) -> Any:
        """Takes an array of the base weights to its place."""
        if path not in self._paths:
            return self._parallel.replicate(tuple(array) if self._unroll and in_stack(path) else array)
        name = "".join(f"['{key}']" for key in self._paths[path])
        self._fingerprints[name] = fetch_fingerprints(array)[""]  # on one device, whole for the moment: the devices have but their shares
        return self._parallel.share_out(array)

    def place(self, frozen: Params) -> Params:
        """The frozen parts, made of what `put` returned, as the step takes them."""
        if not self._paths:
            return self._parallel.replicate(take_apart(frozen) if self._unroll else frozen)
        placed = take_out(frozen, self._paths.values())
        return {part: tree if part == SHARDED else self._parallel.replicate(tree) for part, tree in placed.items()}

    def fingerprints(self, frozen: Params) -> dict[str, int]:
        """Of the whole base weights; `frozen`: what `place` returned."""
        return fetch_fingerprints_of_base({part: tree for part, tree in frozen.items() if part != SHARDED}) | self._fingerprints


def suit_device(config: TrainConfig, vla_config: VLAConfig, text_length: int, devices: Sequence[Device], say: Say) -> VLAConfig:
    """The policy with what `--attention`, `--layers` and `--remat` mean on a device, which is said.

    Args:
      config: the run.
      vla_config: the policy.
      text_length: l, token ids in a row.
      devices: of the run.
      say: prints a line.

    Raises:
      UserError: the attention that the flags ask for cannot run here.
    """
    if line := check_attention(config.attention, vla_config.dtype):
        say(line)
    vla_config = dataclasses.replace(vla_config, unroll=unrolls(config.layers, sharded=config.shard_frozen))
    if config.remat != "auto":
        return vla_config
    own = next(device for device in devices if device.process_index == jax.process_index())
    remat, line = choose_remat(config, vla_config, text_length, (own.memory_stats() or {}).get("bytes_limit"), len(devices))
    if line:
        say(line)
    return dataclasses.replace(vla_config, remat=remat)


def initial_params(
    learner: Learner, pretrained: Pretrained | None, adapter: Path | None, example: Batch, key: jax.Array, put: Put, say: Say
) -> Params:
    """The parameters before the first update, by part.

    Args:
      learner: of the run.
      pretrained: the checkpoint to start from; None for random weights.
      adapter: folder of the PEFT adapter to start from; None for new adapters.
      example: a batch of the right shapes.
      key: of all that is random.
      put: moves an array of the base weights, given its path, to its place.
      say: prints a line: what comes from where.

    Raises:
      eosjax.models.hf.weights.WeightsError: a file is damaged, or does not fit.
    """
    params = init_params(learner.policy, learner.eos_head, example, key, with_base=pretrained is None)
    return params if pretrained is None else params | _load(pretrained, learner, adapter, params, put, say)


def _load(pretrained: Pretrained, learner: Learner, adapter: Path | None, fresh: Params, put: Put, say: Say) -> Params:
    """The base weights of a checkpoint, and those of the `fresh` parts that lie beside them."""
    config = learner.policy.vla.config
    base, report = pretrained.load_base(config, put)
    say(f"base weights of {pretrained.folder}: {report}")
    loaded = base_parts(base, config)
    parts = pretrained.part_files(fresh)
    for part, path in parts.of.items():
        if part != FILM:
            loaded[part] = pretrained.load_part(path, part, config, fresh[part])
            say(f"{part} from {path.name}")
    for path in parts.aside:
        say(f"note: {path.name} is not read: the policy that the flags describe has no such part")
    if adapter is not None:
        loaded["lora"], notes = pretrained.load_adapter(adapter, config)
        say(f"adapters from {adapter}, scale {config.lora_scaling:g}")
        for note in notes:
            say(f"note: {note}")
    if FILM in parts.of:
        loaded[FILM] = pretrained.load_film(parts.of[FILM], config, merged=adapter is None)
        say(f"film from {parts.of[FILM].name}")
    return loaded
