import colorsys
import io

import numpy as np
import pytest
from PIL import Image

from eosjax.data.images import kernels, transforms


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def test_decode_png_exactly_and_jpeg_nearly(noise):
    np.testing.assert_array_equal(transforms.decode(encoded(noise, "PNG")), noise)
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    assert np.abs(transforms.decode(encoded(flat, "JPEG")).astype(int) - flat).max() <= 2


@pytest.mark.parametrize("cut", [0, 10, 300])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_bytes_that_do_not_decode(noise, kind, cut):
    with pytest.raises(transforms.ImageError, match=f"{cut} bytes do not decode"):
        transforms.decode(encoded(noise, kind)[:cut])


def test_other_image_formats_are_refused(noise):
    with pytest.raises(transforms.ImageError):
        transforms.decode(encoded(noise, "BMP"))


def test_images_that_are_not_rgb_are_refused(noise):
    with pytest.raises(transforms.ImageError, match="expected an RGB image, got one of mode L"):
        transforms.decode(encoded(noise[..., 0], "PNG"))
    with pytest.raises(transforms.ImageError, match="got one of mode I;16"):
        transforms.decode(encoded(noise[..., 0].astype(np.uint16) * 200, "PNG"))


def test_resize_leaves_the_right_size_alone_and_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert transforms.resize(stripes, 64) is stripes
    small = transforms.resize(stripes, 16)
    assert small.shape == (16, 16, 3)
    assert small.dtype == np.uint8
    # Without antialiasing every fourth column would be black or white.
    assert np.abs(small.astype(float) - 127.5).max() < 20


@pytest.mark.parametrize("shape", [(256, 256), (40, 30), (9, 300), (3, 2)])
@pytest.mark.parametrize("size", [224, 31])
def test_resize_is_lanczos_resampling(shape, size):
    """As Pillow does it, which rounds and clips after each axis too: the values stay far from the ends of the range."""
    pixels = np.random.default_rng(0).integers(100, 156, (*shape, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))
    assert np.abs(transforms.resize(pixels, size).astype(int) - expected).max() <= 2


def crop_and_resize(image: np.ndarray, top: float, left: float) -> np.ndarray:
    """Bilinear samples at the definition of `tf.image.crop_and_resize`: the box's corners on pixel centres."""
    side = np.sqrt(transforms.CROP_AREA)
    positions = []
    for start, pixels in ((top, image.shape[0]), (left, image.shape[1])):
        positions.append(start * (pixels - 1) + np.arange(pixels) * side)
    result = image.astype(np.float64)
    for axis, position in enumerate(positions):
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        share = np.expand_dims(position - low, tuple(i for i in range(3) if i != axis))
        result = np.take(result, low, axis) * (1 - share) + np.take(result, high, axis) * share
    return result


def unrounded_crop(image: np.ndarray, size: int, top: float, left: float) -> np.ndarray:
    """f32 [size size 3]: what `pixels.crop` rounds."""
    axes = zip(image.shape[:2], (top, left), strict=True)
    taps = [kernels._cropped(transforms._lanczos(length, size), length, start) for length, start in axes]
    return kernels._resample(image, *taps).transpose(2, 1, 0)


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_crop_is_that_of_tensorflow(noise, place):
    margin = place * (1.0 - np.sqrt(transforms.CROP_AREA))
    cropped = unrounded_crop(noise, 24, margin, 0.01)
    np.testing.assert_allclose(cropped, crop_and_resize(noise, margin, 0.01), atol=1e-3)


@pytest.mark.parametrize(("shape", "size"), [((40, 60), 32), ((20, 20), 50)])
def test_crop_of_another_size_is_that_of_the_resized_image(shape, size):
    """Up to the rounding in between; the values stay far from the ends of the range."""
    pixels = np.random.default_rng(1).integers(100, 156, (*shape, 3), dtype=np.uint8)
    expected = crop_and_resize(transforms.resize(pixels, size), 0.02, 0.04)
    cropped = unrounded_crop(pixels, size, 0.02, 0.04)
    assert cropped.shape == (size, size, 3)
    assert np.abs(cropped - expected).max() <= 0.5 + 1e-3


