"""Descriptions from the metadata of a dataset, built-in layouts, and what the user's file has to say."""

import numpy as np
import pytest

from eosjax.data.episode import DatasetError
from eosjax.data.lerobot import info as info_file
from eosjax.data.sources import describe
from eosjax.data.specs import DatasetSpec, SpecError
from tests.data.lerobot.builders import FRONT, WRIST, write_json

PREFIX = "observation.images."


@pytest.fixture
def dataset(tmp_path):
    """A function (cameras, sizes by feature, …) -> a function that describes a dataset of such metadata, perhaps with a user's YAML."""

    def make(cameras, robot_type="", names=None, fps=10, **sizes):
        features = {key.replace("__", "."): {"dtype": "float32", "shape": [size], "names": names} for key, size in sizes.items()}
        features |= {camera: {"dtype": "video", "shape": [3, 48, 64], "names": None} for camera in cameras}
        totals = {"total_episodes": 0, "total_frames": 0}
        content = {"codebase_version": "v3.0", "fps": fps, "robot_type": robot_type, "features": features} | totals
        write_json(tmp_path / "made" / info_file.INFO, content)

        def described(text=None):
            if text is not None:
                (tmp_path / "specs.yaml").write_text(text)
            return describe(tmp_path, "made", None if text is None else tmp_path / "specs.yaml")

        return described

    return make


SIX = {"observation__state": 6, "action": 6}


@pytest.mark.parametrize("robot_type", ["so100", "so101", "so100_follower", "so101_follower"])
def test_an_so_arm_needs_no_description(dataset, robot_type):
    spec = dataset((WRIST, FRONT), robot_type, fps=30, **SIX)()
    assert spec == DatasetSpec(
        image_keys=(FRONT, WRIST),
        state_keys=("observation.state",),
        instruction_key="task",
        gripper="percent_open",
        normalisation="bounds",
        chunk=25,
        action_size=6,
        proprio_size=6,
        control_hz=30.0,
    )


@pytest.mark.parametrize(
    ("cameras", "sizes", "expected"),
    [
        ((f"{PREFIX}image", f"{PREFIX}image2"), {"observation__state": 8, "action": 7}, (0, 1)),
        ((f"{PREFIX}wrist_image", f"{PREFIX}image"), {"observation__state": 8, "action": 7}, (1, 0)),
        (("image", "wrist_image"), {"state": 8, "actions": 7}, (0, 1)),
    ],
)
def test_the_copies_of_libero(dataset, cameras, sizes, expected):
    spec = dataset(cameras, "panda", **sizes)()
    assert spec.image_keys == tuple(cameras[number] for number in expected)
    assert (spec.gripper, spec.normalisation, spec.chunk, spec.action_size, spec.proprio_size) == ("minus_open_plus_closed", "q99", 8, 7, 8)
    assert spec.action_mask == (True,) * 6 + (False,)
    assert spec.control_hz == 10


def test_aloha_has_absolute_joints_and_two_grippers(dataset):
    names = ("cam_right_wrist", "cam_low", "cam_left_wrist", "cam_high")
    spec = dataset([PREFIX + name for name in names], "aloha", fps=50, observation__state=14, action=14)()
    assert spec.image_keys == tuple(PREFIX + name for name in ("cam_high", "cam_left_wrist", "cam_right_wrist"))
    assert (spec.gripper, spec.normalisation, spec.action_mask, spec.control_hz) == ("as_stored", "bounds", (True,) * 14, 50)
    assert dataset([f"{PREFIX}top"], "aloha", observation__state=14, action=14)().image_keys == (f"{PREFIX}top",)


def test_droid_closes_its_gripper_at_one(dataset):
    cameras = [f"{PREFIX}{name}" for name in ("wrist_left", "exterior_1_left", "exterior_2_left")]
    spec = dataset(cameras, "Franka", fps=15, observation__state=8, action=8)()
    assert spec.image_keys == (cameras[1], cameras[0])
    closing = np.array([[0.0] * 7 + [grip] for grip in (0.0, 0.25, 1.0)])
    assert spec.standard_actions(closing, closing)[:, -1].tolist() == [1.0, 0.75, 0.0]
    assert spec.gripper == "zero_open_one_closed"


def test_a_gripper_that_is_not_the_last_number_is_not_converted(dataset):
    described = dataset((FRONT,), "lekiwi", ["elbow", "gripper.pos", "wheel"], observation__state=3, action=3)
    with pytest.raises(SpecError, match=r"gripper: expected .* last number of action; there it is number 1 of elbow, gripper.pos, wheel"):
        described("made:\n  gripper: percent_open\n")
    assert described("made:\n  gripper: as_stored\n").gripper == "as_stored"


def test_pusht_has_no_gripper(dataset):
    with pytest.raises(SpecError, match=r"--dataset_name made: an action of 2 numbers without a gripper, as in PushT"):
        dataset(["observation.image"], "unknown", observation__state=2, action=2)()


def test_what_the_files_do_not_say_is_asked_for_with_the_choices(dataset):
    described = dataset([f"{PREFIX}left", f"{PREFIX}right"], "my_arm", ["x", "y", "grip"], observation__state=3, action=3)
    with pytest.raises(SpecError) as refused:
        described()
    text = str(refused.value)
    assert text.startswith("--dataset_name made: the files of this LeRobot dataset (robot_type my_arm) do not say all")
    assert f"there are {PREFIX}left, {PREFIX}right" in text
    assert "the last of the 3 numbers of an action (x, y, grip)" in text
    spec = described(f"made:\n  image_keys: [{PREFIX}right]\n  gripper: as_stored\n  motion: target_minus_state\n  chunk: 4\n")
    assert (spec.image_keys, spec.motion, spec.chunk) == ((f"{PREFIX}right",), "target_minus_state", 4)
    assert (spec.action_size, spec.proprio_size, spec.control_hz) == (3, 3, 10)


def test_a_description_overrides_what_is_built_in_field_by_field(dataset):
    spec = dataset((FRONT, WRIST), "so101_follower", **SIX)(
        "made:\n  gripper: as_stored\n  action_mask: [true, true, true, true, true, true]\n"
    )
    assert (spec.gripper, spec.action_mask, spec.normalisation) == ("as_stored", (True,) * 6, "bounds")
    assert spec.image_keys == (FRONT, WRIST)


def test_a_file_for_other_datasets_changes_nothing(dataset):
    described = dataset((FRONT, WRIST), "so101_follower", **SIX)
    assert described("another:\n  gripper: as_stored\n") == described()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("made:\n  action_size: 7\n", "made: action_size: expected 6, as .*info.json says, got 7"),
        ("made:\n  control_hz: 20\n", "made: control_hz: expected 10, as .*info.json says, got 20"),
        ("made:\n  griper: as_stored\n", "made: unknown field 'griper'; did you mean 'gripper'"),
    ],
)
def test_descriptions_that_contradict_the_dataset(dataset, text, message):
    with pytest.raises(SpecError, match=message):
        dataset((FRONT, WRIST), "so101_follower", **SIX)(text)


def test_a_feature_that_is_not_there(dataset):
    with pytest.raises(DatasetError, match=r"info.json: state_keys: expected a feature 'joints'; found: action, observation.images.front"):
        dataset((FRONT, WRIST), "so101_follower", **SIX)("made:\n  state_keys: [joints]\n")


def test_more_than_one_camera_outside_is_no_order(dataset):
    with pytest.raises(SpecError, match=r"image_keys: \[...\]  # the primary camera first"):
        dataset((FRONT, f"{PREFIX}side"), "so101_follower", **SIX)()
