"""Messages between robot and server: msgpack with NumPy arrays, in the form of openpi-client's `msgpack_numpy`.

An array is a map of its bytes, dtype and shape, a NumPy scalar one of its value and dtype. `unpack` reads what strangers send: it makes
nothing but numbers, texts, bytes, lists, maps and arrays of numbers, and no more of them than `Limits` allow.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import msgpack
import numpy as np

from eosjax.types import UserError

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_KINDS = "biuf"
DTYPES = {dtype.str: dtype for dtype in (np.dtype(order + name) for name in "? i1 u1 i2 u2 i4 u4 i8 u8 f2 f4 f8".split() for order in "<>")}
_MAX_DIMENSIONS = 8
_LONGEST_LIST = 4096  # the decoder allocates what a list announces before it has read it


class WireError(UserError):
    """A message that is not what was agreed on."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one message may hold, beside its length, which the connection limits.

    Attributes:
      arrays: NumPy arrays and scalars.
      entries: of all lists and maps together. A byte of a message can be an empty map of 64 bytes in memory.
      depth: lists and maps within each other.
    """

    arrays: int = 64
    entries: int = 10_000
    depth: int = 8


def pack(value: Any) -> bytes:
    """A message; `WireError` for a value that msgpack does not know, such as an array of objects."""
    try:
        return cast(bytes, msgpack.packb(value, default=_encode))
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"message: cannot be packed: {error}") from error


def unpack(message: bytes, limits: Limits | None = None) -> dict[str, Any]:
    """The content of a message. Its arrays share the memory of the message and cannot be written to.

    Raises:
        WireError: no msgpack, no map with texts as keys, or something that is too much or not allowed.
    """
    limits = limits or Limits()
    counts = _Counts(limits)
    try:
        content = msgpack.unpackb(
            message,
            object_hook=counts.map,
            list_hook=counts.list,
            ext_hook=_refuse_extension,
            max_array_len=_LONGEST_LIST,
            max_map_len=_LONGEST_LIST,
            max_ext_len=0,
        )
    except WireError:
        raise
    except UnicodeDecodeError as error:
        raise WireError(f"message: a text is not UTF-8: {error.reason}") from error
    except msgpack.exceptions.StackError as error:
        raise WireError(f"message: expected at most {limits.depth} levels of lists and maps, got far more") from error
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise WireError(
            f"message: expected msgpack, got {len(message)} bytes that are none: {str(error)[:200] or type(error).__name__}"
        ) from error
    if not isinstance(content, dict):
        raise WireError(f"message: expected a map, got {type(content).__name__}")
    _check(content, limits.depth, limits.depth)
    return content


def _encode(value: Any) -> Any:
    """What msgpack is given for a value that it does not know."""
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in _KINDS:
            raise WireError(f"message: expected arrays of numbers, got one of {value.dtype}")
        if isinstance(value, np.ndarray):
            return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise WireError(f"message: expected numbers, texts, bytes, lists, maps and arrays, got {type(value).__name__}")


class _Counts:
    """Counts what a message holds while it is decoded, so that too much is refused before it takes memory."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.arrays, self.entries = limits, 0, 0

    def map(self, content: dict[Any, Any]) -> Any:
        self._count(len(content))
        if _ARRAY not in content and _SCALAR not in content:
            return content
        self.arrays += 1
        if self.arrays > self.limits.arrays:
            raise WireError(f"message: expected at most {self.limits.arrays} arrays, got more")
        return _array(content) if _ARRAY in content else _scalar(content)

    def list(self, content: list[Any]) -> list[Any]:
        self._count(len(content))
        return content

    def _count(self, entries: int) -> None:
        self.entries += 1 + entries
        if self.entries > self.limits.entries:
            raise WireError(f"message: expected at most {self.limits.entries:,} entries of lists and maps, got more")


def _array(content: dict[Any, Any]) -> np.ndarray:
    dtype, data, shape = _dtype(content), content.get(b"data"), content.get(b"shape")
    if not isinstance(data, bytes):
        raise WireError(f"message: an array's data: expected bytes, got {type(data).__name__}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        raise WireError(f"message: an array's shape: expected at most {_MAX_DIMENSIONS} sizes from 0 on, got {shape!r:.80}")
    beside_zero = math.prod(size for size in shape if size)  # NumPy refuses what would overflow without the 0
    if math.prod(shape) * dtype.itemsize != len(data) or beside_zero > 2**32:
        raise WireError(f"message: an array of {dtype} {shape!r:.80} has not {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(content: dict[Any, Any]) -> np.generic:
    dtype, value = _dtype(content), content.get(b"data")
    if not isinstance(value, (bool, int, float)):
        raise WireError(f"message: a NumPy scalar: expected a number, got {type(value).__name__}")
    return dtype.type(value)


def _dtype(content: dict[Any, Any]) -> np.dtype[Any]:
    name = content.get(b"dtype")
    if isinstance(name, str) and name in DTYPES:
        return DTYPES[name]
    raise WireError(f"message: an array's dtype: expected one of booleans, integers and floats such as |u1 or <f4, got {name!r:.40}")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise WireError(f"message: expected no msgpack extension, got type {code}")


def _check(value: Any, depth: int, allowed: int) -> None:
    """Raises `WireError` for a value that is nested too deeply or of another kind, and for keys that are no texts."""
    if isinstance(value, (dict, list)):
        if not depth:
            raise WireError(f"message: expected at most {allowed} levels of lists and maps, got more")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise WireError(f"message: expected texts as keys, got {type(key).__name__} {key!r:.40}")
        for each in value.values() if isinstance(value, dict) else value:
            _check(each, depth - 1, allowed)
    elif not (value is None or isinstance(value, (bool, int, float, str, bytes, np.ndarray, np.generic))):
        raise WireError(f"message: expected numbers, texts, bytes, lists, maps and arrays, got {type(value).__name__}")  # a time