def test_a_resampled_edge_stays_in_the_range():
    edge = np.zeros((32, 32, 3), np.uint8)
    edge[16:] = 255
    for resampled in (transforms.resize(edge, 20), transforms.centre_crop(edge, 20)):
        assert (resampled[:10] < 30).all()  # below 0 would wrap round
        assert (resampled[10:] > 225).all()


def test_centre_crop_is_in_the_centre(noise):
    margin = (1.0 - np.sqrt(0.9)) / 2
    assert np.abs(transforms.centre_crop(noise, 24) - crop_and_resize(noise, margin, margin)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("saturation", "turn"), [(1.0, 0.0), (0.8, 0.05), (1.2, -0.05), (1.15, 0.02)])
def test_saturation_and_hue_are_those_of_hsv(noise, saturation, turn):
    pixels = noise.astype(np.float32) / 255
    pixels[0], pixels[1], pixels[2] = 0.0, 1.0, 0.4
    pixels[3, :, 0] = pixels[3, :, 1]  # ties between channels
    pixels[4, :, 2] = pixels[4, :, 0]
    expected = np.zeros(pixels.shape)
    for place in np.ndindex(*pixels.shape[:2]):
        hue, colour, value = colorsys.rgb_to_hsv(*map(float, pixels[place]))
        expected[place] = colorsys.hsv_to_rgb((hue + turn) % 1.0, min(1.0, colour * saturation), value)
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0) * np.float32(255))
    kernels._adjust_saturation_and_hue(planes, np.float32(saturation), np.float32(6 * turn))
    np.testing.assert_allclose(np.moveaxis(planes, 0, -1) / 255, expected, atol=2e-6)


def test_augmentation_is_the_generators(noise):
    before = noise.copy()
    first, again, other = (transforms.augment(noise, 24, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.shape == noise.shape
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(noise, before)
    assert (first != other).any()


def test_any_view_of_an_image_will_do(noise):
    """A camera mounted upside down, and the read-only array of a decoder."""
    flipped, locked = noise[::-1, ::-1], noise.copy()
    locked.flags.writeable = False
    for prepare in (
        transforms.resize,
        transforms.centre_crop,
        lambda image, size: transforms.augment(image, size, np.random.default_rng(1)),
    ):
        np.testing.assert_array_equal(prepare(flipped, 17), prepare(flipped.copy(), 17))
        np.testing.assert_array_equal(prepare(locked, 17), prepare(noise, 17))


def test_kernels_are_compiled_where_nothing_may_be_written(monkeypatch):
    def without_a_folder(*args):
        raise RuntimeError("no locator available")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", without_a_folder)
    clip = kernels._compiled(kernels._clip.py_func)
    assert [clip(np.float32(value)) for value in (-1, 7, 256)] == [0, 7, 255]


@pytest.mark.parametrize("seed", [0, 4, 9])  # much darker, much brighter, nearly as bright
def test_augmentation_takes_its_operations_in_the_originals_order(noise, seed):
    rng = np.random.default_rng(seed)
    top, left = rng.uniform(0.0, 1.0 - np.sqrt(0.9), 2)
    brightness, contrast, saturation, turn = (rng.uniform(*span) for span in ((-0.2, 0.2), (0.8, 1.2), (0.8, 1.2), (-0.05, 0.05)))
    pixels = np.clip(crop_and_resize(noise, top, left) / 255 + brightness, 0, 1)
    mean = pixels.mean(axis=(0, 1))
    pixels = np.clip((pixels - mean) * contrast + mean, 0, 1)
    for place in np.ndindex(*pixels.shape[:2]):
        hue, colour, value = colorsys.rgb_to_hsv(*map(float, pixels[place]))
        pixels[place] = colorsys.hsv_to_rgb((hue + turn) % 1.0, min(1.0, colour * saturation), value)
    assert np.abs(transforms.augment(noise, 24, np.random.default_rng(seed)) - pixels * 255).max() <= 0.51


def test_augmentation_of_flat_grey_is_only_brightness():
    grey = np.full((16, 16, 3), 100, np.uint8)
    values = [transforms.augment(grey, 16, np.random.default_rng(seed)) for seed in range(60)]
    assert all((value == value[0, 0, 0]).all() for value in values)
    levels = np.array([value[0, 0, 0] for value in values])
    assert levels.min() >= 100 - 51
    assert levels.max() <= 100 + 51
    assert levels.min() < 65
    assert levels.max() > 135
