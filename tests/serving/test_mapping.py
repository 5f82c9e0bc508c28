import numpy as np
import pytest

from eosjax.serving.mapping import ROBOTS, MappingError, ObservationKeys, find, open_keys
from eosjax.serving.observation import ObservationError


def image(*shape):
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)


def test_libero():
    sent = {
        "observation/image": image(4, 6, 3),
        "observation/wrist_image": image(5, 5, 3),
        "observation/state": np.arange(8.0),
        "prompt": "go",
    }
    read, prompt = ROBOTS["libero"].read(sent, 2, with_state=True)
    assert prompt == "go"
    assert read["images"][1] is sent["observation/wrist_image"]
    assert read["state"] is sent["observation/state"]
    read, _ = ROBOTS["libero"].read(sent, 1, with_state=False)
    assert (len(read["images"]), "state" in read) == (1, False)


def test_droid_joins_joints_and_gripper():
    sent = {f"observation/{name}": image(4, 4, 3) for name in ("exterior_image_1_left", "wrist_image_left")}
    sent |= {"observation/joint_position": np.arange(7.0), "observation/gripper_position": np.array(0.5), "prompt": "go"}
    read, _ = ROBOTS["droid"].read(sent, 2, with_state=True)
    np.testing.assert_array_equal(read["state"], [*range(7), 0.5])


def test_aloha_has_nested_images_with_the_channels_in_front():
    cameras = {name: image(3, 4, 6) for name in ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")}
    read, _ = ROBOTS["aloha"].read({"images": cameras, "state": np.zeros(14), "prompt": "go"}, 3, with_state=True)
    np.testing.assert_array_equal(read["images"][0], np.transpose(cameras["cam_high"], (1, 2, 0)))
    assert [each.shape for each in read["images"]] == [(4, 6, 3)] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/image": None}, "observation/image: missing; the observation has 'prompt'"),
        ({"observation/joint_position": "abc"}, "observation/joint_position: expected a row of numbers"),
        ({"observation/joint_position": [[1.0], [2.0, 3.0]]}, "observation/joint_position: expected numbers, got a ragged list"),
        ({"observation/joint_position": np.zeros((2, 2))}, "observation/joint_position: expected a row of numbers"),
        ({"prompt": None}, "prompt: missing"),
    ],
)
def test_entries_that_are_missing_or_wrong(change, message):
    keys = ObservationKeys(images=("observation/image",), state=("observation/joint_position", "g"))
    sent = {"prompt": "go", "observation/image": image(4, 4, 3), "observation/joint_position": np.zeros(2), "g": 1.0} | change
    with pytest.raises(ObservationError, match=message):
        keys.read({key: value for key, value in sent.items() if value is not None}, 1, with_state=True)


def test_a_key_with_a_slash_is_a_name_before_it_is_a_path():
    assert find({"a/b": 1, "a": {"b": 2}}, "a/b") == 1
    assert find({"a": {"b": 2}}, "a/b") == 2
    with pytest.raises(ObservationError, match="a/b: missing"):
        find({"a": 3}, "a/b")


def test_a_file(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text("images: [top, side]\nstate: joints\nprompt: task\nchannels: first\n")
    assert open_keys(str(path)) == ObservationKeys(("top", "side"), ("joints",), "task", "first")
    path.write_text("images: top\n")
    assert open_keys(str(path)) == ObservationKeys(("top",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image: [top]", "image: unknown field .did you mean images"),
        ("state: joints", "images: expected at least one key, got none"),
        ("images: [top, top]", "images: expected keys, none twice"),
        ("images: [3]", "images: expected keys"),
        ("images: [top]\nchannels: middle", "channels: expected last or first, got 'middle'"),
        ("images: [top]\nprompt: [a]", "prompt: expected a key"),
        ("- top", "expected an object"),
    ],
)
def test_a_file_that_makes_no_sense(tmp_path, text, message):
    path = tmp_path / "robot.yaml"
    path.write_text(text)
    with pytest.raises(MappingError, match=f"robot.yaml: .*{message}"):
        open_keys(str(path))


def test_an_unknown_robot():
    with pytest.raises(MappingError, match=r"liber: expected libero, droid, aloha or a YAML file"):
        open_keys("liber")


def test_the_policy_needs_a_key_for_each_camera_and_for_its_state():
    keys = ObservationKeys(images=("top",))
    keys.check(["a"], with_state=False)
    with pytest.raises(MappingError, match="images: expected a key for each of the policy's cameras, a, b; got .'top'."):
        keys.check(["a", "b"], with_state=False)
    with pytest.raises(MappingError, match="state: expected a key"):
        keys.check(["a"], with_state=True)
