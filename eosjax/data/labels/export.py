"""Writing format 1, the format of the original."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eosjax.data.labels.table import LabelError, Segment, SegmentTable, make_table, misplaced, task_key
from eosjax.types import UserError


def canonical(table: SegmentTable) -> SegmentTable:
    """An equivalent table that format 1 can represent: the same labels of every step, and `import_labels` returns it exactly.

    A gap of format 1 has the instruction of the entry before it, whereas a step without a segment has the task instruction
    (lower-cased) and no end. So a gap after the first segment becomes a segment of that instruction, and neighbours of one
    instruction without an end between them become one segment. What precedes the first segment stays uncovered.

    Raises:
        LabelError: problems within the table, an empty segment, one outside its episode, an overlap.
    """
    problems = [*table.problems, *misplaced(table, table.lengths)]
    if problems:
        raise LabelError(table.source, problems)
    segments: dict[int, list[Segment]] = {}
    for row, episode in enumerate(table.episode.tolist()):
        segment = Segment(int(table.first[row]), int(table.last[row]), bool(table.is_end[row]), table.instruction[row])
        segments.setdefault(episode, []).append(segment)
    closed = {episode: _closed(parts, table.lengths[episode], table.tasks[episode].lower()) for episode, parts in segments.items()}
    return make_table(closed, table.source, dict(table.lengths), dict(table.tasks))


def export_labels(table: SegmentTable, suite: str, path: str | Path) -> None:
    """Writes a table as format 1, atomically: the file appears complete or not at all.

    Training data are the same from the file and from the table. `canonical` describes how gaps are written. An episode without
    segments has an empty list of entries, which `join_labels` refuses or drops as it does for the table.

    Args:
        table: the labels.
        suite: key of the suite, which is the dataset's name with or without `_no_noops`.
        path: the file to make.

    Raises:
        LabelError: see `canonical`.
        UserError: there is a file at `path` already.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: exists; label files are not overwritten")
    table = canonical(table)
    entries: dict[int, list[dict[str, Any]]] = {episode: [] for episode in table.lengths}
    for row, episode in enumerate(table.episode.tolist()):
        last, is_end = int(table.last[row]), bool(table.is_end[row])
        for step in range(int(table.first[row]), last + 1):
            entry = {"timestep": step, "APD_step": table.instruction[row], "is_substep_end": is_end and step == last}
            entries[episode].append(entry)
    tasks: dict[str, dict[str, Any]] = {}
    for episode in sorted(table.lengths):
        task, length = table.tasks[episode], table.lengths[episode]
        body = {"instruction": task, "total_timesteps": length, "timestep_labels": entries[episode]}
        tasks.setdefault(task_key(task), {})[f"episode_{episode}"] = body
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps({suite: tasks}), encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _closed(segments: Iterable[Segment], length: int, task: str) -> list[Segment]:
    """The segments of an episode in order, without gaps after the first one. Neighbours without an end between them are merged."""
    result: list[Segment] = []

    def append(segment: Segment) -> None:
        if result and not result[-1].is_end and result[-1].instruction == segment.instruction:
            segment = segment._replace(first=result.pop().first)
        result.append(segment)

    for segment in sorted(segments):
        if result and result[-1].last + 1 < segment.first:
            append(Segment(result[-1].last + 1, segment.first - 1, False, task))
        append(segment)
    if result and result[-1].last + 1 < length:
        append(Segment(result[-1].last + 1, length - 1, False, task))
    return result
