"""Headers of image files, compared with what Pillow wrote and reads."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eosjax.data.images.headers import read_header
from eosjax.data.images.transforms import decode

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
JPEGS = {"RGB": "8-bit RGB JPEG", "L": "8-bit greyscale JPEG", "CMYK": "8-bit CMYK JPEG"}
PNGS = {
    "RGB": "8-bit RGB PNG",
    "L": "8-bit greyscale PNG",
    "1": "1-bit greyscale PNG",
    "P": "8-bit palette PNG",
    "LA": "8-bit greyscale and alpha PNG",
    "RGBA": "8-bit RGB and alpha PNG",
    "I;16": "16-bit greyscale PNG",
}


def encoded(mode: str, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).convert("L" if mode == "I;16" else mode).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("mode", "expected"), JPEGS.items())
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "quality": 100}, {"restart_marker_blocks": 1}])
def test_jpeg(mode, expected, options):
    assert str(read_header(encoded(mode, "JPEG", **options))) == expected


@pytest.mark.parametrize(("mode", "expected"), PNGS.items())
def test_png(mode, expected):
    header = read_header(encoded(mode, "PNG"))
    assert header is not None
    assert str(header) == expected
    assert header.is_rgb == (mode == "RGB")


def test_a_png_of_16_bits_a_colour_which_pillow_reads_as_8():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = chunk(b"IDAT", zlib.compress(b"\0" + bytes(12)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)) + rows + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert str(read_header(data)) == "16-bit RGB PNG"


@settings(max_examples=50)
@given(st.sampled_from(["JPEG", "PNG"]), st.booleans(), st.binary(max_size=3000), st.data())
def test_bytes_behind_an_image_are_ignored_and_a_cut_image_is_none(kind, progressive, more, data):
    image = encoded("RGB", kind, progressive=progressive)
    header = read_header(image)
    assert header is not None
    assert read_header(image + more) == header
    np.testing.assert_array_equal(decode(image + more), decode(image))
    assert read_header(image[: data.draw(st.integers(0, len(image) - 1))]) is None


def test_a_thumbnail_is_not_the_end_of_a_cut_image():
    image = encoded("RGB", "JPEG", comment=encoded("RGB", "JPEG"))
    assert image.count(b"\xff\xd9") > 1
    assert read_header(image) is not None
    assert read_header(image[:-10]) is None


@settings(max_examples=100)
@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", encoded("RGB", "JPEG")[:200], encoded("RGB", "PNG")[:40]]), st.binary())
def test_any_bytes_have_a_header_or_none(start, rest):
    read_header(start + rest)
    read_header(start + rest + b"\xff" * 100_000 + b"\0")
