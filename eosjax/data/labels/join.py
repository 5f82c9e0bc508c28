"""The verified join of labels with frames, by the dataset's own order of episodes.

A missing label is never read as "no end". All mismatches are collected and raised before training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from eosjax.data.labels.table import LabelError, Problem, SegmentTable, misplaced, task_key


class Labels(NamedTuple):
    """Labels of the N frames of E episodes."""

    instruction_ids: np.ndarray  # i32 [N]: index into `instructions`
    instructions: list[str]  # sorted, each one once
    ends: np.ndarray  # bool [N]: a sub-step ends at this frame
    labelled: np.ndarray  # bool [E]: the episode has labels; frames of other episodes have no information about ends


class Episodes(Protocol):
    """The part of a dataset that the join reads (a `eosjax.data.frames.store.FrameStore`)."""

    episode_starts: np.ndarray  # i64 [E + 1]
    tasks: list[str]


def join_labels(table: SegmentTable, store: Episodes, allow_unlabelled: bool = False) -> Labels:
    """Labels of every frame, after checking that the table and the dataset agree on every episode.

    Steps that no segment covers have the task instruction (lower-cased) and no end.

    Args:
        table: the labels; its episode N is the N-th of the dataset.
        store: the dataset.
        allow_unlabelled: accept episodes without labels, if at least one has labels. `Labels.labelled` marks them, and
            training must leave them out. All other faults remain errors.

    Raises:
        LabelError: with every episode without labels, label without episode, mismatch of length or task instruction, end
            outside its episode, overlap, and the problems within the file.
    """
    lengths = np.diff(store.episode_starts)
    labelled = np.isin(np.arange(len(lengths)), table.episode)
    problems = [*table.problems, *_disagreements(table, store), *misplaced(table, dict(enumerate(lengths.tolist())))]
    if allow_unlabelled and labelled.any():
        problems = [problem for problem in problems if problem.kind != "episode without labels"]
    if problems:
        raise LabelError(table.source, problems)
    fallback = task_labels(store)
    ids = {text: index for index, text in enumerate(fallback.instructions)}
    instruction_ids, ends = fallback.instruction_ids, fallback.ends
    for row, episode in enumerate(table.episode):
        start = store.episode_starts[episode]
        last = start + table.last[row]
        instruction_ids[start + table.first[row] : last + 1] = ids.setdefault(table.instruction[row], len(ids))
        ends[last] = table.is_end[row]
    return Labels(*_compact(instruction_ids, list(ids)), ends, labelled)


def task_labels(store: Episodes) -> Labels:
    """Labels without sub-steps: the lower-cased task instruction everywhere and no end (`use_substep_eos` off)."""
    instructions, ids = np.unique([task.lower() for task in store.tasks], return_inverse=True)
    lengths = np.diff(store.episode_starts)
    no_ends, all_episodes = np.zeros(lengths.sum(), bool), np.ones(len(lengths), bool)
    return Labels(np.repeat(ids.astype(np.int32), lengths), instructions.tolist(), no_ends, all_episodes)


def _compact(ids: np.ndarray, instructions: list[str]) -> tuple[np.ndarray, list[str]]:
    """Keeps only instructions that occur, sorted, so that the numbering does not depend on the order of the label file."""
    kept = sorted(np.unique(ids).tolist(), key=instructions.__getitem__)
    renumber = np.zeros(len(instructions), np.int32)
    renumber[kept] = np.arange(len(kept))
    return renumber[ids], [instructions[index] for index in kept]


def _disagreements(table: SegmentTable, store: Episodes) -> Iterator[Problem]:
    """Where the table and the dataset differ about an episode's existence, length or task."""
    reported = {problem.episode for problem in table.problems}
    labelled = set(table.episode.tolist())
    for episode, (task, length) in enumerate(zip(store.tasks, np.diff(store.episode_starts).tolist(), strict=True)):
        if episode not in table.lengths:
            if episode not in reported:
                yield Problem("episode without labels", episode, f"{task!r} has no entry")
            continue
        if table.lengths[episode] != length:
            what = f"{length} steps in the dataset, {table.lengths[episode]} in the labels"
            yield Problem("length mismatch", episode, f"{what} (no-op steps filtered out of one of the two only?)")
        if task_key(table.tasks[episode]) != task_key(task):
            what = f"{task!r} in the dataset, {table.tasks[episode]!r} in the labels"
            yield Problem("instruction mismatch", episode, what)
        if episode not in labelled:
            yield Problem("episode without labels", episode, f"the entry of {task!r} has no sub-step")
    for episode in sorted(table.lengths):
        if not 0 <= episode < len(store.tasks):
            what = f"{table.tasks[episode]!r} is in the label file, but the dataset has {len(store.tasks)} episodes"
            yield Problem("labels without episode", episode, what)
