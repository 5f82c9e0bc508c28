"""Writing format 3 (LeRobot 3.0): a copy of a dataset whose frames have their sub-steps. The original stays as it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eosjax.data.labels.files import column_names
from eosjax.data.labels.kept import Kept, count_stored_steps
from eosjax.data.labels.lerobot_folder import open_dataset
from eosjax.data.labels.table import LabelError, Problem, SegmentTable, misplaced
from eosjax.data.lerobot.info import INFO, read_info
from eosjax.data.lerobot.tables import open_parquet, parquet_faults
from eosjax.types import UserError

_INDEX, _TEXT, _FILE = "subtask_index", "subtask", "meta/subtasks.parquet"
_NONE = -1  # a frame without a sub-step
_ROWS = 512


def export_lerobot(table: SegmentTable, source: Path, target: Path, kept: Kept | None = None) -> None:
    """Writes a copy of the LeRobot dataset `source` in which every frame has the `subtask_index` of the table.

    The metadata and the Parquet files are copied, the videos linked. The copy appears complete or not at all.

    Args:
        table: the labels; its episode N is `episode_index` N. Frames of other episodes have no sub-step.
        source: folder of the dataset, version 3.
        target: folder to make.
        kept: the steps of an episode that the table counts; None for all.

    Raises:
        LabelError: problems within the table, lengths that are not those of the dataset, or ends that an index per frame cannot hold.
        UserError: there is something at `target`, or the dataset has sub-steps already, or is of version 2.
    """
    if target.exists():
        raise UserError(f"{target}: exists; datasets are not overwritten")
    if read_info(source).legacy:
        raise UserError(f"{source / INFO}: sub-steps are stored in version 3; convert the dataset with lerobot")
    dataset = open_dataset(source)
    if (source / _FILE).exists() or any(_INDEX in column_names(path) for path in dataset.data_files):
        raise UserError(f"{source}: the dataset has sub-steps already ({_INDEX})")
    if kept:
        table = count_stored_steps(table, kept, dataset.lengths)
    texts = sorted(set(table.instruction))
    index = _index_of_steps(table, dataset.lengths, {text: number for number, text in enumerate(texts)})
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copytree(source / "meta", partial / "meta")
        _write_info(partial / INFO)
        _write_texts(partial / _FILE, texts)
        for path in dataset.data_files:
            _copy_frames(path, partial / path.relative_to(source), index)
        if (source / "videos").exists():
            os.symlink((source / "videos").resolve(), partial / "videos")
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _index_of_steps(table: SegmentTable, lengths: dict[int, int], numbers: dict[str, int]) -> dict[int, np.ndarray]:
    """By episode, i64 [T]: the index of the text of each step."""
    problems = [*table.problems, *misplaced(table, lengths)]
    for episode, length in table.lengths.items():
        if lengths.get(episode) != length:
            problems.append(Problem("length mismatch", episode, f"{lengths.get(episode)} frames in the dataset, {length} in the labels"))
    index = {episode: np.full(length, _NONE, np.int64) for episode, length in lengths.items()}
    before: tuple[int, int, str] | None = None
    for row in np.lexsort((table.first, table.episode)):
        episode, first, last, text = int(table.episode[row]), int(table.first[row]), int(table.last[row]), table.instruction[row]
        if not table.is_end[row]:
            problems.append(Problem("wrong shape", episode, f"steps {first} to {last}: a sub-step without an end cannot be stored"))
        if before == (episode, first - 1, text):
            problems.append(
                Problem("wrong shape", episode, f"{text!r} twice, the second time from step {first}: an index cannot part them")
            )
        before = episode, last, text
        if episode in index:
            index[episode][max(first, 0) : last + 1] = numbers[text]
    if problems:
        raise LabelError(table.source, problems)
    return index


def _write_info(path: Path) -> None:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
    content["features"][_INDEX] = {"dtype": "int64", "shape": [1], "names": None}
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def _write_texts(path: Path, texts: list[str]) -> None:
    """The texts as the index of a table, where LeRobot looks for them: what pandas takes for an index is said in its own metadata."""
    kinds = {_TEXT: ("unicode", "object"), _INDEX: ("int64", "int64")}
    columns = [{"name": name, "field_name": name, "pandas_type": k, "numpy_type": n, "metadata": None} for name, (k, n) in kinds.items()]
    pandas = {"index_columns": [_TEXT], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({_INDEX: pa.array(range(len(texts)), pa.int64()), _TEXT: pa.array(texts, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _copy_frames(source: Path, target: Path, index: dict[int, np.ndarray]) -> None:
    """A data file with the additional column, some rows at a time."""
    file = open_parquet(source)
    schema = _with_index(file.schema_arrow)
    target.parent.mkdir(parents=True, exist_ok=True)
    with parquet_faults(source), pq.ParquetWriter(target, schema) as writer:
        for batch in file.iter_batches(_ROWS):
            episodes, steps = (batch[name].to_numpy(zero_copy_only=False).astype(np.int64) for name in ("episode_index", "frame_index"))
            values = np.full(len(batch), _NONE, np.int64)
            for episode in np.unique(episodes).tolist():
                rows = episodes == episode
                values[rows] = index[episode][steps[rows]] if episode in index else _NONE
            writer.write_batch(pa.RecordBatch.from_arrays([*batch.columns, pa.array(values)], schema=schema))


def _with_index(schema: pa.Schema) -> pa.Schema:
    """The schema with the additional column, also in what the library `datasets` says of it in the metadata of the file."""
    metadata = dict(schema.metadata or {})
    if b"huggingface" in metadata:
        content = json.loads(metadata[b"huggingface"])
        content.get("info", {}).get("features", {})[_INDEX] = {"dtype": "int64", "_type": "Value"}
        metadata[b"huggingface"] = json.dumps(content).encode()
    return schema.append(pa.field(_INDEX, pa.int64())).with_metadata(metadata)
