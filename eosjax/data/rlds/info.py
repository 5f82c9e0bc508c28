"""What the metadata of a TFDS dataset say: its features, and its files in the order in which they are read.

TFDS reads these metadata itself, and takes whatever is in them: any module that a feature names is imported, any path is followed. So
the two JSON files are checked here before TFDS sees them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from eosjax.data.episode import DatasetError
from eosjax.documents import DocumentError, read_json
from eosjax.fields import Field, check_fields, show, table

SPLIT = "train"
INFO, FEATURES = "dataset_info.json", "features.json"
_TFDS_FEATURES = "tensorflow_datasets.core.features."
_CLASS_FIELDS = ("pythonClassName", "python_class_name", "type")  # "type" in files of older versions
_PLACEHOLDERS = re.compile(r"\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\}")

DATASET_INFO = table(
    Field("name", "honoured", "part of the names of the files"),
    Field("version", "honoured", "read by TFDS, which expects three numbers"),
    Field("fileFormat", "honoured", "tfrecord or array_record; decides the order of the episodes"),
    Field("disableShuffling", "honoured", "true: one file after the other; else 16 files in turn (tfrecord)"),
    Field("splits", "honoured", f"the split {SPLIT} is read"),
    Field("isBlocked", "refused", "the authors have withdrawn this version", accepts=("", None)),
    *(
        Field(name, "harmless", "for people, or about the making of the dataset")
        for name in (
            "description releaseNotes configName configDescription configTags features citation sizeInBytes downloadSize location "
            "downloadChecksums schema supervisedKeys redistributionInfo moduleName alternativeFileFormats dataSourceAccesses "
            "nondeterministicOrder"
        ).split()
    ),
)
SPLIT_INFO = table(
    Field("name", "honoured", f"{SPLIT} or another split, which is not read"),
    Field("shardLengths", "honoured", "number of episodes in each file"),
    Field("filepathTemplate", "honoured", "names of the files, which must lie in the folder"),
    Field("numShards", "harmless", "as many as there are shardLengths"),
    Field("numBytes", "harmless", "size of the files"),
    Field("statistics", "harmless", "of the values, for people"),
)


class Shards(NamedTuple):
    """The files of a split in the order in which they are opened, and how they are read."""

    files: list[tuple[Path, int]]  # with the number of episodes in each
    file_format: str
    in_turn: bool  # several files at once, some episodes of each


def dataset_dir(data_root: str | Path, name: str) -> Path:
    """The folder with the newest version of dataset `name` under `data_root` (`<data_root>/<name>/<version>`).

    Raises:
        DatasetError: there is no such folder; the message lists the datasets that are there.
    """
    root = Path(data_root).expanduser()
    versions = sorted((root / name).glob(f"*/{INFO}"), key=lambda info: _version_key(info.parent.name))
    if versions:
        return versions[-1].parent
    found = sorted({info.parent.parent.name for pattern in (f"*/*/{INFO}", "*/meta/info.json") for info in root.glob(pattern)})
    raise DatasetError(
        f"data_root_dir: no dataset {name!r} in {root}: expected {root / name}/<version>/{INFO} or meta/info.json; "
        + (f"datasets found there: {', '.join(found)}" if found else "no dataset found there")
    )


def num_episodes(folder: Path) -> int:
    """Number of episodes that `dataset_info.json` in a folder announces for the `train` split; `DatasetError` as `open_dataset`."""
    return sum(_shard_lengths(folder / INFO))


def open_dataset(folder: Path) -> tuple[Any, Shards]:
    """The features (a `tfds.features.FeaturesDict`) and the files of the `train` split of the dataset in a folder. Reads its metadata only.

    Raises:
        DatasetError: metadata that are missing, damaged or of another form, files that are missing, outside of the folder or too
            small for their number of episodes; names the file and the field.
    """
    _shard_lengths(folder / INFO)
    _check_classes(folder / FEATURES)
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(str(folder)).info
        features: Any = info.features
        files = [(Path(shard.filename), int(shard.examples_in_shard)) for shard in info.splits[SPLIT].file_instructions]
        file_format = info.file_format.value if info.file_format else "unknown"
        in_turn = file_format == "tfrecord" and not info.disable_shuffling
    except Exception as error:  # protobuf, TFDS and NumPy raise many kinds for metadata that are not theirs
        raise DatasetError(f"{folder}: {INFO} or {FEATURES} cannot be read: {type(error).__name__}: {error}") from error
    _check_files(folder, files)
    return features, Shards(files, file_format, in_turn)


def _check_files(folder: Path, files: list[tuple[Path, int]]) -> None:
    for path, _ in files:
        if Path(os.path.normpath(path)).parent != Path(os.path.normpath(folder)):
            raise DatasetError(f"{folder / INFO}: splits: expected files in this folder, got {path}")
    missing = [path for path, _ in files if not path.is_file()]
    if missing:
        raise DatasetError(f"{missing[0]}: this file of the dataset is missing ({len(missing)} of {len(files)} files are)")
    for path, length in files:
        if length > path.stat().st_size:
            raise DatasetError(f"{path}: expected {length} episodes in this file, as announced; found {path.stat().st_size} bytes")


def _shard_lengths(path: Path) -> list[int]:
    """Number of episodes in each file of the split, of a `dataset_info.json` whose fields are checked."""
    content = check_fields(_read(path), DATASET_INFO, path, DatasetError)
    splits = content.get("splits", [])
    if not isinstance(splits, list):
        raise DatasetError(f"{path}: splits: expected a list, got {show(splits)}")
    by_name: dict[Any, dict[str, Any]] = {}
    for number, split in enumerate(splits):
        checked = check_fields(split, SPLIT_INFO, path, DatasetError, f"splits[{number}].")
        if not isinstance(checked.get("name"), str) or checked["name"] in by_name:
            raise DatasetError(f"{path}: splits[{number}].name: expected a name that no other split has, got {show(checked.get('name'))}")
        by_name[checked["name"]] = checked
    if SPLIT not in by_name:
        raise DatasetError(f"{path}: expected a split {SPLIT!r}; found: {', '.join(map(show, by_name)) or 'none'}")
    template, lengths = by_name[SPLIT].get("filepathTemplate", ""), by_name[SPLIT].get("shardLengths")
    if not isinstance(template, str) or {"{", "}", "/", "\\"} & set(_PLACEHOLDERS.sub("", template)):
        raise DatasetError(f"{path}: filepathTemplate: expected the name of a file with the placeholders of TFDS, got {show(template)}")
    if not isinstance(lengths, list) or not all(_is_length(length) for length in lengths):
        raise DatasetError(f"{path}: shardLengths: expected the number of episodes in each file of {SPLIT}, got {show(lengths)}")
    return [int(length) for length in lengths]


def _is_length(value: Any) -> bool:
    """Whether a value is a whole number, or one in text, as protobuf writes those of 64 bits."""
    if isinstance(value, str):
        return value.isascii() and value.isdecimal() and len(value) < 16
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15


def _check_classes(path: Path) -> None:
    """Raises `DatasetError` if a feature is of a class of another module than those of TFDS. TFDS would import that module."""
    for name in _class_names(_read(path)):
        if "." in name and not name.startswith(_TFDS_FEATURES):
            raise DatasetError(f"{path}: pythonClassName: expected a class in {_TFDS_FEATURES}*, got {show(name)}")


def _class_names(content: Any) -> Iterator[str]:
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from (name for key in _CLASS_FIELDS if isinstance(name := value.get(key), str))
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except DocumentError as error:
        raise DatasetError(str(error)) from error


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() and len(part) < 10 else -1 for part in version.split("."))
