"""What a run starts from: the policy suited to its device, and the first parameters, random or of a pretrained checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from eosjax.config import TrainConfig
from eosjax.models.attention import check_attention
from eosjax.models.hf.pretrained import FILM, Pretrained
from eosjax.models.hf.weights import Put
from eosjax.models.openvla import VLAConfig
from eosjax.models.parts import base_parts, init_params
from eosjax.models.policies import Params
from eosjax.training.plan import choose_remat
from eosjax.training.state import Learner
from eosjax.types import Batch

Say = Callable[[str], None]  # prints a line on the console


def suit_device(config: TrainConfig, vla_config: VLAConfig, text_length: int, device: Any, say: Say) -> VLAConfig:
    """The policy with what `--attention` and `--remat` mean on a device, which is said.

    Args:
      config: the run.
      vla_config: the policy.
      text_length: l, token ids in a row.
      device: a jax.Device.
      say: prints a line.

    Raises:
      UserError: the attention that the flags ask for cannot run here.
    """
    if line := check_attention(config.attention, vla_config.dtype):
        say(line)
    if config.remat != "auto":
        return vla_config
    remat, line = choose_remat(config, vla_config, text_length, (device.memory_stats() or {}).get("bytes_limit"))
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
      put: moves an array of the base weights to its place.
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
        loaded[FILM] = pretrained.load_film(parts.of[FILM], config, base, merged=adapter is None)
        say(f"film from {parts.of[FILM].name}")
    return loaded
