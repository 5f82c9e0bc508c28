"""Parquet files and JSON lines of LeRobot datasets. Every fault is a `DatasetError` that names the file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eosjax.data.episode import DatasetError
from eosjax.fields import show

_BUFFER = 1 << 20


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file whose columns are read in pieces, never a whole row group at once."""
    with parquet_faults(path):
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER)


@contextlib.contextmanager
def parquet_faults(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises for a file that is missing or damaged into a `DatasetError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: this file of the dataset is missing") from error
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: expected a Parquet file: {str(error).strip()}") from error


def read_columns(paths: Sequence[Path], columns: Sequence[str]) -> pa.Table:
    """Some columns of Parquet files, concatenated.

    Raises:
        DatasetError: a damaged file, one that lacks a column, or files that differ in a column's type.
    """
    tables = []
    for path in paths:
        file = open_parquet(path)
        require_columns(path, file, columns)
        with parquet_faults(path):
            tables.append(file.read(columns=list(columns)).select(list(columns)))
            tables[-1].validate(full=True)
    with parquet_faults(paths[0].parent):
        return pa.concat_tables(tables, promote_options="permissive")


def require_columns(path: Path, file: pq.ParquetFile, columns: Sequence[str]) -> None:
    """Raises `DatasetError` if a file lacks a column; names those that it has."""
    names = file.schema_arrow.names
    missing = [column for column in columns if column not in names]
    if missing:
        raise DatasetError(f"{path}: expected the columns {', '.join(missing)}; found {show(', '.join(names))}")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one in each line."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DatasetError(f"{path}, line {number}: expected JSON: {error}") from error
                if not isinstance(content, dict):
                    raise DatasetError(f"{path}, line {number}: expected an object, got {show(content)}")
                yield content
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: expected UTF-8: {error.reason} at byte {error.start}") from error


class Rows:
    """Some columns of a Parquet file, read forward a batch at a time; rows may be skipped."""

    def __init__(self, path: Path, columns: Sequence[str], batch_size: int):
        self._path, self._columns, self._batch_size = path, list(columns), batch_size
        self._file = open_parquet(path)
        require_columns(path, self._file, columns)
        self._next = 0  # first row that no batch had yet
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._left: pa.RecordBatch | None = None  # ends before row `_next`

    def table(self, first: int, count: int) -> pa.Table:
        """As `read`, in one table."""
        schema = pa.schema([self._file.schema_arrow.field(name) for name in self._columns])
        return pa.Table.from_batches([batch.select(self._columns) for batch in self.read(first, count)], schema)

    def read(self, first: int, count: int) -> Iterator[pa.RecordBatch]:
        """The rows from `first` on, in batches of together at most `count` rows. Rows before the last ones read are gone."""
        while count > 0 and (batch := self._batch_of(first)) is not None:
            start = first - (self._next - len(batch))
            piece = batch.slice(start, count)
            first, count = first + len(piece), count - len(piece)
            yield piece

    def _batch_of(self, row: int) -> pa.RecordBatch | None:
        """The batch with a row; None behind the last one."""
        if self._batches is None:
            self._batches = self._open(row)
        while row >= self._next:
            with parquet_faults(self._path):
                self._left = next(self._batches, None)
            if self._left is None:
                return None
            with parquet_faults(self._path):
                self._left.validate(full=True)
            self._next += len(self._left)
        assert self._left is None or row >= self._next - len(self._left), "rows are read forward"
        return self._left

    def _open(self, row: int) -> Iterator[pa.RecordBatch]:
        """The batches from the row group on that has a row; nothing is read of those before."""
        groups = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        skipped = 0
        while skipped < len(groups) and self._next + groups[skipped] <= row:
            self._next += groups[skipped]
            skipped += 1
        wanted = range(skipped, len(groups))
        return self._file.iter_batches(self._batch_size, row_groups=list(wanted), columns=self._columns) if wanted else iter(())
