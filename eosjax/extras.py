"""What an installation without the extra `train` lacks, said before anything fails on it."""

from __future__ import annotations

import importlib.util

from eosjax.types import UserError

# The modules that the extra installs and eosjax imports.
TRAIN_MODULES = (
    "array_record",
    "av",
    "draccus",
    "grain",
    "gymnasium",
    "jinja2",
    "markupsafe",
    "matplotlib",
    "pyarrow",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "threadpoolctl",
)


class MissingExtraError(UserError):
    """The extra `train` is not installed, or not all of it."""


def check_train_extra() -> None:
    """Raises `MissingExtraError` unless all modules of the extra `train` can be found. Imports none of them."""
    missing = [name for name in TRAIN_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        partly = f" (not installed: {', '.join(missing)})" if len(missing) < len(TRAIN_MODULES) else ""
        raise MissingExtraError(f"needs the extra `train`: pip install 'eosjax[train]'{partly}")
