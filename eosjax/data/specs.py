"""Descriptions of datasets: the meaning and convention of each feature, which the files do not state."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eosjax.documents import DocumentError, read_yaml
from eosjax.fields import show
from eosjax.names import check_dataset_name
from eosjax.types import UserError

GripperConvention = Literal["minus_open_plus_closed", "zero_open_one_closed", "binarised", "percent_open", "as_stored"]
Motion = Literal["as_stored", "reached_states", "target_minus_state"]
Normalisation = Literal["q99", "bounds"]


# Largest magnitude of values that are not normalised. Normalised ones are from -1 to 1; millimetres, degrees or per cent are far larger.
UNSCALED_LIMIT = 2.0
_LARGEST = 10_000  # of a size, or of steps per second


class SpecError(UserError):
    """A dataset description that is missing or does not make sense."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Description of a dataset; the defaults are the layout that the LIBERO datasets in RLDS share.

    In an RLDS dataset a key is the path of a feature, its parts joined by "/". It is looked up in `steps/observation`, in `steps` and in
    the episode itself; a key that matches in two of these places is refused; give its full path ("steps/action") instead. In a LeRobot
    dataset it is the name of a feature.

    Attributes:
        image_keys: image features of the cameras, the primary one first, then the wrists.
        state_keys: features that make up the proprioceptive state, joined in this order to f32 [proprio_size].
        action_key: feature of the action, f32 [action_size].
        instruction_key: text feature of the task instruction, of the steps or of the episode.
        gripper: how the gripper command, the last dimension of the action, is stored: "minus_open_plus_closed" (-1 and 1);
            "zero_open_one_closed"; "binarised" (1 is open, 0 closed; values in between become the side that is reached next);
            "percent_open" (100 is open, 0 closed); "as_stored".
        motion: "reached_states" replaces the action, except the gripper, by the change of the state from one step to the next.
            The last step has no next one and is left out. "target_minus_state": absolute targets, which a policy learns as differences
            from the state at the anchor of its chunk, except the gripper (see `eosjax.data.targets`).
        skip_first: steps at the beginning of an episode that are left out. Label files count the steps that are kept.
        action_mask: which action dimensions are normalised; the others pass unchanged. (): all but the last.
        normalisation: "q99" maps the 1st and 99th percentile to -1 and 1 and clips, "bounds" the minimum and maximum.
        chunk: number of actions predicted at once (K).
        action_size: size of an action (A).
        proprio_size: size of the proprioceptive state (P).
        control_hz: control steps per second.

    Raises:
        SpecError: a field with an impossible value.
    """

    image_keys: tuple[str, ...] = ("image", "wrist_image")
    state_keys: tuple[str, ...] = ("state",)
    action_key: str = "action"
    instruction_key: str = "language_instruction"
    gripper: GripperConvention = "minus_open_plus_closed"
    motion: Motion = "as_stored"
    skip_first: int = 0
    action_mask: tuple[bool, ...] = ()
    normalisation: Normalisation = "q99"
    chunk: int = 8
    action_size: int = 7
    proprio_size: int = 8
    control_hz: float = 20.0

    def __post_init__(self) -> None:
        for field in ("chunk", "action_size", "proprio_size", "control_hz"):
            if not 0 < getattr(self, field) <= _LARGEST:
                raise SpecError(f"{field}: expected a number above 0, up to {_LARGEST:,}, got {show(getattr(self, field))}")
        if not 0 <= self.skip_first <= _LARGEST:
            raise SpecError(f"skip_first: expected 0 or more, up to {_LARGEST:,}, got {show(self.skip_first)}")
        for field in ("image_keys", "state_keys"):
            keys = getattr(self, field)
            if not keys or len(set(keys)) != len(keys):
                raise SpecError(f"{field}: expected at least one key, and none twice; got {list(keys)}")
        if not self.action_mask:
            object.__setattr__(self, "action_mask", (True,) * (self.action_size - 1) + (False,))
        if len(self.action_mask) != self.action_size:
            raise SpecError(f"action_mask: expected {self.action_size} entries (action_size), got {len(self.action_mask)}")
        if self.motion != "as_stored" and self.proprio_size < self.action_size - 1:
            raise SpecError(f"motion: {self.motion} needs a state of at least {self.action_size - 1} dimensions, got {self.proprio_size}")

    @property
    def from_anchor(self) -> bool:
        """Whether a policy learns differences from the state at the anchor."""
        return self.motion == "target_minus_state"

    @property
    def conventions(self) -> dict[str, object]:
        """What the numbers of `standard_actions` mean, as far as datasets that are mixed must agree on it."""
        gripper = "as stored" if self.gripper == "as_stored" else "1 = open"
        return {"gripper": gripper, "motion": self.motion, "action_mask": list(self.action_mask), "control_hz": self.control_hz}

    def kept_steps(self, length: int) -> slice:
        """The steps used of an episode of `length` stored steps."""
        return slice(self.skip_first, length - 1 if self.motion == "reached_states" else length)

    def standard_actions(self, actions: np.ndarray, proprio: np.ndarray) -> np.ndarray:
        """Actions of the steps kept, f32 [T' a], with the gripper as 1 = open, 0 = closed (unless "as_stored").

        LIBERO's gripper (-1 opens, +1 closes) becomes 1 - clip(g, 0, 1). Bridge is treated in the order of the original: the
        first step goes, then the gripper is made binary, then the motion is that of the states. Source: the standardisation
        functions of OpenVLA-OFT (`prismatic/vla/datasets/rlds/oxe/transforms.py`).

        Args:
            actions: [T a] as stored.
            proprio: [T p] as stored.

        Raises:
            SpecError: the gripper is stored in another unit than the description says.
        """
        kept = self.kept_steps(len(actions))
        actions = np.array(actions[self.skip_first :], np.float32)
        largest = 100.0 if self.gripper == "percent_open" else 1.0
        if self.gripper != "as_stored" and np.abs(actions[:, -1]).max(initial=0) > UNSCALED_LIMIT * largest:
            found = f"{actions[:, -1].min():g} to {actions[:, -1].max():g}"
            expected = f"stored values from {0 if largest > 1 else -1} to {largest:g}"
            raise SpecError(f"gripper: {self.gripper} expects {expected}, got {found}; is it as_stored, and normalised?")
        if self.gripper == "percent_open":
            actions[:, -1] /= largest
        elif self.gripper in ("minus_open_plus_closed", "zero_open_one_closed"):
            actions[:, -1] = 1.0 - np.clip(actions[:, -1], 0.0, 1.0)
        elif self.gripper == "binarised":
            actions[:, -1] = _binarise(actions[:, -1])
        if self.motion == "reached_states":
            states = np.asarray(proprio[self.skip_first :, : self.action_size - 1], np.float32)
            actions = actions[:-1]
            actions[:, :-1] = np.diff(states, axis=0)
        assert len(actions) == len(range(*kept.indices(len(proprio))))
        return actions

    def to_json(self) -> str:
        """The description as JSON text, which `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DatasetSpec:
        """The description that `to_json` wrote; `SpecError` for fields of another kind."""
        return _from_fields(json.loads(text))


# Gripper as stored = scale x gripper (1 = open, 0 = closed) + offset, where it is another number.
_STORED_GRIPPER = {"minus_open_plus_closed": (-2.0, 1.0), "zero_open_one_closed": (-1.0, 1.0), "percent_open": (100.0, 0.0)}


def stored_gripper(actions: np.ndarray, gripper: GripperConvention) -> np.ndarray:
    """Actions [… a] with the gripper as the dataset stores it, from those that `DatasetSpec.standard_actions` made or a policy predicted.

    From 1 = open, 0 = closed; nothing changes for "binarised" and "as_stored". A value between -1 and 0 that "minus_open_plus_closed"
    made 1 comes back as -1.
    """
    scale, offset = _STORED_GRIPPER.get(gripper, (1.0, 0.0))
    return np.concatenate([actions[..., :-1], scale * actions[..., -1:] + offset], axis=-1)


def _binarise(gripper: np.ndarray) -> np.ndarray:
    """f32 [T] of 0 and 1: above 0.95 is open, below 0.05 closed; a value in between takes the next decided one.

    Undecided values at the end of an episode all become the last value, as in the original.
    """
    decided = (gripper > 0.95) | (gripper < 0.05)
    following = np.where(decided, np.arange(len(gripper)), len(gripper) - 1)
    following = np.minimum.accumulate(following[::-1])[::-1]
    return np.where(decided[following], gripper[following] > 0.95, gripper[following]).astype(np.float32)


_LIBERO = DatasetSpec()
_LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
# The second camera of Bridge looks from outside as well; the original trains on the first one.
_BRIDGE = DatasetSpec(
    image_keys=("image_0",), gripper="binarised", motion="reached_states", skip_first=1, chunk=5, proprio_size=7, control_hz=5.0
)
# Absolute joint positions: clipping at a percentile would put some poses out of reach.
_ALOHA = DatasetSpec(
    image_keys=("image", "left_wrist_image", "right_wrist_image"),
    gripper="as_stored",
    action_mask=(True,) * 14,
    normalisation="bounds",
    chunk=25,
    action_size=14,
    proprio_size=14,
    control_hz=25.0,
)
_ALOHA_TASKS = ("fold_shorts_20_demos", "fold_shirt_30_demos", "scoop_X_into_bowl_45_demos", "put_X_into_pot_300_demos")
# By the names of RLDS datasets.
SPECS: dict[str, DatasetSpec] = {
    **{suite + suffix: _LIBERO for suite in _LIBERO_SUITES for suffix in ("", "_no_noops")},
    "libero_4_task_suites_no_noops": _LIBERO,
    **{f"{suite}_expert": _LIBERO for suite in _LIBERO_SUITES[:3]},  # what `eosjax collect --env libero_…` writes
    "bridge_orig": _BRIDGE,
    "bridge_dataset": _BRIDGE,
    **{f"aloha1_{task}": _ALOHA for task in _ALOHA_TASKS},
    "eosjax_demo": dataclasses.replace(_LIBERO, chunk=4),  # short chunks: faster on a CPU
    "demo_table": dataclasses.replace(_LIBERO, chunk=4),  # what `eosjax collect --env demo` writes
}

# Required in a user's description of an RLDS dataset: a wrong default would train on wrong values without any error.
_REQUIRED = ("image_keys", "state_keys", "gripper", "action_size", "proprio_size", "control_hz")


def spec_for(name: str, specs_file: Path | None = None) -> DatasetSpec:
    """The description of RLDS dataset `name`: that of the user's file if it has one, else the built-in one.

    Args:
        name: the dataset.
        specs_file: YAML file `{dataset: {field: value, …}, …}` with the fields of `DatasetSpec`.

    Raises:
        SpecError: no description (lists the known names, nearest first), or a faulty file.
    """
    own = load_fields(specs_file) if specs_file is not None else {}
    if name in own:
        return spec_of(own[name], f"--dataset_specs {specs_file}: {name}", _REQUIRED)
    known = SPECS | own
    if name not in SPECS:
        nearest = difflib.get_close_matches(name, known, n=len(known), cutoff=0.0)
        raise SpecError(
            f"--dataset_name: no description of dataset {name!r}; known: {', '.join(nearest)}; describe your own in the file of "
            "--dataset_specs"
        )
    return SPECS[name]


def load_fields(path: str | Path) -> dict[str, dict[str, Any]]:
    """The fields of each description in a user's YAML file, not checked yet.

    Raises:
        SpecError: no such file, not YAML, or no fields by name; names the file and the dataset.
    """
    path = Path(path).expanduser()
    try:
        content = read_yaml(path)
    except DocumentError as error:
        raise SpecError(f"--dataset_specs {error}") from error
    if not isinstance(content, dict) or not content:
        raise SpecError(f"--dataset_specs {path}: expected {{dataset: {{field: value, …}}, …}}, got {_kind(content)}")
    for name, fields in content.items():
        if not isinstance(name, str):
            raise SpecError(f"--dataset_specs {path}: expected the name of a dataset, got {_kind(name)}")
        try:
            check_dataset_name("name", name, SpecError)
        except SpecError as error:
            raise SpecError(f"--dataset_specs {path}: {name}: {error}") from error
        if not isinstance(fields, dict):
            raise SpecError(f"--dataset_specs {path}: {name}: expected fields and values, got {_kind(fields)}")
    return content


def spec_of(fields: Mapping[str, Any], where: str, required: Iterable[str] = ()) -> DatasetSpec:
    """The description with these values; `SpecError` for a faulty one or missing fields, which begins with `where`."""
    try:
        spec = _from_fields(fields)
        if missing := [field for field in required if field not in fields]:
            raise SpecError(f"missing {', '.join(missing)}")
        return spec
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error


def _from_fields(fields: Mapping[str, Any]) -> DatasetSpec:
    """The description with these values; `SpecError` for an unknown field or a value of another kind."""
    types = typing.get_type_hints(DatasetSpec)
    for field in fields:
        if field not in types:
            nearest = difflib.get_close_matches(str(field), types, n=1, cutoff=0.0)[0]
            raise SpecError(f"unknown field {show(field)}; did you mean {nearest!r}? The fields are {', '.join(types)}")
    return DatasetSpec(**{field: _convert(field, value, types[field]) for field, value in fields.items()})


def _convert(field: str, value: Any, wanted: Any) -> Any:
    """`value` as a value of type `wanted`, one of those that the fields of `DatasetSpec` have."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        if value not in arguments:
            raise SpecError(f"{field}: expected {_either(arguments)}, got {show(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise SpecError(f"{field}: expected a list, got {_kind(value)}")
        return tuple(_convert(f"{field}, entry {number}", entry, arguments[0]) for number, entry in enumerate(value))
    accepted = {str: str, bool: bool, int: int, float: (int, float)}[wanted]
    # In Python a bool is an int too; in a description it is a mistake.
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        names = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
        raise SpecError(f"{field}: expected {names[wanted]}, got {_kind(value)}")
    return value if isinstance(value, int) and abs(value) > 2**53 else wanted(value)  # what float cannot hold is out of every range


def _either(values: Iterable[str]) -> str:
    return " or ".join(repr(value) for value in values)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{show(value)} ({type(value).__name__})"
