"""Compiled arithmetic of images. An image is one call, which releases the interpreter lock to other threads.

Inside, an image is *planes*: f32 [3 w h], 0 to 255, channels first and transposed. All work except the two transpositions then runs along
contiguous memory. All arithmetic is in float32. A Python float would widen it, hence the named constants. Machine code is cached.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from eosjax.njit import compiled

CROP_AREA = 0.9  # share of the image that a crop keeps
_CROP_SIDE = float(np.sqrt(CROP_AREA))
_ROWS = 8  # rows transposed at once: few enough to stay in the processor's cache
_BLACK, _WHITE, _HALF = np.float32(0.0), np.float32(255.0), np.float32(0.5)
_ONE, _TWO, _THREE, _FOUR, _SIX, _SIXTH = (np.float32(value) for value in (1, 2, 3, 4, 6, 1 / 6))
_TINY = np.float32(1e-12)


class Taps(NamedTuple):
    """Resamples an axis from n to m places: the i-th is the sum over k of `weights[i, k]` times the place `first[i] + k`."""

    first: np.ndarray  # i64 [m], rising, 0 to n - c
    weights: np.ndarray  # f32 [m c]


# fastmath: images hold no NaN or infinity, and ignoring both allows vectorisation.
_compiled = functools.partial(compiled, fastmath=True, error_model="numpy")


@_compiled
def resize(image: np.ndarray, vertical: Taps, horizontal: Taps) -> np.ndarray:
    """u8 [h w 3] resampled along both axes, clipped and rounded."""
    return _to_image(_resample(image, vertical, horizontal))


@_compiled
def crop(image: np.ndarray, vertical: Taps, horizontal: Taps, top: float, left: float) -> np.ndarray:
    """`resize`, then a crop of the square of area `CROP_AREA` at a relative position, resized bilinearly to the full size.

    Both steps are one resampling without intermediate rounding. The original (`tf.image.crop_and_resize`) rounds the image in between.
    Where no intermediate value leaves the range, this is the only difference, at most half a level.
    """
    height, width, _ = image.shape
    return _to_image(_resample(image, _cropped(vertical, height, top), _cropped(horizontal, width, left)))


@_compiled
def augment(
    image: np.ndarray,
    vertical: Taps,
    horizontal: Taps,
    top: float,
    left: float,
    brightness: np.float32,
    contrast: np.float32,
    saturation: np.float32,
    turn: np.float32,
) -> np.ndarray:
    """`crop`, then the colour changes in the order of the arguments. Values are clipped after each change and rounded at the end.

    Args:
        image: u8 [h w 3].
        vertical, horizontal: taps of the resampling.
        top, left: relative position of the crop.
        brightness: added to all values.
        contrast: factor on the distance from the mean of the channel.
        saturation: factor on the saturation in HSV.
        turn: added to the hue in HSV, in sixths of the colour circle, within ±1.
    """
    height, width, _ = image.shape
    planes = _resample(image, _cropped(vertical, height, top), _cropped(horizontal, width, left))
    _adjust_brightness_and_contrast(planes, brightness, contrast)
    _adjust_saturation_and_hue(planes, saturation, turn)
    return _to_image(planes)


@_compiled
def _resample(image: np.ndarray, vertical: Taps, horizontal: Taps) -> np.ndarray:
    """Planes of u8 [h w 3] resampled along both axes and clipped to the range."""
    return _resample_width(_resample_height(image, vertical), horizontal)


@_compiled
def _resample_height(image: np.ndarray, taps: Taps) -> np.ndarray:
    """Planes of u8 [h w 3] resampled along its height."""
    size, count = taps.weights.shape
    height, width, _ = image.shape
    length = width * 3
    source = image.reshape(height, length)
    planes = np.empty((3, width, size), np.float32)
    lines = np.empty((_ROWS, length), np.float32)
    for top in range(0, size, _ROWS):
        rows = min(_ROWS, size - top)
        lines[:] = _BLACK
        for i in range(rows):
            for k in range(count):
                weight, row = taps.weights[top + i, k], taps.first[top + i] + k
                for x in range(length):
                    lines[i, x] += weight * np.float32(source[row, x])
        for x in range(width):
            for channel in range(3):
                for i in range(rows):
                    planes[channel, x, top + i] = lines[i, 3 * x + channel]
    return planes


@_compiled
def _resample_width(planes: np.ndarray, taps: Taps) -> np.ndarray:
    """Planes resampled along their width, and clipped."""
    size, count = taps.weights.shape
    height = planes.shape[2]
    result = np.zeros((3, size, height), np.float32)
    for channel in range(3):
        for j in range(size):
            for k in range(count):
                weight, column = taps.weights[j, k], taps.first[j] + k
                for y in range(height):
                    result[channel, j, y] += weight * planes[channel, column, y]
            for y in range(height):
                result[channel, j, y] = _clip(result[channel, j, y])
    return result


@_compiled
def _cropped(taps: Taps, length: int, start: float) -> Taps:
    """The taps (from `length` places) followed by bilinear resampling of a side of the crop. The ends of the crop fall on pixel centres."""
    size, count = taps.weights.shape
    step = 0
    for i in range(size - 1):
        step = max(step, taps.first[i + 1] - taps.first[i])
    total = min(count + step, length)
    first, weights = np.empty(size, np.int64), np.zeros((size, total), np.float32)
    for i in range(size):
        position = start * (size - 1) + i * _CROP_SIDE
        low = min(int(position), size - 2)
        share = np.float32(position - low)
        first[i] = min(taps.first[low], length - total)
        for row in (low, low + 1):
            shift = taps.first[row] - first[i]
            part = share if row > low else _ONE - share
            for k in range(count):
                weights[i, shift + k] += part * taps.weights[row, k]
    return Taps(first, weights)


@_compiled
def _to_image(planes: np.ndarray) -> np.ndarray:
    """u8 [h w 3], rounded, of planes."""
    _, width, height = planes.shape
    image = np.empty((height, width, 3), np.uint8)
    for x in range(width):
        for y in range(height):
            for channel in range(3):
                image[y, x, channel] = np.int32(planes[channel, x, y] + _HALF)
    return image


@_compiled
def _clip(value: np.float32) -> np.float32:
    return min(max(value, _BLACK), _WHITE)


@_compiled
def _adjust_brightness_and_contrast(planes: np.ndarray, brightness: np.float32, contrast: np.float32) -> None:
    """Changes planes."""
    flat = planes.reshape(3, -1)
    for channel in range(3):
        plane, total = flat[channel], _BLACK
        for i in range(plane.size):
            plane[i] = _clip(plane[i] + brightness)
            total += plane[i]
        shift = total / np.float32(plane.size) * (_ONE - contrast)
        for i in range(plane.size):
            plane[i] = _clip(plane[i] * contrast + shift)


@_compiled
def _adjust_saturation_and_hue(planes: np.ndarray, saturation: np.float32, turn: np.float32) -> None:
    """Changes planes: the HSV saturation multiplied (and clipped), then the hue turned.

    Without branches: the channels are sorted, and the hue, in sixths of a turn, is the distance of the middle one from an offset
    that the order determines. (Sorting as in Hocevar, "A fast RGB to HSV floating point conversion", 2013.)
    """
    flat = planes.reshape(3, -1)
    reds, greens, blues = flat[0], flat[1], flat[2]
    for i in range(reds.size):
        red, green, blue = reds[i], greens[i], blues[i]
        high, low = max(green, blue), min(green, blue)
        offset = -_SIX if green < blue else _BLACK
        offset = -_TWO - offset if red < high else offset
        value, middle = max(red, high), min(red, high)
        chroma = value - min(middle, low)
        # A grey pixel also gets a hue, without effect, because its chroma is 0.
        hue = abs(offset + (middle - low) / max(chroma, _TINY)) + turn
        hue -= _SIX * np.floor(hue * _SIXTH)
        chroma = min(chroma * saturation, value)  # chroma = value * saturation, and the new saturation is at most 1
        base = value - chroma
        reds[i] = base + chroma * min(max(abs(hue - _THREE) - _ONE, _BLACK), _ONE)
        greens[i] = base + chroma * min(max(_TWO - abs(hue - _TWO), _BLACK), _ONE)
        blues[i] = base + chroma * min(max(_TWO - abs(hue - _FOUR), _BLACK), _ONE)
