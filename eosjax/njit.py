"""Machine code for loops over NumPy arrays that would need many small NumPy calls. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Returns the function compiled by numba at the first call for each combination of argument types; it runs without the GIL.

    The machine code is cached on disk beside the file of the function or below the home directory. Where neither is writable, each process
    compiles again.

    Args:
      function: of arrays, numbers and (named) tuples of them.
      **options: of `numba.njit`, such as `fastmath`.
    """
    try:
        return numba.njit(function, cache=True, nogil=True, **options)
    except RuntimeError:
        return numba.njit(function, nogil=True, **options)
