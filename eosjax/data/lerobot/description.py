"""Descriptions of LeRobot datasets: what their metadata say, completed by a built-in layout or by the user's file.

The metadata have names, sizes and the frame rate. They do not say which camera is the primary one, what the gripper's numbers mean,
and what is to be normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eosjax.data.lerobot.info import INFO, Info, read_info
from eosjax.data.lerobot.source import TASK, check_features
from eosjax.data.specs import DatasetSpec, SpecError, load_fields, spec_of
from eosjax.names import split_revision

# What LeRobot itself calls these features.
_STATE, _ACTION = "observation.state", "action"
_KEYS = ("image_keys", "state_keys", "action_key", "instruction_key")
_WRIST = ("wrist", "hand", "gripper", "image2")  # in the name of a camera that moves with the hand
_PER_FEATURE = "observation.images."


class Layout(NamedTuple):
    """A kind of dataset that is known."""

    name: str
    matches: Callable[[Info], bool]
    fields: Mapping[str, Any]  # of the description, beside what the metadata say; without `image_keys` where cameras have any names


def describe_lerobot(folder: Path, name: str, specs_file: Path | None) -> DatasetSpec:
    """The description of the dataset in a folder.

    Args:
        folder: of the dataset.
        name: under which the user's file may describe it; a revision in it may be left out there.
        specs_file: the user's file; its fields override those of a built-in layout.

    Raises:
        SpecError: what is not known and not described; sizes that differ from those of the dataset; a dataset without a gripper.
        DatasetError: metadata that cannot be read, or without a feature of the description.
    """
    info = read_info(folder)
    described = load_fields(specs_file) if specs_file is not None else {}
    own = described.get(name, described.get(split_revision(name)[0]))
    where = f"--dataset_specs {specs_file}: {name}" if own is not None else f"--dataset_name {name}"
    layout = next((each for each in LAYOUTS if each.matches(info)), None)
    fields: dict[str, Any] = {"state_keys": [_STATE], "action_key": _ACTION, "instruction_key": TASK, "image_keys": _in_order(info.cameras)}
    fields = {key: value for key, value in fields.items() if value} | dict(layout.fields if layout else {}) | (own or {})
    if "gripper" not in fields and _is_pusht(info):
        raise SpecError(
            f"--dataset_name {name}: an action of {info.features[_ACTION].size} numbers without a gripper, as in PushT: sub-steps of "
            "picking and placing have no meaning there, and eosjax takes the last dimension of an action for the gripper"
        )
    missing = [field for field in ("image_keys", "gripper") if field not in fields]
    if missing:
        raise SpecError(f"{where}: {_what_is_missing(info, name, missing)}")
    named = spec_of({field: value for field, value in fields.items() if field in _KEYS}, where)
    _check_place_of_gripper(info, named, fields["gripper"], where)
    for field, value in _sizes(info, named).items():
        if field in fields and fields[field] != value:
            raise SpecError(f"{where}: {field}: expected {value:g}, as {info.folder / INFO} says, got {fields[field]}")
        fields[field] = value
    return spec_of(fields, where)


def _sizes(info: Info, named: DatasetSpec) -> dict[str, Any]:
    """What the metadata say of the features that a description names."""
    features = check_features(info, named)
    return {
        "action_size": features[named.action_key].size,
        "proprio_size": sum(features[key].size for key in named.state_keys),
        "control_hz": info.fps,
    }


def _check_place_of_gripper(info: Info, named: DatasetSpec, gripper: Any, where: str) -> None:
    """Raises `SpecError` if the names of an action say that its last number, which is converted as the gripper, is another thing."""
    names = check_features(info, named)[named.action_key].names
    places = [number for number, name in enumerate(names) if "grip" in name.lower()]
    if places and places[-1] != len(names) - 1 and gripper != "as_stored":
        raise SpecError(
            f"{where}: gripper: expected the gripper as the last number of {named.action_key}; there it is number {places[-1]} of "
            f"{', '.join(names)}; change the order in the dataset, or take gripper: as_stored to train on all numbers as they are"
        )


def _in_order(cameras: list[str]) -> list[str]:
    """The cameras, those of the hand last; [] if several look from outside, so that nobody knows which is the primary one."""
    moving = [key for key in cameras if any(word in key.removeprefix(_PER_FEATURE).lower() for word in _WRIST)]
    fixed = [key for key in cameras if key not in moving]
    return [*fixed, *sorted(moving)] if len(fixed) == 1 else []


def _what_is_missing(info: Info, name: str, missing: list[str]) -> str:
    """What the user has to write, with what there is to choose from."""
    action = info.features.get(_ACTION)
    names = f" ({', '.join(action.names)})" if action and action.names else ""
    lines = {
        "image_keys": f"image_keys: [...]  # the primary camera first, then those of the hand; there are {', '.join(info.cameras)}",
        "gripper": f"gripper: ...  # meaning of the last of the {action.size if action else '?'} numbers of an action{names}: "
        "minus_open_plus_closed, zero_open_one_closed, binarised (1 is open), percent_open or as_stored",
    }
    robot = f" (robot_type {info.robot_type})" if info.robot_type else ""
    wanted = "\n".join(f"  {lines[field]}" for field in missing)
    return f"the files of this LeRobot dataset{robot} do not say all. Write into the file of --dataset_specs:\n{name}:\n{wanted}"


def _has(*features: str) -> Callable[[Info], bool]:
    return lambda info: set(features) <= info.features.keys()


def _sizes_are(info: Info, action: int, state: int, action_key: str = _ACTION, state_key: str = _STATE) -> bool:
    features = info.features
    return action_key in features and state_key in features and (features[action_key].size, features[state_key].size) == (action, state)


def _is_so_arm(info: Info) -> bool:
    return info.robot_type.removesuffix("_follower") in ("so100", "so101") and _sizes_are(info, 6, 6)


def _is_pusht(info: Info) -> bool:
    return _ACTION in info.features and info.features[_ACTION].size == 2


_LIBERO = {"gripper": "minus_open_plus_closed", "chunk": 8}
# Absolute joint targets: clipping at a percentile would put some poses out of reach.
_ABSOLUTE = {"normalisation": "bounds", "chunk": 25}
_ALOHA = _ABSOLUTE | {"gripper": "as_stored", "action_mask": [True] * 14}
_ALOHA_CAMERAS = [f"{_PER_FEATURE}cam_{camera}" for camera in ("high", "left_wrist", "right_wrist")]
_DROID_CAMERAS = [f"{_PER_FEATURE}{camera}" for camera in ("exterior_1_left", "wrist_left")]
LAYOUTS = (
    *(
        Layout(
            "LIBERO",
            lambda info, cameras=cameras: _has(*cameras)(info) and _sizes_are(info, 7, 8) and info.robot_type in ("panda", "libero", ""),
            _LIBERO | {"image_keys": list(cameras)},
        )
        for cameras in (
            (f"{_PER_FEATURE}image", f"{_PER_FEATURE}image2"),
            (f"{_PER_FEATURE}image", f"{_PER_FEATURE}wrist_image"),
        )
    ),
    Layout(
        "LIBERO, as openpi writes it",
        lambda info: _has("image", "wrist_image")(info) and _sizes_are(info, 7, 8, "actions", "state"),
        _LIBERO | {"image_keys": ["image", "wrist_image"], "state_keys": ["state"], "action_key": "actions"},
    ),
    Layout("ALOHA", lambda info: _has(*_ALOHA_CAMERAS)(info) and _sizes_are(info, 14, 14), _ALOHA | {"image_keys": _ALOHA_CAMERAS}),
    Layout(
        "ALOHA in simulation",
        lambda info: _has(f"{_PER_FEATURE}top")(info) and _sizes_are(info, 14, 14),
        _ALOHA | {"image_keys": [f"{_PER_FEATURE}top"]},
    ),
    Layout("SO-100, SO-101", _is_so_arm, _ABSOLUTE | {"gripper": "percent_open"}),
    Layout(
        "DROID",
        lambda info: _has(*_DROID_CAMERAS)(info) and _sizes_are(info, 8, 8),
        _ABSOLUTE | {"gripper": "zero_open_one_closed", "image_keys": _DROID_CAMERAS, "chunk": 15},
    ),
)
