"""What a robot hands in is read as it is, or refused by name."""

import re

import chex
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eosjax.serving.observation import ObservationError, read_images, read_instructions, read_state, split_rows

CAMERAS = ("image", "wrist_image")
IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def refuses(message):
    return pytest.raises(ObservationError, match=re.escape(message))


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (IMAGE.astype(np.uint16) * 257, "uint16 [2, 4, 3], values 0 to 5911"),
        (IMAGE / 255, "float64 [2, 4, 3], values 0 to 0.0901961"),
        (IMAGE.astype(bool), "bool [2, 4, 3]"),
        (IMAGE[..., :1], "uint8 [2, 4, 1], values 0 to 21"),
        (np.zeros((2, 4, 4), np.uint8), "uint8 [2, 4, 4], values 0 to 0"),
        (IMAGE.transpose(2, 0, 1)[:, :, :2], "uint8 [3, 2, 2], values 0 to 17"),
        (IMAGE[0], "uint8 [4, 3], values 0 to 11"),
        (IMAGE[None], "uint8 [1, 2, 4, 3], values 0 to 23"),
        (np.zeros((0, 0, 3), np.uint8), "uint8 [0, 0, 3], which is empty"),
        (np.zeros((0, 4, 3), np.uint8), "uint8 [0, 4, 3], which is empty"),
        (IMAGE.astype(object), "object [2, 4, 3]"),
        (None, "object []"),
        ("image.png", "<U9 []"),
    ],
)
def test_an_image_that_is_none_is_refused_with_the_name_of_its_camera(image, got):
    with refuses(f"images: camera 1 (wrist_image): expected uint8 [h w 3] with pixels, got {got}"):
        read_images({"images": [IMAGE, image]}, CAMERAS)


def test_images_are_those_of_the_cameras():
    first, second = read_images({"images": (IMAGE, IMAGE[:, ::2])}, CAMERAS)
    np.testing.assert_array_equal(first, IMAGE)
    np.testing.assert_array_equal(second, IMAGE[:, ::2])
    assert len(read_images({"images": np.stack([IMAGE, IMAGE])}, CAMERAS)) == 2
    for images in ([], [IMAGE], [IMAGE] * 3):
        with refuses(f"images: expected those of 2 camera(s), image, wrist_image; got {len(images)}"):
            read_images({"images": images}, CAMERAS)
    with refuses("images: camera 0 (image): list is no array: "):
        read_images({"images": [[[0, 1], [2]], IMAGE]}, CAMERAS)
    for images, got in ({"image": IMAGE}, "dict"), ("image.png", "str"), (None, "NoneType"), (3, "int"):
        with refuses(f"images: expected a list with the image of each camera, got {got}"):
            read_images({"images": images}, CAMERAS)
    with refuses("observation: expected a mapping with the key `images`, got list"):
        read_images([IMAGE], CAMERAS)


@pytest.mark.parametrize(
    ("state", "got"),
    [
        ([1.0, np.nan, np.inf], "finite numbers, got nan at index 1, inf at index 2"),
        ([1.0, 1e39, 0.0], "finite numbers, got 1e+39 at index 1"),  # beyond float32
        ([1.0, None, 0.0], "numbers, got object [3]"),
        (["0", "1", "2"], "numbers, got <U1 [3]"),
        ([True, False, True], "numbers, got bool [3]"),
        ([1j, 0, 0], "numbers, got complex128 [3]"),
        ([1.0, 2.0], "numbers, got float64 [2], values 1 to 2"),
        ([[1.0, 2.0, 3.0]], "numbers, got float64 [1, 3], values 1 to 3"),
        ([], "numbers, got float64 [0], which is empty"),
        (None, "numbers, got none"),
    ],
)
def test_a_state_that_is_no_row_of_finite_numbers_is_refused(state, got):
    with refuses(f"state: expected 3 {got}"):
        read_state({"state": state}, 3)


@given(hnp.arrays(st.sampled_from([np.float32, np.float64, np.int32, np.uint8]), 4, elements={"min_value": 0, "max_value": 200}))
def test_a_state_of_numbers_is_what_it_was(state):
    found = read_state({"state": state}, 4)
    chex.assert_type(found, np.float32)
    np.testing.assert_array_equal(found, state.astype(np.float32))
    np.testing.assert_array_equal(read_state({"state": state.tolist()}, 4), found)


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("", "instruction: expected a text with a letter or digit, in Unicode; got ''"),
        ("go on " * 200, r"instruction: expected at most 1,000 characters, not 1,200; got 'go on "),
        (" \t\n", "instruction: expected a text with a letter or digit"),
        ("open \ud800", "instruction: expected a text with a letter or digit, in Unicode; got 'open \\ud800'"),
        ("?!", "instruction: expected a text with a letter or digit"),
        (b"open", "instruction: expected a text (str), got bytes b'open'"),
        (None, "instruction: expected a text (str), got NoneType None"),
        (3, "instruction: expected a text (str), got int 3"),
        ({"open"}, "instruction: expected a text (str), got set {'open'}"),  # in no order
        (["open", ""], "instruction 1: expected a text with a letter or digit"),
        (["open", None], "instruction 1: expected a text (str), got NoneType None"),
        ([], "instruction: expected at least one, got an empty list"),
    ],
)
def test_an_instruction_that_is_no_text_is_refused(instruction, message):
    with refuses(message):
        read_instructions(instruction)


def test_instructions_are_taken_as_they_are():
    assert read_instructions("Open it ") == ["Open it "]
    assert read_instructions(("open", "close $5")) == read_instructions(np.array(["open", "close $5"])) == ["open", "close $5"]


def test_rows_of_a_batch():
    images = [np.stack([IMAGE, IMAGE + 1]), [IMAGE[:1], IMAGE[1:]]]  # cameras may give a list, of images of several sizes
    rows = split_rows({"images": images, "state": [[1.0], [2.0]]}, 2)
    assert [row["state"] for row in rows] == [[1.0], [2.0]]
    np.testing.assert_array_equal(rows[1]["images"][0], IMAGE + 1)
    np.testing.assert_array_equal(rows[1]["images"][1], IMAGE[1:])
    assert split_rows({"images": images}, 2)[0]["state"] is None
    with refuses("images: camera 1: expected 2 rows, one for each instruction, got 1"):
        split_rows({"images": [IMAGE, IMAGE[:1]]}, 2)
    for state, got in ([[1.0]], 1), (3.0, "float without rows"):
        with refuses(f"state: expected 2 rows, one for each instruction, got {got}"):
            split_rows({"images": images, "state": state}, 2)
