"""Where a checkpoint is: a folder of one's own, or a copy of a repository on the Hugging Face hub. Nothing of it is run."""

from __future__ import annotations

from pathlib import Path

from eosjax.hub import fetch, is_hub_name
from eosjax.models.hf.files import SIDE_FILES
from eosjax.models.hf.weights import WeightsError

_HUB_FILES = [*SIDE_FILES, "*.safetensors", "*_checkpoint.pt", "lora_adapter/*"]


def check_hub_name(vla_path: str) -> None:
    """Raises `WeightsError` unless `vla_path` can be the name of a repository."""
    if not is_hub_name(vla_path):
        raise WeightsError(f"--vla_path {vla_path}: no such folder, and no name of the form owner/name on the Hugging Face hub")


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
    check_hub_name(vla_path)
    snapshot = fetch("--vla_path", vla_path, WeightsError, revision, "--vla_revision", allow_patterns=_HUB_FILES)
    return snapshot, snapshot.name  # the cache names the folder of a snapshot after its commit
