"""What JPEG and PNG files say of themselves in their headers, read without decoding the image."""

from __future__ import annotations

import re
from typing import NamedTuple

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Within the compressed data of a JPEG, 0xFF is followed by 0 or a restart marker. Every other pair is a marker between segments.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_START, _TEMPORARY, _END = 0xD8, 0x01, 0xD9  # markers without contents
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # each kind of compression has its own
_JPEG_CHANNELS = {1: "greyscale", 3: "RGB", 4: "CMYK"}
_PNG_CHANNELS = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale and alpha", 6: "RGB and alpha"}


class Header(NamedTuple):
    """What an image file holds."""

    format: str  # JPEG or PNG
    bits: int  # of a channel
    channels: str

    @property
    def is_rgb(self) -> bool:
        """Whether the image is what a policy sees: three colours of eight bits."""
        return (self.bits, self.channels) == (8, "RGB")

    def __str__(self) -> str:
        return f"{self.bits}-bit {self.channels} {self.format}"


def read_header(data: bytes) -> Header | None:
    """What the JPEG or PNG file `data` holds; None if it is neither, or ends before the image does.

    Bytes behind the image are ignored, as decoders do. (Some cameras append a second picture or their own data.)
    """
    if data.startswith(_JPEG):
        return _read_jpeg(data)
    return _read_png(data) if data.startswith(_PNG) else None


def _read_jpeg(data: bytes) -> Header | None:
    """From segment to segment (marker, length in two bytes, contents); ITU-T T.81, annex B."""
    header, at = None, 0
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == _END:
            return header
        if marker in (_START, _TEMPORARY):
            continue
        segment = data[at : at + int.from_bytes(data[at : at + 2], "big")]
        if marker in _FRAMES:
            if len(segment) < 8:
                return None
            header = Header("JPEG", segment[2], _JPEG_CHANNELS.get(segment[7], f"{segment[7]}-channel"))
        at += len(segment)
    return None


def _read_png(data: bytes) -> Header | None:
    """From chunk to chunk (length in four bytes, name, contents, checksum); the first one is the header."""
    header, at = None, len(_PNG)
    while at + 12 <= len(data):
        name = data[at + 4 : at + 8]
        if header is None:
            bits, channels = data[at + 16 : at + 18] if name == b"IHDR" and at + 18 <= len(data) else (0, 0)
            header = Header("PNG", bits, _PNG_CHANNELS.get(channels, f"unknown kind {channels}"))
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if name == b"IEND":
            return header if at <= len(data) else None
    return None
