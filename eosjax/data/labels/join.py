"""The verified join of labels with frames, by the dataset's own order of episodes.

A missing label is never read as "no end". All mismatches are collected and raised before training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from eosjax.data.labels.table import LEFT_OUT_BY, LabelError, Problem, SegmentTable, misplaced, task_key
from eosjax.names import is_blank


class Labels(NamedTuple):
    """Labels of the N frames of E episodes."""

    instruction_ids: np.ndarray  # i32 [N]: index into `instructions`
    instructions: list[str]  # sorted, each one once
    ends: np.ndarray  # bool [N]: a sub-step ends at this frame
    labelled: np.ndarray  # bool [E]: the episode has labels and can be trained on; of others nothing is known about ends


class Episodes(Protocol):
    """The part of a dataset that the join reads (a `eosjax.data.frames.store.FrameStore`)."""

    name: str
    episode_starts: np.ndarray  # i64 [E + 1]
    tasks: list[str]


def join_labels(table: SegmentTable, store: Episodes, allow: Collection[str] = ()) -> Labels:
    """Labels of every frame, after checking that the table and the dataset agree on every episode.

    Steps that no segment covers have the task instruction (lower-cased) and no end.

    Args:
        table: the labels; its episode N is the N-th of the dataset.
        store: the dataset.
        allow: names of `LEFT_OUT_BY`: episodes with such a fault are accepted, if at least one has none. `Labels.labelled` is False
            for them, and training must leave them out. All other faults remain errors.

    Raises:
        LabelError: with every episode without labels, task or steps, label without episode, mismatch of length or task
            instruction, end outside its episode, overlap, and the problems within the file.
    """
    lengths = np.diff(store.episode_starts)
    problems = [
        *table.problems,
        *unusable_episodes(store),
        *_disagreements(table, store),
        *misplaced(table, dict(enumerate(lengths.tolist()))),
    ]
    labelled = _left(table.source, problems, np.isin(np.arange(len(lengths)), table.episode), allow)
    instruction_ids, instructions = _task_instructions(store)
    ids = {text: index for index, text in enumerate(instructions)}
    ends = np.zeros(len(instruction_ids), bool)
    for row, episode in enumerate(table.episode):
        start = store.episode_starts[episode]
        last = start + table.last[row]
        instruction_ids[start + table.first[row] : last + 1] = ids.setdefault(table.instruction[row], len(ids))
        ends[last] = table.is_end[row]
    return Labels(*_compact(instruction_ids, list(ids)), ends, labelled)


def task_labels(store: Episodes, allow: Collection[str] = ()) -> Labels:
    """Labels without sub-steps: the lower-cased task instruction everywhere and no end (`use_substep_eos` off).

    Args:
        store: the dataset.
        allow: as of `join_labels`.

    Raises:
        LabelError: with every episode without task or steps.
    """
    labelled = _left(store.name, list(unusable_episodes(store)), np.ones(len(store.tasks), bool), allow)
    instruction_ids, instructions = _task_instructions(store)
    return Labels(*_compact(instruction_ids, instructions), np.zeros(len(instruction_ids), bool), labelled)


def _task_instructions(store: Episodes) -> tuple[np.ndarray, list[str]]:
    """For each frame i32 [N] the number of its episode's task, lower-cased, and these tasks."""
    instructions, ids = np.unique([task.lower() for task in store.tasks], return_inverse=True)
    return np.repeat(ids.astype(np.int32), np.diff(store.episode_starts)), instructions.tolist()


def _left(source: str, problems: Sequence[Problem], labelled: np.ndarray, allow: Collection[str]) -> np.ndarray:
    """Of the `labelled` episodes bool [E] those without a problem that leaves them out; raises a `LabelError` for other problems."""
    left_out = [problem.episode for problem in problems if LEFT_OUT_BY.get(problem.kind) in allow]
    left = labelled & ~np.isin(np.arange(len(labelled)), np.array(left_out, np.int64))
    if len(left_out) < len(problems):
        refused = [problem for problem in problems if LEFT_OUT_BY.get(problem.kind) not in allow]
        raise LabelError(source, refused)
    if not left.any():
        raise LabelError(source, problems)
    return left


def _compact(ids: np.ndarray, instructions: list[str]) -> tuple[np.ndarray, list[str]]:
    """Keeps only instructions that occur, sorted, so that the numbering does not depend on the order of the label file."""
    kept = sorted(np.unique(ids).tolist(), key=instructions.__getitem__)
    renumber = np.zeros(len(instructions), np.int32)
    renumber[kept] = np.arange(len(kept))
    return renumber[ids], [instructions[index] for index in kept]


def unusable_episodes(store: Episodes) -> Iterator[Problem]:
    """Episodes of the dataset without steps or without a task instruction."""
    for episode, (task, length) in enumerate(zip(store.tasks, np.diff(store.episode_starts).tolist(), strict=True)):
        if not length:
            yield Problem("empty episode", episode, "no step in it, or none that its description keeps")
        elif is_blank(task):
            yield Problem("blank task", episode, f"expected a task instruction with a letter or digit, got {task!r}")


def _disagreements(table: SegmentTable, store: Episodes) -> Iterator[Problem]:
    """Where the table and the dataset differ about an episode's existence, length or task."""
    reported = {problem.episode for problem in table.problems}
    labelled = set(table.episode.tolist())
    for episode, (task, length) in enumerate(zip(store.tasks, np.diff(store.episode_starts).tolist(), strict=True)):
        if episode not in table.lengths:
            if length and episode not in reported:
                yield Problem("episode without labels", episode, f"{task!r} has no entry")
            continue
        if table.lengths[episode] != length:
            what = f"{length} steps in the dataset, {table.lengths[episode]} in the labels"
            yield Problem("length mismatch", episode, f"{what} (no-op steps filtered out of one of the two only?)")
        if length and task_key(table.tasks[episode]) != task_key(task):
            what = f"{task!r} in the dataset, {table.tasks[episode]!r} in the labels"
            yield Problem("instruction mismatch", episode, what)
        if length and episode not in labelled:
            yield Problem("episode without labels", episode, f"the entry of {task!r} has no sub-step")
    for episode in sorted(table.lengths):
        if not 0 <= episode < len(store.tasks):
            what = f"{table.tasks[episode]!r} is in the label file, but the dataset has {len(store.tasks)} episodes"
            yield Problem("labels without episode", episode, what)
