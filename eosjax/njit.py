"""Loops over NumPy arrays as machine code, for what many small calls of NumPy are too slow for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """The function, compiled by numba at its first call for the types of its arguments; other threads have the interpreter meanwhile.

    Machine code is kept between runs where anything may be written beside the file of the function or below the home directory; elsewhere
    each process compiles it.

    Args:
      function: of arrays, numbers and (named) tuples of them.
      **options: of `numba.njit`, such as `fastmath`.
    """
    try:
        return numba.njit(function, cache=True, nogil=True, **options)
    except RuntimeError:
        return numba.njit(function, nogil=True, **options)
