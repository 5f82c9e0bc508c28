"""Reads TFRecord files without TensorFlow, whose import takes more time and memory than reading a dataset.

A record is its length (u64, little endian), the checksum of these 8 bytes (u32), the contents, the checksum of the contents (u32).
The checksum is CRC-32C, rotated and shifted; see `tensorflow/core/lib/io/record_writer.h` and `tensorflow/core/lib/hash/crc32c.h`.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78  # of CRC-32C, lowest bit first
_LANES = 1 << 13


class RecordError(Exception):
    """A file that is truncated or damaged."""


def read_records(path: Path, first: int = 0) -> Iterator[bytes]:
    """The records of a file from number `first` on, one at a time.

    Raises:
        RecordError: the file ends within a record, or the checksum of a record that is read does not match.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        number = 0
        while header := file.read(_HEADER.size):
            if len(header) < _HEADER.size:
                raise RecordError(f"it ends within record {number}")
            length, checksum = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                raise RecordError(f"the length of record {number} does not have its checksum")
            if file.tell() + length + _FOOTER.size > size:
                raise RecordError(f"it ends within record {number}")
            if number < first:
                file.seek(length + _FOOTER.size, os.SEEK_CUR)
            else:
                contents, footer = file.read(length), file.read(_FOOTER.size)
                if masked_crc32c(contents) != _FOOTER.unpack(footer)[0]:
                    raise RecordError(f"the contents of record {number} do not have their checksum")
                yield contents
            number += 1


def record_checksums(path: Path) -> bytes:
    """Lengths and checksums of all records as stored in the file: 16 bytes per record, which change with any byte of the record.

    For a damaged file: those that can be read.
    """
    found, size = [], path.stat().st_size
    with open(path, "rb", buffering=0) as file:
        header = file.read(_HEADER.size)
        while len(header) == _HEADER.size:
            file.seek(min(_HEADER.unpack(header)[0], size), os.SEEK_CUR)
            found.append(header + file.read(_FOOTER.size))
            header = file.read(_HEADER.size)
    return b"".join(found)


def masked_crc32c(data: bytes) -> int:
    """The checksum of a TFRecord file for these bytes."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C of some bytes.

    The remainder is linear in the data. So `data` is cut into lanes whose remainders are computed in parallel, one column of
    four-byte words at a time. Then neighbours are joined, round by round. 32 additional lanes of zeros, each starting with a different
    single bit, give the effect of a lane's length of zeros on the remainder to its left.
    """
    if len(data) < 4:  # too short for the start value below
        return _crc32c_of_few(data)
    lanes = _LANES if len(data) >= 4 * _LANES else 1
    width = -(-len(data) // (4 * lanes))
    words = np.zeros((lanes + 32, width), "<u4")
    view = words[:lanes].reshape(-1).view(np.uint8)
    start = len(view) - len(data)  # zeros in front change nothing, as the remainder there is 0 …
    view[start:] = np.frombuffer(data, np.uint8)
    view[start : start + 4] ^= 0xFF  # … and the start value of all ones is the same as inverted first bytes
    low, high = _tables()
    state = np.concatenate([np.zeros(lanes, np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)])
    for column in np.ascontiguousarray(words.T):
        state ^= column
        state = low[state & 0xFFFF] ^ high[state >> 16]
    state, shift = state[:lanes], state[lanes:]
    while len(state) > 1:
        state = _transform(shift, state[0::2]) ^ state[1::2]
        shift = _transform(shift, shift)
    return int(state[0]) ^ 0xFFFFFFFF


def _transform(columns: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The matrix over GF(2) with these u32 [32] columns times each of the u32 [n] vectors."""
    bits = vectors[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    return np.bitwise_xor.reduce(bits * columns, axis=1)


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """What the lower and the upper 16 bits of a remainder become after four bytes of zeros, u32 [65536] each."""
    low = np.arange(1 << 16, dtype=np.uint32)
    high = low << 16
    for _ in range(32):
        low = low >> 1 ^ (low & 1) * np.uint32(_POLYNOMIAL)
        high = high >> 1 ^ (high & 1) * np.uint32(_POLYNOMIAL)
    return low, high


def _crc32c_of_few(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (crc & 1) * _POLYNOMIAL
    return crc ^ 0xFFFFFFFF
