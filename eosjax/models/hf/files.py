"""Files of a checkpoint: a folder in the Hugging Face layout, on disk or from the hub, read tensor by tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # registers bfloat16 with NumPy, for safetensors
import numpy as np
import safetensors

from eosjax.models.hf.weights import WeightsError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What stands beside the weights: configuration, tokenizer, preprocessor, and the code that PyTorch loads them with. It is never run here.
SIDE_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.py")
_HUB_FILES = [*SIDE_FILES, "*.safetensors", "*_checkpoint.pt", "lora_adapter/*"]
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def local_folder(vla_path: str, revision: str | None = None) -> Path | None:
    """The folder that `vla_path` names; None if there is none, so that it can only be a name on the hub.

    Raises:
        WeightsError: a file, or a folder with a revision.
    """
    folder = Path(vla_path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise WeightsError(f"--vla_revision {revision}: --vla_path {vla_path} is a folder, and only the hub has revisions")
        return folder
    if folder.exists():
        raise WeightsError(f"--vla_path {vla_path}: expected a folder with config.json, got a file")
    return None


def find_checkpoint(vla_path: str, revision: str | None = None) -> tuple[Path, str | None]:
    """The folder of a checkpoint: `vla_path` itself, or a copy of the hub's repository `owner/name` in huggingface_hub's cache.

    Args:
        vla_path: folder or name.
        revision: branch, tag or commit on the hub; None for the newest commit of its main branch.

    Returns:
        The folder, and the commit on the hub (None for a folder of one's own).

    Raises:
        WeightsError: there is neither such a folder nor such a repository, or the hub cannot be reached.
    """
    folder = local_folder(vla_path, revision)
    if folder is not None:
        return folder, None
    if not _HUB_NAME.fullmatch(vla_path):
        raise WeightsError(f"--vla_path {vla_path}: no such folder, and no name of the form owner/name on the Hugging Face hub")
    import huggingface_hub  # slow to import, and needed for names only
    from huggingface_hub import errors

    try:
        snapshot = Path(huggingface_hub.snapshot_download(vla_path, revision=revision, allow_patterns=_HUB_FILES))
        return snapshot, snapshot.name  # the cache names the folder of a snapshot after its commit
    except errors.GatedRepoError as error:
        raise WeightsError(f"--vla_path {vla_path}: restricted; accept its terms on the hub and run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"--vla_revision {revision}: {vla_path} has no such branch, tag or commit on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(f"--vla_path {vla_path}: no such folder, and no repository on the hub that you may see") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"--vla_path {vla_path}: no such folder, not in the cache, and the hub cannot be reached ({_first_line(error)})"
        ) from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; `WeightsError` when the file is missing or no JSON object."""
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; expected a checkpoint in the Hugging Face layout") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected an object, got {content!r:.60}")
    return content


class Tensors(Mapping[str, np.ndarray]):
    """Tensors of safetensors files as a mapping; each is read when it is asked for, and nothing is kept or mapped in between."""

    def __init__(self, file_of: Mapping[str, Path]):
        """`file_of`: the file of each tensor. Reads the headers; `WeightsError` when one is missing, damaged or lacks a tensor."""
        self._file_of = dict(file_of)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(set(self._file_of.values())):
            names = [name for name, file in self._file_of.items() if file == path]
            with _opened(path) as file:
                lacking = sorted(set(names) - set(file.keys()))
                if lacking:
                    raise WeightsError(f"{path}: the index puts {lacking[0]} here ({len(lacking)} such tensors), but the file lacks it")
                self.shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}

    @classmethod
    def of_folder(cls, folder: Path) -> Tensors:
        """The weights of a checkpoint: the shards of its index, or its one file."""
        if (folder / INDEX).is_file():
            index = read_json(folder, INDEX).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise WeightsError(f"{folder / INDEX}: expected a weight_map")
            return cls({name: folder / file for name, file in index.items()})
        if (folder / SINGLE).is_file():
            return cls.of_file(folder / SINGLE)
        raise WeightsError(f"{folder}: expected {SINGLE} or {INDEX} with its shards; found {_found(folder)}")

    @classmethod
    def of_file(cls, path: Path) -> Tensors:
        """All tensors of one file."""
        with _opened(path) as file:
            return cls(dict.fromkeys(file.keys(), path))

    @property
    def largest_file(self) -> int:
        """Bytes of the largest file."""
        return max(path.stat().st_size for path in set(self._file_of.values()))

    def __getitem__(self, name: str) -> np.ndarray:
        # Opened anew each time: the library maps the file, and pages of a mapping that lives on count as this process' memory.
        with _opened(self._file_of[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def read_part(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a part's file: safetensors, or a state dict that torch saved (which needs torch)."""
    if path.suffix == ".safetensors":
        return dict(Tensors.of_file(path))
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise WeightsError(f"{path}: a file of torch; install torch, or convert it to {path.with_suffix('.safetensors')}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise many kinds
        raise WeightsError(f"{path}: unreadable: {_first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: expected a state dict, names with tensors")
    return {name: value.float().numpy() for name, value in state.items()}


def find_part(folder: Path, part: str) -> Path | None:
    """The newest file of a part in the folder of an OpenVLA-OFT checkpoint, None without one.

    `<part>--<step>_checkpoint.pt` (or .safetensors), where step may be `latest`; or `<part>.safetensors`.
    """
    found = [path for path in folder.glob(f"{part}*") if re.fullmatch(rf"{part}(--\w+_checkpoint)?\.(pt|safetensors)", path.name)]
    return max(found, key=lambda path: (_step_of(path), path.suffix == ".safetensors"), default=None)


def _step_of(path: Path) -> float:
    """The step in the name of a part's file; files without a number are the newest."""
    match = re.search(r"--(\d+)_checkpoint", path.name)
    return float(match[1]) if match else float("inf")


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; is the download complete?")
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: damaged or no safetensors file: {error}; its size is {path.stat().st_size:,} bytes") from error


def _found(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:12]) or "an empty folder"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
