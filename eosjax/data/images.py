"""Images on the host: decode, resize, the original's augmentation, and the centre crop of evaluation."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from eosjax.types import UserError

CROP_AREA = 0.9  # share of the image that the random crop keeps in training and the centre crop in evaluation
_BRIGHTNESS = 0.2
_CONTRAST = (0.8, 1.2)
_SATURATION = (0.8, 1.2)
_HUE = 0.05  # in turns of the colour circle
# Share of the chroma in red, green and blue at hue h (in sixths of a turn): clip(sign * |h - centre| + offset, 0, 1).
_HUE_RAMPS = ((3.0, 1.0, -1.0), (2.0, -1.0, 2.0), (4.0, -1.0, 2.0))


class ImageError(UserError):
    """Bytes that do not decode to an image."""


def decode(data: bytes) -> np.ndarray:
    """The RGB image, u8 [h w 3], in JPEG or PNG bytes; `ImageError` when they do not decode."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{len(data)} bytes do not decode as JPEG or PNG: {error}") from error


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """u8 [size size 3] by Lanczos resampling with antialiasing; the image itself when it has that size already."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The original's training augmentation of u8 [h w 3], in its order; the same generator state gives the same image.

    Random resized crop (area 0.9, ratio 1), brightness ±0.2, contrast 0.8-1.2, saturation 0.8-1.2, hue ±0.05; values
    stay within [0, 1] after each.
    """
    top, left = rng.uniform(0.0, 1.0 - np.sqrt(CROP_AREA), 2)
    # Channels first: every operation below then runs over contiguous planes.
    pixels = np.divide(np.moveaxis(_crop(image, top, left), -1, 0), 255.0, dtype=np.float32, order="C")
    pixels += np.float32(rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    np.clip(pixels, 0.0, 1.0, out=pixels)
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    pixels -= mean
    pixels *= np.float32(rng.uniform(*_CONTRAST))
    pixels += mean
    np.clip(pixels, 0.0, 1.0, out=pixels)
    pixels = _adjust_saturation_and_hue(pixels, rng.uniform(*_SATURATION), rng.uniform(-_HUE, _HUE))
    pixels *= 255.0
    pixels += 0.5
    return np.ascontiguousarray(np.moveaxis(pixels.astype(np.uint8), 0, -1))


def centre_crop(image: np.ndarray) -> np.ndarray:
    """The central 90 % of the area of u8 [h w 3], resized to the full size: for policies trained with random crops."""
    margin = (1.0 - np.sqrt(CROP_AREA)) / 2.0
    return _crop(image, margin, margin)


def _crop(image: np.ndarray, top: float, left: float) -> np.ndarray:
    """The square of area `CROP_AREA` at a relative position, resized bilinearly to the full size.

    The corners of the crop fall on pixel centres (as in `tf.image.crop_and_resize`), Pillow's box on pixel edges:
    hence the half pixels.
    """
    height, width = image.shape[:2]
    side = np.sqrt(CROP_AREA)

    def edges(start: float, pixels: int) -> tuple[float, float]:
        low = start * (pixels - 1) + 0.5 - 0.5 * side
        return max(low, 0.0), min(low + side * pixels, float(pixels))

    (y0, y1), (x0, x1) = edges(top, height), edges(left, width)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    return np.asarray(resized)


def _adjust_saturation_and_hue(rgb: np.ndarray, saturation: float, turn: float) -> np.ndarray:
    """f32 [3 h w] in [0, 1] with the HSV saturation multiplied (and clipped), then the hue turned (|turn| < 1/6)."""
    red, green, blue = rgb
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    # Hue in sixths of a turn; a grey pixel gets some hue too, but has no chroma to show it.
    tiny = np.float32(1e-12)
    hue = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2.0 * chroma, red - green + 4.0 * chroma),
    )
    hue /= np.maximum(chroma, tiny)
    hue += np.float32(6.0 * turn)
    hue += np.float32(6.0) * (hue < 0.0)  # from [-1, 5] and a turn below one sixth: never above 6
    # chroma = value * saturation, and the new saturation is at most 1.
    chroma = np.minimum(chroma * np.float32(saturation), value)
    base = value - chroma
    result = np.empty_like(rgb)
    for channel, (centre, sign, offset) in enumerate(_HUE_RAMPS):
        weight = np.abs(hue - centre)
        weight *= sign
        weight += offset
        np.clip(weight, 0.0, 1.0, out=weight)
        weight *= chroma
        np.add(base, weight, out=result[channel])
    return result
