"""Files of a checkpoint in the Hugging Face layout: JSON objects, and tensors that are read one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from eosjax import documents
from eosjax.fields import show
from eosjax.models.hf.weights import WeightsError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
METADATA = {"format": "pt"}  # of a file of safetensors; transformers refuses files that do not say so
# What stands beside the weights: configuration, tokenizer, preprocessor, and the code that PyTorch loads them with. It is never run here.
SIDE_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.py")
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}  # safetensors' names
_LARGEST_JSON = 1 << 28  # bytes
_LFS_POINTER = b"version https://git-lfs"


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        WeightsError: the file is missing, larger than any such file, or holds no object.
        DocumentError: no JSON.
    """
    path = folder / name
    check_file(path)
    if (size := path.stat().st_size) > _LARGEST_JSON:
        raise WeightsError(f"{path}: expected at most {_LARGEST_JSON:,} bytes, got {size:,}")
    content = documents.read_json(path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected an object, got {show(content)}")
    return content


def check_file(path: Path) -> None:
    """Raises `WeightsError` unless the file is there, and not as the pointer that git leaves without git-lfs."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; expected a checkpoint in the Hugging Face layout, downloaded completely") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read: {first_line(error)}") from error
    if start == _LFS_POINTER:
        raise WeightsError(
            f"{path}: a pointer of git-lfs, without the file itself; run `git lfs pull` there, or download with `hf download`"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class Tensors(Mapping[str, np.ndarray]):
    """Tensors of safetensors files as a mapping; each is read when it is asked for, and nothing is kept or mapped in between."""

    def __init__(self, file_of: Mapping[str, Path], stored: Mapping[str, str] | None = None):
        """Reads the headers.

        Args:
            file_of: the file of each tensor.
            stored: the names of tensors that are called otherwise in their file.

        Raises:
            WeightsError: a file is missing, damaged or lacks a tensor.
        """
        self.file_of, self._stored = dict(file_of), dict(stored or {})
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}  # safetensors' names
        in_file: dict[Path, list[str]] = {}
        for name, path in self.file_of.items():
            in_file.setdefault(path, []).append(name)
        for path, names in sorted(in_file.items()):
            with _opened(path) as file:
                lacking = sorted({self.stored_name(name) for name in names} - set(file.keys()))
                if lacking:
                    raise WeightsError(f"{path}: the index puts {lacking[0]} here ({len(lacking)} such tensors), but the file lacks it")
                for name in names:
                    header = file.get_slice(self.stored_name(name))
                    self.shapes[name], self.dtypes[name] = tuple(header.get_shape()), str(header.get_dtype())

    @classmethod
    def of_folder(cls, folder: Path) -> Tensors:
        """The weights of a checkpoint: the shards of its index, or its one file."""
        if (folder / INDEX).is_file() and (folder / SINGLE).is_file():
            raise WeightsError(f"{folder}: expected {SINGLE} or {INDEX}, got both; remove the one that is left of another checkpoint")
        if (folder / INDEX).is_file():
            return cls(_shards(folder))
        if (folder / SINGLE).is_file():
            return cls.of_file(folder / SINGLE)
        remedy = ""
        if any(folder.glob("pytorch_model*.bin")):
            remedy = (
                "; weights in pickles, which could run code, are not read: load them with transformers and save them anew (save_pretrained)"
            )
        raise WeightsError(f"{folder}: expected {SINGLE} or {INDEX} with its shards; found {_found(folder)}{remedy}")

    @classmethod
    def of_file(cls, path: Path) -> Tensors:
        """All tensors of one file."""
        with _opened(path) as file:
            return cls(dict.fromkeys(file.keys(), path))

    def renamed(self, stored: Mapping[str, str]) -> Tensors:
        """The same tensors, some under other names: new name -> name so far. The name so far goes."""
        file_of = {name: path for name, path in self.file_of.items() if name not in stored.values()}
        return Tensors(
            file_of | {name: self.file_of[old] for name, old in stored.items()},
            self._stored | {name: self.stored_name(old) for name, old in stored.items()},
        )

    def shared(self, name: str, with_name: str) -> Tensors:
        """The same tensors, and one of them once more under another name."""
        return Tensors(self.file_of | {name: self.file_of[with_name]}, self._stored | {name: self.stored_name(with_name)})

    def stored_name(self, name: str) -> str:
        """The name of a tensor in its file."""
        return self._stored.get(name, name)

    @property
    def largest_file(self) -> int:
        """Bytes of the largest file."""
        return max(path.stat().st_size for path in set(self.file_of.values()))

    def __getitem__(self, name: str) -> np.ndarray:
        # Opened anew each time: the library maps the file, and pages of a mapping that lives on count as this process' memory.
        path = self.file_of[name]
        with _opened(path) as file:
            try:
                return file.get_tensor(self.stored_name(name))
            except Exception as error:  # types that NumPy lacks raise several kinds
                raise WeightsError(f"{path}: {name}: {self.dtypes[name]} cannot be read: {first_line(error)}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_of)

    def __len__(self) -> int:
        return len(self.file_of)


class Finite(Mapping[str, np.ndarray]):
    """Weights of a file or folder, each checked when it is read: a floating-point type, and neither NaN nor infinity."""

    def __init__(self, tensors: Mapping[str, np.ndarray], source: Path):
        self._tensors, self._source = tensors, source

    def check_types(self, names: Iterable[str]) -> None:
        """Raises `WeightsError` if one of these is no floating-point number; reads none."""
        if isinstance(self._tensors, Tensors):
            for name in names:
                self._check_type(name, self._tensors.dtypes[name], FLOATS)

    def __getitem__(self, name: str) -> np.ndarray:
        self.check_types([name])
        array = self._tensors[name]
        self._check_type(name, array.dtype, FLOATS.values())
        if not is_finite(array):
            raise WeightsError(
                f"{self._file(name)}: {name}: expected numbers, got NaN or infinity; the file is damaged, or its training diverged"
            )
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _check_type(self, name: str, dtype: object, known: Iterable[object]) -> None:
        if dtype not in known:
            raise WeightsError(
                f"{self._file(name)}: {name}: expected weights in one of {', '.join(FLOATS)}, got {dtype}; quantised and complex weights "
                "are not read: save the checkpoint in bfloat16 or float32"
            )

    def _file(self, name: str) -> Path:
        return self._tensors.file_of[name] if isinstance(self._tensors, Tensors) else self._source


def is_finite(array: np.ndarray) -> bool:
    """Whether an array of a type of `FLOATS` has neither NaN nor infinity, and is within the range of float32."""
    if array.dtype.itemsize != 2:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(array.astype(np.float32, copy=False)).all())
    # Both have all bits of the exponent set: as integers they are the largest of either sign. isfinite takes 8 times as long.
    exponent = 0x7F80 if array.dtype == ml_dtypes.bfloat16 else 0x7C00
    bits = np.ascontiguousarray(array).ravel()
    return not bits.size or bool(bits.view(np.int16).max() < exponent and bits.view(np.uint16).max() < exponent + 0x8000)


def _shards(folder: Path) -> dict[str, Path]:
    """The file of each tensor, from the index. A file is named without a folder: nothing outside the checkpoint is read."""
    index = read_json(folder, INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise WeightsError(f"{folder / INDEX}: weight_map: expected an object with the file of each tensor, got {show(index)}")
    for name, file in index.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or "/" in file or "\\" in file or "\0" in file:
            raise WeightsError(
                f"{folder / INDEX}: weight_map: {show(name)}: expected a file of safetensors in this folder, got {show(file)}"
            )
    return {name: folder / file for name, file in index.items()}


def _opened(path: Path) -> Any:
    check_file(path)
    try:
        return safetensors.safe_open(path, framework="np")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: damaged or no safetensors file: {first_line(error)}; its size is {path.stat().st_size:,} bytes"
        ) from error


def _found(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:12]) or "an empty folder"


def first_line(error: BaseException) -> str:
    """An error of a library in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
