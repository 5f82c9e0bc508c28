"""What JAX and XLA are told before they start. They read it from the environment, once; what the user has set there stays.

compiled programs   are kept in a folder, so that the next start of the same run reads all that took more than a second; with them XLA
                    keeps the kernels that it has measured to be the fastest
memory of a GPU     JAX takes 92 % of it at the start instead of 75 %
deterministic       XLA on GPUs takes no kernel whose sums come in another order each time, and none by measuring, which may end
                    differently at the next start
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from eosjax.types import UserError

COMPILE_CACHE = "JAX_COMPILATION_CACHE_DIR"
MEMORY_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # today's name, and the one before
MEMORY_FRACTION = "0.92"  # the rest is for the driver, and for libraries that allocate by themselves
DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"


def cache_root() -> Path:
    """The folder for what is kept from run to run: the environment variable EOSJAX_CACHE, or `~/.cache/eosjax`."""
    return Path(os.environ.get("EOSJAX_CACHE") or "~/.cache/eosjax").expanduser()


def prepare(compile_cache: Path | None = None, *, deterministic: bool = False) -> None:
    """Sets the environment of JAX and XLA. To be called before anything imports JAX.

    Args:
      compile_cache: folder of compiled programs; None for `xla` in `cache_root()`.
      deterministic: the same bits from the same run on the same kind of GPU, at some cost in speed.

    Raises:
      UserError: `deterministic` comes too late, since JAX is loaded already.
    """
    if compile_cache is not None:
        os.environ[COMPILE_CACHE] = str(compile_cache)
    os.environ.setdefault(COMPILE_CACHE, str(cache_root() / "xla"))
    if not any(name in os.environ for name in MEMORY_FRACTIONS):
        os.environ[MEMORY_FRACTIONS[0]] = MEMORY_FRACTION
    if deterministic:
        if "jax" in sys.modules:
            raise UserError("--deterministic True: JAX is loaded already, and has read its settings")
        os.environ["XLA_FLAGS"] = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), DETERMINISTIC)))
