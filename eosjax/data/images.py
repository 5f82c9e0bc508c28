"""Images on the host: decode, resize, the original's augmentation, and the centre crop of evaluation.

Inside, a picture is *planes*: f32 [3 h w], colour first, 0 to 255. Resampling is then a product with a banded matrix along each
axis, and every other operation runs in place over contiguous memory, in blocks of rows that stay in the processor's cache.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from eosjax.types import UserError

CROP_AREA = 0.9  # share of the image that the random crop keeps in training and the centre crop in evaluation
_BRIGHTNESS = 0.2 * 255.0
_CONTRAST = (0.8, 1.2)
_SATURATION = (0.8, 1.2)
_HUE = 0.05  # in turns of the colour circle
_LANCZOS = 3  # lobes
# Rows of a banded matrix that are multiplied at once: few enough to multiply few zeros, and for BLAS to stay on the calling thread.
_BAND_ROWS = 16
_BLOCK_ROWS = 64  # rows whose colours are changed at once


class ImageError(UserError):
    """Bytes that do not decode to an image."""


def decode(data: bytes) -> np.ndarray:
    """The RGB image, u8 [h w 3], in JPEG or PNG bytes; `ImageError` when they do not decode."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{len(data)} bytes do not decode as JPEG or PNG: {error}") from error


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """u8 [size size 3] by Lanczos resampling with antialiasing; the image itself, u8 [h w 3], when it has that size already."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    return _to_image(_resample(image, _lanczos(height, size), _lanczos(width, size)))


def augment(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The original's training augmentation of the resized image, in its order; the same generator state gives the same image.

    Lanczos resampling of u8 [h w 3] to [size size 3], random resized crop (area 0.9, ratio 1), brightness ±0.2, contrast 0.8-1.2,
    saturation 0.8-1.2, hue ±0.05; values stay within the range after each. See `_crop` for the one difference.
    """
    top, left = rng.uniform(0.0, 1.0 - np.sqrt(CROP_AREA), 2)
    pixels = _crop(image, size, top, left)
    brightness, contrast = np.float32(rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)), np.float32(rng.uniform(*_CONTRAST))
    saturation, turn = rng.uniform(*_SATURATION), rng.uniform(-_HUE, _HUE)
    means = np.empty((3, 1, 1), np.float32)
    for plane, mean in zip(pixels, means, strict=True):
        plane += brightness
        np.clip(plane, 0.0, 255.0, out=plane)
        mean[:] = plane.mean()
    for start in range(0, size, _BLOCK_ROWS):
        block = pixels[:, start : start + _BLOCK_ROWS]
        block *= contrast
        block += (1 - contrast) * means
        np.clip(block, 0.0, 255.0, out=block)
        _adjust_saturation_and_hue(block, saturation, turn)
    return _to_image(pixels)


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central 90 % of the area of the resized image, u8 [size size 3]: for policies trained with random crops."""
    margin = (1.0 - np.sqrt(CROP_AREA)) / 2.0
    return _to_image(_crop(image, size, margin, margin))


def _crop(image: np.ndarray, size: int, top: float, left: float) -> np.ndarray:
    """Planes: `resize`, then the square of area `CROP_AREA` at a relative position, resized bilinearly to the full size.

    Both in one resampling, without rounding in between. Where no value left the range in between, that is all that differs from
    the original (`tf.image.crop_and_resize` of the rounded image), hence at most half a level.
    """
    height, width = image.shape[:2]
    return _resample(image, _cropped(_lanczos(height, size), top), _cropped(_lanczos(width, size), left))


def _to_image(planes: np.ndarray) -> np.ndarray:
    """u8 [h w 3], rounded, of planes, which are overwritten."""
    planes += np.float32(0.5)
    image = np.empty((*planes.shape[1:], 3), np.uint8)
    for channel, plane in enumerate(planes):
        image[..., channel] = plane
    return image


class _Matrix(NamedTuple):
    """Resamples one axis from n to m pixels; row i is zero but from column `first[i]` to `stop[i]` (exclusive), both rising."""

    weights: np.ndarray  # f32 [m n]
    first: np.ndarray  # i64 [m]
    stop: np.ndarray  # i64 [m]

    def bands(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Rows that are multiplied at once, the columns in which they are not zero, and their weights there."""
        for start in range(0, len(self.weights), _BAND_ROWS):
            stop = min(start + _BAND_ROWS, len(self.weights))
            columns = slice(int(self.first[start]), int(self.stop[stop - 1]))
            yield slice(start, stop), columns, self.weights[start:stop, columns]


