import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.data.specs import DatasetSpec, SpecError, load_fields, spec_for, stored_gripper

OWN = """
my_robot:
  image_keys: [images/top, images/side]
  state_keys: [joints/arm, joints/gripper]
  instruction_key: natural_language_instruction
  gripper: as_stored
  action_size: 9
  proprio_size: 10
  control_hz: 15
  chunk: 12
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "specs.yaml"
        path.write_text(text)
        return path

    return write


def test_every_libero_suite_is_described():
    for suite in ("spatial", "object", "goal", "10"):
        assert spec_for(f"libero_{suite}") == spec_for(f"libero_{suite}_no_noops")
    spec = spec_for("eosjax_demo")
    assert (spec.chunk, spec.action_size, spec.proprio_size, spec.control_hz) == (4, 7, 8, 20.0)
    assert (spec.action_mask, spec.normalisation) == ((True,) * 6 + (False,), "q99")


@pytest.mark.parametrize("name", ["bridge_orig", "bridge_dataset"])
def test_bridge(name):
    spec = spec_for(name)
    assert (spec.chunk, spec.action_size, spec.proprio_size, spec.control_hz) == (5, 7, 7, 5.0)
    assert (spec.action_mask, spec.normalisation, spec.image_keys) == ((True,) * 6 + (False,), "q99", ("image_0",))


def test_aloha():
    spec = spec_for("aloha1_put_X_into_pot_300_demos")
    assert (spec.chunk, spec.action_size, spec.proprio_size, spec.control_hz) == (25, 14, 14, 25.0)
    assert (spec.action_mask, spec.normalisation) == ((True,) * 14, "bounds")
    actions = np.random.default_rng(0).normal(size=(5, 14)).astype(np.float32)
    np.testing.assert_array_equal(spec.standard_actions(actions, actions), actions)


def test_gripper_of_libero():
    actions = np.array([[0.5] * 6 + [g] for g in (-1.0, -0.3, 0.0, 0.25, 1.0)], np.float32)
    standard = DatasetSpec().standard_actions(actions, np.zeros((5, 8)))
    np.testing.assert_allclose(standard[:, 6], [1.0, 1.0, 1.0, 0.75, 0.0])
    np.testing.assert_array_equal(standard[:, :6], actions[:, :6])
    assert actions[0, 6] == -1.0  # the argument is left alone


@pytest.mark.parametrize(
    ("gripper", "opened", "closed"),
    [
        ("minus_open_plus_closed", -1.0, 1.0),
        ("zero_open_one_closed", 0.0, 1.0),
        ("binarised", 1.0, 0.0),
        ("percent_open", 100.0, 0.0),
        ("as_stored", 3.0, 4.0),
    ],
)
def test_a_robot_gets_the_gripper_as_its_dataset_stores_it(gripper, opened, closed):
    spec = DatasetSpec(action_size=3, gripper=gripper)
    stored = np.array([[0.5, -0.5, opened], [0.25, 0.75, closed]], np.float32)
    standard = spec.standard_actions(stored, np.zeros((2, 0)))
    if gripper != "as_stored":
        assert standard[:, -1].tolist() == [1.0, 0.0]
    np.testing.assert_array_equal(stored_gripper(standard, gripper), stored)


@pytest.mark.parametrize("gripper", ["minus_open_plus_closed", "binarised"])
def test_a_gripper_in_another_unit_than_described_is_refused(gripper):
    actions = np.zeros((4, 7), np.float32)
    actions[:, 6] = [0, 850, 400, 0]
    with pytest.raises(SpecError, match=f"gripper: {gripper} expects stored values from -1 to 1, got 0 to 850"):
        DatasetSpec(gripper=gripper).standard_actions(actions, np.zeros((4, 8)))


@pytest.mark.parametrize("length", [0, 1])
def test_an_episode_of_which_nothing_is_left(length):
    for name in ("libero_goal", "bridge_orig"):
        spec = spec_for(name)
        standard = spec.standard_actions(np.ones((length, 7)), np.ones((length, spec.proprio_size)))
        assert standard.shape == (length if name == "libero_goal" else 0, 7)


def test_bridge_takes_its_motion_from_the_states_and_drops_the_first_and_the_last_step():
    states = np.cumsum(np.random.default_rng(0).normal(size=(6, 7)), axis=0).astype(np.float32)
    actions = np.full((6, 7), 9.0, np.float32)
    actions[:, 6] = [0, 1, 1, 0.5, 0, 0]
    spec = spec_for("bridge_orig")
    standard = spec.standard_actions(actions, states)
    kept = range(*spec.kept_steps(6).indices(6))
    assert list(kept) == [1, 2, 3, 4]
    for row, step in enumerate(kept):
        np.testing.assert_array_equal(standard[row, :6], states[step + 1, :6] - states[step, :6])
    assert standard[:, 6].tolist() == [1, 1, 0, 0]


@given(st.lists(st.sampled_from([0.0, 0.04, 0.05, 0.5, 0.95, 0.96, 1.0]), min_size=1, max_size=12))
def test_binarised_gripper_is_the_state_that_is_reached_next(gripper):
    gripper = np.array(gripper, np.float32)
    expected, following = [], gripper[-1]
    for value in gripper[::-1]:
        if value > 0.95 or value < 0.05:
            following = np.float32(value > 0.95)
        expected.insert(0, following)
    actions = np.zeros((len(gripper), 7), np.float32)
    actions[:, 6] = gripper
    spec = DatasetSpec(gripper="binarised")
    assert spec.standard_actions(actions, np.zeros((len(gripper), 8)))[:, 6].tolist() == expected


@pytest.mark.parametrize("name", ["libero_goal", "bridge_orig", "aloha1_fold_shirt_30_demos"])
def test_json_round_trip(name):
    spec = spec_for(name)
    assert DatasetSpec.from_json(spec.to_json()) == spec


def test_own_dataset(write):
    spec = spec_for("my_robot", write(OWN))
    assert spec.image_keys == ("images/top", "images/side")
    assert spec.state_keys == ("joints/arm", "joints/gripper")
    assert (spec.action_key, spec.gripper, spec.chunk, spec.control_hz) == ("action", "as_stored", 12, 15.0)
    assert spec.action_mask == (True,) * 8 + (False,)
    assert spec_for("libero_goal", write(OWN)) == DatasetSpec()


def test_own_description_wins(write):
    path = write(OWN.replace("my_robot", "libero_goal"))
    assert spec_for("libero_goal", path).action_size == 9
    assert spec_for("libero_goal").action_size == 7


def test_unknown_dataset_lists_the_nearest_first(write):
    with pytest.raises(SpecError, match=r"no description of dataset 'libero_gaol'; known: libero_goal, .*eosjax_demo"):
        spec_for("libero_gaol")
    with pytest.raises(SpecError, match=r"no description of dataset 'my_robbot'; known: my_robot, "):
        spec_for("my_robbot", write(OWN))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("state_keys:", "state_key:", "unknown field 'state_key'; did you mean 'state_keys'"),
        ("[images/top, images/side]", "images/top", r"image_keys: expected a list, got 'images/top' \(str\)"),
        ("[images/top, images/side]", "[images/top, 3]", r"image_keys, entry 1: expected text, got 3 \(int\)"),
        ("[images/top, images/side]", "[]", "image_keys: expected at least one key"),
        ("[images/top, images/side]", "[a, a]", "image_keys: .* none twice"),
        (
            "as_stored",
            "open",
            "gripper: expected 'minus_open_plus_closed' or 'zero_open_one_closed' or .* or 'as_stored', got 'open'",
        ),
        ("action_size: 9", "action_size: nine", r"action_size: expected a whole number, got 'nine' \(str\)"),
        ("action_size: 9", "action_size: true", r"action_size: expected a whole number, got True \(bool\)"),
        ("action_size: 9", "action_size: 0", "action_size: expected a number above 0, up to 10,000, got 0"),
        ("  action_size: 9\n", "", "missing action_size"),
        ("chunk: 12", "action_mask: [true, false]", r"action_mask: expected 9 entries \(action_size\), got 2"),
        ("chunk: 12", "skip_first: -1", "skip_first: expected 0 or more"),
        ("control_hz: 15", "control_hz: .inf", "control_hz: expected a number above 0, up to 10,000, got inf"),
        ("control_hz: 15", "control_hz: " + "9" * 400, "control_hz: expected a number above 0"),
        ("chunk: 12", "chunk: 999999999999", "chunk: expected a number above 0, up to 10,000, got 999999999999"),
        ("action_size: 9", "action_size: 12\n  motion: reached_states", "motion: reached_states needs a state of at least 11"),
    ],
)
def test_faulty_descriptions_name_the_file_the_dataset_and_the_field(write, before, after, message):
    assert before in OWN
    path = write(OWN.replace(before, after))
    with pytest.raises(SpecError, match=f"{path}: my_robot: {message}"):
        spec_for("my_robot", path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected {dataset: .* got nothing"),
        ("- 1", "expected {dataset: "),
        ("a: [", "not YAML"),
        ("a: b", r"a: expected fields and values, got 'b' \(str\)"),
    ],
)
def test_files_that_are_no_descriptions(write, text, message):
    path = write(text)
    with pytest.raises(SpecError, match=f"--dataset_specs {path}: {message}"):
        load_fields(path)


def test_a_field_or_a_dataset_twice_is_refused(write):
    for text in (OWN + OWN, OWN + "  action_size: 7\n"):
        with pytest.raises(SpecError, match=r"--dataset_specs .*specs.yaml: repeated key: '(my_robot|action_size)' twice"):
            load_fields(write(text))


def test_missing_file(tmp_path):
    with pytest.raises(SpecError, match="specs.yaml: unreadable file: No such file"):
        spec_for("libero_goal", tmp_path / "specs.yaml")


def test_mask_of_the_wrong_size():
    with pytest.raises(SpecError, match=r"action_mask: expected 14 entries \(action_size\), got 7"):
        DatasetSpec(action_size=14, action_mask=(True,) * 7)
    with pytest.raises(SpecError, match=r"action_mask: expected 14 entries \(action_size\), got 7"):
        dataclasses.replace(DatasetSpec(), action_size=14)
