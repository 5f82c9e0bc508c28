"""Episodes of a TFDS/RLDS dataset in its own order. Needs no TensorFlow; TFDS is imported only where it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from eosjax.data.episode import DatasetError, Episode, check_image, matrix
from eosjax.data.rlds.info import Shards, open_dataset
from eosjax.data.rlds.tfrecord import RecordError, read_records
from eosjax.data.specs import DatasetSpec, SpecError

# How TFDS interleaves the shards of a TFRecord dataset unless told otherwise. Label files number the episodes in this order.
_OPEN_SHARDS = 16
_BLOCK = 16


def read_episodes(folder: Path, spec: DatasetSpec, start: int = 0) -> Iterator[Episode]:
    """Episodes of the `train` split in the dataset's own order, which defines the episode numbers of label files.

    For TFRecord that is the order of `builder.as_dataset(split="train", shuffle_files=False)`, for ArrayRecord (which has no
    `as_dataset`) that of `builder.as_data_source(split="train")`. Images stay encoded, one episode is in memory at a time.

    Args:
        folder: of the version of the dataset, as `dataset_dir` finds it.
        spec: its description.
        start: first episode to yield; earlier ones are skipped without decoding.

    Raises:
        DatasetError: missing dataset, shard or feature, wrong shape, NaN or infinity, no image, unreadable shard; names the
            file, the episode and the step.
    """
    features, shards = open_dataset(folder)
    layout = _Layout.of(folder, features, spec)
    order = episode_order([length for _, length in shards.files], _OPEN_SHARDS if shards.in_turn else 1)
    for index, path, record in _records(shards, order, start):
        yield layout.episode(index, path, record)


def episode_order(shard_lengths: Sequence[int], open_shards: int) -> np.ndarray:
    """i64 [E]: the shard of each episode. Episodes of one shard keep their order.

    `open_shards` shards are read in turn, 16 episodes from each. Where one ends, the next unread shard replaces it, as in
    `tf.data.Dataset.interleave`.
    """
    left = list(shard_lengths)
    unread = iter(range(len(left)))
    slots: list[int | None] = [next(unread, None) for _ in range(open_shards)]
    order: list[int] = []
    while any(shard is not None for shard in slots):
        for slot, shard in enumerate(slots):
            if shard is None:
                continue
            taken = min(_BLOCK, left[shard])
            order += [shard] * taken
            left[shard] -= taken
            if taken < _BLOCK:  # the end is detected only by asking for one more
                slots[slot] = next(unread, None)
    return np.array(order, np.int64)


def _records(shards: Shards, order: np.ndarray, start: int) -> Iterator[tuple[int, Path, bytes]]:
    """(episode, file, serialised episode) from episode `start` on."""
    files, file_format = shards.files, shards.file_format
    readers = {"tfrecord": read_records, "array_record": _read_array_record}
    if file_format not in readers:
        raise DatasetError(f"{files[0][0]}: expected files of format {' or '.join(readers)}, got {file_format}")
    position = np.bincount(order[:start], minlength=len(files))
    streams: dict[int, Iterator[bytes]] = {}
    for index, shard in enumerate(order[start:].tolist(), start):
        path, length = files[shard]
        try:
            if shard not in streams:
                streams[shard] = readers[file_format](path, int(position[shard]))
            record = next(streams[shard], None)
            position[shard] += 1
            surplus = position[shard] == length and next(streams.pop(shard), None) is not None
        except RecordError as error:
            raise DatasetError(f"{path}: episode {index}: unreadable (is the file truncated?): {error}") from error
        if record is None or surplus:
            found = f"only {position[shard] - 1}" if record is None else "more"
            raise DatasetError(f"{path}: episode {index}: expected {length} episodes in this file, as announced; found {found}")
        yield index, path, record


def _read_array_record(path: Path, first: int) -> Iterator[bytes]:
    """`read_records` for an ArrayRecord file."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        if not reader.ok():  # otherwise a damaged file is one without records
            reader.read([0])
        for number in range(first, reader.num_records()):
            yield reader.read([number])[0]
    except (RuntimeError, ValueError, IndexError) as error:
        raise RecordError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Locates the fields of a description in a dataset, and turns its serialised episodes into `Episode`s."""

    spec: DatasetSpec
    features: Any  # tfds.features.FeaturesDict of the features that are needed and no other
    decoders: dict[str, Any]
    images: tuple[tuple[str, ...], ...]  # paths
    states: tuple[tuple[str, ...], ...]
    action: tuple[str, ...]
    instruction: tuple[str, ...]
    file_path: tuple[str, ...] | None

    @classmethod
    def of(cls, folder: Path, features: Any, spec: DatasetSpec) -> _Layout:
        """Finds every feature of `spec`. Raises `DatasetError` with the missing ones and those that exist."""
        import tensorflow_datasets as tfds

        leaves = _leaves(features)
        images = tuple(_find(folder, leaves, "image_keys", key) for key in spec.image_keys)
        states = tuple(_find(folder, leaves, "state_keys", key) for key in spec.state_keys)
        action = _find(folder, leaves, "action_key", spec.action_key)
        instruction = _find(folder, leaves, "instruction_key", spec.instruction_key)
        for path in images:
            image: Any = leaves[path]
            sizes, dtype = image.shape, image.np_dtype
            if not isinstance(image, tfds.features.Image) or sizes[-1] != 3 or dtype != np.uint8:
                what = "expected an Image of three channels of uint8 (8-bit RGB)"
                raise DatasetError(f"{folder}: image_keys: feature {'/'.join(path)}: {what}, got {image}")
        for path in (*images, *states, action):
            if path[0] != "steps":
                raise DatasetError(f"{folder}: feature {'/'.join(path)}: expected a feature of the steps, got one of the episode")
        for path in (*states, action):
            if np.dtype(leaves[path].np_dtype).kind not in "biuf":
                raise DatasetError(f"{folder}: feature {'/'.join(path)}: expected numbers, got {leaves[path]}")
        if leaves[instruction].np_dtype != np.object_ or leaves[instruction].shape != ():
            raise DatasetError(f"{folder}: feature {'/'.join(instruction)}: expected text, got {leaves[instruction]}")
        file_path = ("episode_metadata", "file_path")
        wanted = {*images, *states, action, instruction, *([file_path] if file_path in leaves else [])}
        tree = _nest({path: leaves[path] for path in wanted})
        tree["steps"] = tfds.features.Dataset(tree["steps"])
        decoders = _nest({path: tfds.decode.SkipDecoding() for path in images})
        return cls(
            spec,
            tfds.features.FeaturesDict(tree),
            decoders,
            images,
            states,
            action,
            instruction,
            file_path if file_path in leaves else None,
        )

    def episode(self, index: int, path: Path, record: bytes) -> Episode:
        """The episode in a serialised record of file `path`; `DatasetError` if it cannot be trained on."""
        where = f"{path}: episode {index}"
        try:
            example = self.features.deserialize_example_np(record, decoders=self.decoders)
            steps = list(example["steps"])
        except Exception as error:  # protobuf, NumPy and TFDS raise many kinds for bytes that are no episode
            raise DatasetError(f"{where}: does not decode: {type(error).__name__}: {error}") from error
        stored_actions = matrix([_at(step, self.action) for step in steps], "actions", self.spec.action_size, where)
        states = [np.concatenate([np.ravel(_at(step, state)) for state in self.states]) for step in steps]
        stored_proprio = matrix(states, "proprio", self.spec.proprio_size, where)
        kept = self.spec.kept_steps(len(steps))
        try:
            actions = self.spec.standard_actions(stored_actions, stored_proprio)
        except SpecError as error:
            raise DatasetError(f"{where}: actions: {error}") from error
        images = tuple([_at(step, camera) for step in steps[kept]] for camera in self.images)
        for camera, pictures in zip(self.images, images, strict=True):
            for step, picture in enumerate(pictures):
                check_image(picture, step, f"{where}, {'/'.join(camera)}")
        return Episode(
            index=index,
            images=images,
            actions=actions,
            proprio=stored_proprio[kept],
            task=self._task(example, steps[kept], where),
            file_path=_text(_at(example, self.file_path), "/".join(self.file_path), where) if self.file_path else "",
        )

    def _task(self, example: Any, steps: Sequence[Any], where: str) -> str:
        if self.instruction[0] == "steps":
            tasks = {_at(step, self.instruction) for step in steps}
        else:
            tasks = {_at(example, self.instruction)}
        if len(tasks) > 1:
            raise DatasetError(f"{where}: expected one task instruction, got {sorted(tasks)}")
        return _text(tasks.pop(), "/".join(self.instruction), where) if tasks else ""


def _leaves(features: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every feature that holds no others, by its path."""
    if not hasattr(features, "keys"):
        return {path: features}
    keys = features.keys()  # iterating over the feature itself does not end well: the steps are no dictionary
    return {leaf: feature for key in keys for leaf, feature in _leaves(features[key], (*path, key)).items()}


def _find(folder: Path, leaves: Mapping[tuple[str, ...], Any], field: str, key: str) -> tuple[str, ...]:
    """The full path of a key of the description; see `DatasetSpec`."""
    parts = tuple(key.split("/"))
    found = [path for path in (("steps", "observation", *parts), ("steps", *parts), parts) if path in leaves]
    if len(found) == 1:
        return found[0]
    if found:
        both = " or ".join("/".join(path) for path in found)
        raise DatasetError(f"{folder}: {field}: {key!r} may mean {both}; write which one")
    raise DatasetError(f"{folder}: {field}: expected a feature {key!r}; found: {', '.join(sorted('/'.join(leaf) for leaf in leaves))}")


def _nest(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The nested dictionary with these values at these paths."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = value
    return tree


def _at(example: Any, path: tuple[str, ...]) -> Any:
    """The value at a full path: of an episode, or of a step for a path that begins with "steps"."""
    for part in path[1:] if path[0] == "steps" else path:
        example = example[part]
    return example


def _text(data: bytes, field: str, where: str) -> str:
    """The text in UTF-8 bytes; `DatasetError` for other bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: {field}: expected text in UTF-8, got {data!r:.80} ({error.reason} at byte {error.start})") from error
