"""Reads JSON and Parquet files. Every fault is a `LabelError` that names the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from eosjax import documents
from eosjax.data.labels.table import LabelError, refused
from eosjax.documents import DocumentError

_LARGEST = 2**31 - 1


def read_json(path: Path) -> Any:
    """The content of a JSON file; `LabelError` for the faults of `eosjax.documents.read_json`."""
    try:
        return documents.read_json(path)
    except DocumentError as error:
        raise refused(path, error.fault, error.what) from error


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is a whole number from 0 on, as small as one of steps or episodes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def column_names(path: Path) -> list[str]:
    """The top-level columns of a Parquet file; `LabelError` when it is damaged."""
    return _open(path).schema_arrow.names


def read_columns(paths: Sequence[Path], columns: Sequence[str]) -> pa.Table:
    """Some columns of Parquet files, concatenated. Other columns are not read.

    Raises:
        LabelError: a damaged file; one that lacks a column (names those that it has); files that differ in a column's type.
    """
    tables = []
    for path in paths:
        file = _open(path)
        _require(path, file.schema_arrow.names, columns)
        try:
            tables.append(file.read(columns=list(columns)))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from error
    try:
        # A column without any value has another type in one file than in the next.
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise refused(paths[0].parent.parent, "wrong shape", f"files whose columns differ in type: {error}") from error


def read_batches(path: Path, columns: Sequence[str], nested: str, fields: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A Parquet file in pieces: `columns`, and the column `nested`, lists of records, with only some `fields` of the records.

    Raises:
        LabelError: as for `read_columns`.
    """
    file = _open(path)
    _require(path, file.schema_arrow.names, [*columns, nested])
    leaves = {leaf.rsplit(".", 1)[-1]: leaf for leaf in (column.path for column in file.schema) if leaf.startswith(f"{nested}.")}
    records = file.schema_arrow.field(nested).type
    if pa.types.is_null(getattr(records, "value_type", records)):  # not one record in the file: its fields are unknown
        wanted = [nested]
    else:
        _require(path, list(leaves), fields)
        wanted = [leaves[field] for field in fields]
    try:
        yield from file.iter_batches(columns=[*columns, *wanted])
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _require(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in names]
    if missing:
        raise refused(path, "missing columns", f"expected {', '.join(missing)}; found {', '.join(names) or 'none'}")


def _damaged(path: Path, error: Exception) -> LabelError:
    return refused(path, "unreadable file", f"expected a Parquet file: {str(error).strip()}")