def _resample(image: np.ndarray, vertical: _Matrix, horizontal: _Matrix) -> np.ndarray:
    """Planes of u8 [h w 3] resampled along both axes; what goes beyond the range is clipped."""
    source = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    between = np.empty((3, len(vertical.weights), source.shape[2]), np.float32)
    for rows, columns, weights in vertical.bands():
        np.matmul(weights, source[:, columns].astype(np.float32), out=between[:, rows])
    result = np.empty((*between.shape[:2], len(horizontal.weights)), np.float32)
    for rows, columns, weights in horizontal.bands():
        np.matmul(between[:, :, columns], weights.T, out=result[:, :, rows])
    return np.clip(result, 0.0, 255.0, out=result)


@functools.cache
def _lanczos(length: int, size: int) -> _Matrix:
    """From `length` pixels to `size`; when shrinking, the kernel is stretched over the pixels that fall together."""
    scale = length / size
    stretch = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale - 0.5
    distance = (np.arange(length) - centres[:, None]) / stretch
    inside = np.abs(distance) < _LANCZOS
    weights = np.where(inside, np.sinc(distance) * np.sinc(distance / _LANCZOS), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return _Matrix(weights.astype(np.float32), inside.argmax(axis=1), length - inside[:, ::-1].argmax(axis=1))


def _cropped(matrix: _Matrix, start: float) -> _Matrix:
    """The matrix followed by bilinear resampling of a side of the crop, whose ends fall on the centres of pixels."""
    size = len(matrix.weights)
    positions = start * (size - 1) + np.arange(size) * np.sqrt(CROP_AREA)
    low = np.minimum(positions.astype(int), size - 2)
    share = (positions - low).astype(np.float32)[:, None]
    weights = matrix.weights[low + 1]
    weights *= share
    weights += matrix.weights[low] * (1 - share)
    return _Matrix(weights, matrix.first[low], matrix.stop[low + 1])


def _adjust_saturation_and_hue(rgb: np.ndarray, saturation: float, turn: float) -> None:
    """Changes planes: the HSV saturation multiplied (and clipped), then the hue turned (|turn| < 1/6).

    Without branches: the channels are sorted, and the hue, in sixths of a turn, is the distance of the middle one from an offset
    that the order determines. (Sorting as in Hocevar, "A fast RGB to HSV floating point conversion", 2013.)
    """
    red, green, blue = rgb
    high, low = np.maximum(green, blue), np.minimum(green, blue)
    value, middle = np.maximum(red, high), np.minimum(red, high)
    offset = np.multiply(green < blue, np.float32(-6.0))
    swapped = np.multiply(red < high, np.float32(-2.0))
    swapped *= np.add(offset, 1.0, out=high)
    offset += swapped  # -2 - offset where red was not the largest
    chroma = np.subtract(value, np.minimum(middle, low, out=high), out=high)
    middle -= low
    middle /= np.maximum(chroma, np.float32(1e-12), out=low)  # a grey pixel gets some hue too, but has no chroma to show it
    middle += offset
    hue = np.abs(middle, out=middle)
    hue += np.float32(6.0 * turn)
    turns = np.floor(np.multiply(hue, np.float32(1.0 / 6.0), out=offset), out=offset)
    turns *= 6.0
    hue -= turns
    # chroma = value * saturation, and the new saturation is at most 1.
    chroma *= np.float32(saturation)
    np.minimum(chroma, value, out=chroma)
    value -= chroma
    # The share of the chroma in each channel: clip(|hue - 3| - 1, 0, 1) in red, clip(2 - |hue - centre|, 0, 1) in the others.
    for plane, centre in ((red, 3.0), (green, 2.0), (blue, 4.0)):
        np.abs(np.subtract(hue, centre, out=plane), out=plane)
        np.subtract(*((plane, 1.0) if plane is red else (2.0, plane)), out=plane)
        np.clip(plane, 0.0, 1.0, out=plane)
        plane *= chroma
        plane += value
