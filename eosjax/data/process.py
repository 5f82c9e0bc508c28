"""Work that is done in a process of its own: building frame stores, and all that needs TFDS and TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from eosjax.types import UserError

_USER_ERROR_STATUS = 3


def run_module(module: str, *args: str | Path) -> None:
    """Runs `python -m module args…` and waits. Its output is shown only if it fails; progress bars are shown on a terminal.

    Raises:
        UserError: the module ended in one (see `exit_with`).
        RuntimeError: it failed otherwise; the message has its output.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")])),
        "PYTHONIOENCODING": "utf-8:backslashreplace",  # texts of a dataset in a message, whatever the locale
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",  # TensorFlow would take the GPU's memory from JAX
    }
    child = subprocess.run(
        [sys.executable, "-m", module, *map(str, args)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=None if sys.stderr.isatty() else subprocess.PIPE,
        encoding="utf-8",
        errors="backslashreplace",
        check=False,
    )
    if child.returncode == _USER_ERROR_STATUS:
        raise UserError(child.stdout.strip())
    if child.returncode != 0:
        raise RuntimeError(f"{module} failed (status {child.returncode}):\n{child.stderr or ''}")


def exit_with(work: Callable[[], None]) -> None:
    """Does the work of a module that `run_module` runs, and ends the process; a `UserError` reaches the parent."""
    try:
        work()
    except UserError as error:
        print(error)
        sys.exit(_USER_ERROR_STATUS)
    sys.exit(0)
