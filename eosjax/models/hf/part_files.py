"""Files of the parts that OpenVLA-OFT keeps beside the base weights: `<part>--<step>_checkpoint.pt` or `.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from eosjax.models.hf.files import Finite, Tensors, check_file, first_line
from eosjax.models.hf.weights import WeightsError

PARTS = ("action_head", "eos_head", "proprio_projector", "noisy_action_projector")  # what OpenVLA-OFT keeps in files of its own
FILM_FILE = "vision_backbone"  # and where it keeps the layers of FiLM
_LATEST = "latest"


def find_parts(folder: Path, parts: Iterable[str]) -> dict[str, Path]:
    """The file of each part in the folder of a checkpoint; of the newest step that all of them have.

    The name of a file is `<part>--<step>_checkpoint` where step may be `latest`, which is newer than any number; or the name of the part
    alone, which goes with any step. Of files of one step safetensors are taken. A part without a file is left out.

    Raises:
        WeightsError: the parts have no step in common; lists the files.
    """
    found = {part: by_step for part in parts if (by_step := _files_by_step(folder, part))}
    of_steps = [set(by_step) for by_step in found.values() if None not in by_step]
    common = set.intersection(*of_steps) if of_steps else set()
    if of_steps and not common:
        listed = sorted(path.name for by_step in found.values() for path in by_step.values())
        raise WeightsError(
            f"{folder}: the parts of the policy are of different steps, which do not belong together: {', '.join(listed)}; leave the files "
            "of one step in the folder"
        )
    step = max(common, key=_order, default=None)
    return {part: by_step[None] if None in by_step else by_step[step] for part, by_step in found.items()}


def _files_by_step(folder: Path, part: str) -> dict[str | None, Path]:
    """The files of a part by step; None: the name has none."""
    found = {}
    for path in sorted(folder.glob(f"{part}*")):  # .pt before .safetensors
        match = re.fullmatch(rf"{part}(?:--(\d+|{_LATEST})_checkpoint)?\.(?:pt|safetensors)", path.name)
        if match:
            found[match[1]] = path
    return found


def _order(step: str | None) -> tuple[int, str]:
    """Sorts steps by number, `latest` behind them."""
    return (10**9, "") if step is None or step == _LATEST else (len(step.lstrip("0")), step.lstrip("0"))


def read_part(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a part's file, float32: safetensors, or a state dict that torch saved (which needs torch; no code in it is run).

    Raises:
        WeightsError: the file is damaged or no state dict, or a tensor is no floating-point number, or NaN or infinite.
    """
    if path.suffix == ".safetensors":
        tensors = Finite(Tensors.of_file(path), path)
        return {name: np.asarray(tensors[name], np.float32) for name in tensors}
    check_file(path)
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise WeightsError(f"{path}: a file of torch; install torch, or convert it to {path.with_suffix('.safetensors')}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise many kinds
        raise WeightsError(f"{path}: unreadable: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(value, torch.Tensor) for n, value in state.items()):
        raise WeightsError(f"{path}: expected a state dict, names with tensors")
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for name, value in state.items():
        if value.dtype not in floats or value.layout is not torch.strided:
            raise WeightsError(f"{path}: {name}: expected weights in float32 or bfloat16, got {value.dtype}, {value.layout}")
    return dict(Finite({name: value.detach().float().numpy() for name, value in state.items()}, path))
