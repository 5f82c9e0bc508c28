"""Images on the host: decode, resize, the original's augmentation, and the centre crop of evaluation."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image

from eosjax.data.images import kernels
from eosjax.data.images.kernels import CROP_AREA, Taps
from eosjax.types import UserError

_MARGIN = 1.0 - float(np.sqrt(CROP_AREA))  # share of a side that a crop keeps
_BRIGHTNESS = 0.2 * 255.0
_CONTRAST = (0.8, 1.2)
_SATURATION = (0.8, 1.2)
_HUE = 0.05  # in turns of the colour circle
_LANCZOS = 3  # lobes


class ImageError(UserError):
    """Bytes that do not decode to an image."""


def decode(data: bytes) -> np.ndarray:
    """The image, u8 [h w 3], in the bytes of an RGB JPEG or PNG; `ImageError` when they do not decode or hold another kind of image."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{len(data)} bytes do not decode as JPEG or PNG: {error}") from error
    if mode != "RGB":
        raise ImageError(f"expected an RGB image, got one of mode {mode}")
    return pixels


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """u8 [size size 3] by Lanczos resampling with antialiasing. An image that already has that size is returned as it is."""
    if image.shape[:2] == (size, size):
        return image
    return kernels.resize(*_source(image, size))


def augment(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The original's training augmentation of the resized image, in the same order. The same generator state gives the same image.

    Lanczos resampling of u8 [h w 3] to [size size 3], random resized crop (area 0.9, ratio 1), brightness ±0.2, contrast 0.8-1.2,
    saturation 0.8-1.2, hue ±0.05; values stay within the range after each. See `kernels.crop` for the one difference.
    """
    top, left = rng.uniform(0.0, _MARGIN, 2)
    colours = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS), rng.uniform(*_CONTRAST), rng.uniform(*_SATURATION), 6.0 * rng.uniform(-_HUE, _HUE)
    return kernels.augment(*_source(image, size), float(top), float(left), *map(np.float32, colours))


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central 90 % of the area of the resized image, u8 [size size 3]: for policies trained with random crops."""
    return kernels.crop(*_source(image, size), _MARGIN / 2.0, _MARGIN / 2.0)


def _source(image: np.ndarray, size: int) -> tuple[np.ndarray, Taps, Taps]:
    """The array to resample, in one memory layout, so that the kernels are compiled only once."""
    return np.require(image, requirements=["C", "W"]), _lanczos(image.shape[0], size), _lanczos(image.shape[1], size)


@functools.cache
def _lanczos(length: int, size: int) -> Taps:
    """From `length` pixels to `size`; when shrinking, the kernel is stretched over the pixels that fall together."""
    scale = length / size
    stretch = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale - 0.5
    distance = (np.arange(length) - centres[:, None]) / stretch
    inside = np.abs(distance) < _LANCZOS
    weights = np.where(inside, np.sinc(distance) * np.sinc(distance / _LANCZOS), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    count = inside.sum(axis=1).max()
    first = np.minimum(inside.argmax(axis=1), length - count)
    return Taps(first, np.take_along_axis(weights, first[:, None] + np.arange(count), axis=1).astype(np.float32))
