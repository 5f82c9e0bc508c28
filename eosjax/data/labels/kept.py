"""Labels where a description leaves out steps at the beginning or the end of an episode (`skip_first`, `motion: reached_states`).

A label file counts the steps that are kept. Labels in the folder of a LeRobot dataset belong to its frames, and count all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from eosjax.data.labels.table import SegmentTable, misplaced

Kept = Callable[[int], slice]  # as `DatasetSpec.kept_steps`: which of the stored steps of an episode of some length are kept


def count_kept_steps(table: SegmentTable, kept: Kept) -> SegmentTable:
    """Labels of all stored steps as those of the steps that are kept.

    A sub-step whose last steps are left out ends with the last one that is kept; one of which nothing is kept is gone. An episode with a
    segment at an impossible place becomes a problem.
    """
    faults = list(misplaced(table, table.lengths))
    wrong = {fault.episode for fault in faults}
    spans = {episode: _span(kept, length) for episode, length in table.lengths.items() if episode not in wrong}
    first, last = table.first.copy(), table.last.copy()
    for row, start, stop in _rows(table, spans):
        first[row], last[row] = max(table.first[row] - start, 0), min(table.last[row], stop - 1) - start
    rows = np.isin(table.episode, list(spans)) & (first <= last)
    return dataclasses.replace(
        table,
        episode=table.episode[rows],
        segment=table.segment[rows],
        first=first[rows],
        last=last[rows],
        is_end=table.is_end[rows],
        instruction=[text for text, left in zip(table.instruction, rows.tolist(), strict=True) if left],
        lengths={episode: stop - start for episode, (start, stop) in spans.items()},
        tasks={episode: task for episode, task in table.tasks.items() if episode in spans},
        problems=(*table.problems, *faults),
    )


def count_stored_steps(table: SegmentTable, kept: Kept, lengths: dict[int, int]) -> SegmentTable:
    """The inverse: labels of the steps that are kept as those of all steps, of which episodes have `lengths`.

    The first and the last sub-step cover what is left out beside them. Episodes of another length than that, or with a segment at an
    impossible place, stay as they are.
    """
    wrong = {fault.episode for fault in misplaced(table, table.lengths)}
    spans = {
        episode: span
        for episode, length in table.lengths.items()
        if episode in lengths and episode not in wrong and (span := _span(kept, lengths[episode])) and span[1] - span[0] == length
    }
    first, last = table.first.copy(), table.last.copy()
    for row, start, stop in _rows(table, spans):
        episode = int(table.episode[row])
        first[row] = table.first[row] + start if table.first[row] else 0
        last[row] = table.last[row] + start if table.last[row] + start < stop - 1 else lengths[episode] - 1
    found = {episode: lengths[episode] if episode in spans else length for episode, length in table.lengths.items()}
    return dataclasses.replace(table, first=first, last=last, lengths=found)


def _span(kept: Kept, length: int) -> tuple[int, int]:
    """The first step that is kept, and the one behind the last."""
    start, stop, _ = kept(length).indices(length)
    return start, max(start, stop)


def _rows(table: SegmentTable, spans: dict[int, tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    for row, episode in enumerate(table.episode.tolist()):
        if episode in spans:
            yield row, *spans[episode]
