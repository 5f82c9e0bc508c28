"""Repositories on the Hugging Face hub, through the cache of `huggingface_hub`. Nothing of them is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from eosjax.types import UserError

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_name(name: str) -> bool:
    """Whether a text has the form owner/name."""
    return _NAME.fullmatch(name) is not None


def fetch(flag: str, name: str, error: type[UserError], revision: str | None = None, revision_flag: str = "", **options: Any) -> Path:
    """The folder of a copy of a repository in the cache, named after its commit; what is missing of it is downloaded.

    Args:
        flag: that named it, for messages.
        name: `owner/name`.
        error: what is raised.
        revision: branch, tag or commit; None for the newest commit of the main branch.
        revision_flag: that named the revision.
        options: of `huggingface_hub.snapshot_download`, such as the files that are wanted.

    Raises:
        error: there is no such repository or revision, or one must not see it, or the hub cannot be reached and the cache has no copy.
    """
    import huggingface_hub  # slow to import, and needed for names only
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, **options))
    except errors.GatedRepoError as fault:
        raise error(f"{flag} {name}: restricted; accept its terms on the hub and run `hf auth login`") from fault
    except errors.RevisionNotFoundError as fault:
        raise error(f"{revision_flag} {revision}: {name} has no such branch, tag or commit on the hub") from fault
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as fault:
        raise error(f"{flag} {name}: no such folder, and no repository on the hub that you may see") from fault
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as fault:
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        wanted = name if revision is None else f"{name}, revision {revision}"
        raise error(f"{flag} {wanted}: no such folder, not in the cache, and the hub cannot be reached ({reason})") from fault
