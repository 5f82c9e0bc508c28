"""Reads JSON and Parquet files. Every fault is a `LabelError` that names the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from eosjax import documents
from eosjax.data.labels.table import LabelError, refused
from eosjax.documents import DocumentError
from eosjax.fields import Fields, check_fields
from eosjax.types import UserError

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


def episode_number(text: str) -> int | None:
    """The number of an episode in decimal digits; None for another text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def fields_fault(content: Mapping[str, Any], fields: Fields) -> str | None:
    """What is wrong with the fields of an object, all of which the table `fields` must have; None if they are all known."""
    if content.keys() <= fields.keys():  # no table of labels refuses a field by its value
        return None
    try:
        check_fields(content, fields, "fields", UserError)
    except UserError as error:
        return str(error)
    return None


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
            tables[-1].validate(full=True)  # such as texts that are no UTF-8
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
    if not (pa.types.is_list(records) or pa.types.is_large_list(records) or pa.types.is_null(records)):
        raise refused(path, "wrong shape", f"column {nested}: expected lists of records, got {records}")
    if pa.types.is_null(getattr(records, "value_type", records)):  # not one record in the file: its fields are unknown
        wanted = [nested]
    else:
        _require(path, list(leaves), fields)
        wanted = [leaves[field] for field in fields]
    try:
        for batch in file.iter_batches(columns=[*columns, *wanted]):
            batch.validate(full=True)
            yield batch
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
