"""Sub-step labels: one internal table of segments, the importer of the original's JSON, the verified join with frames.

A label that fits no frame is never taken for "no end": all that does not fit is collected and raised before training.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np

from eosjax.types import UserError

_LISTED_PROBLEMS = 10


class Problem(NamedTuple):
    """One thing that does not fit."""

    kind: str  # the same words for the same kind of problem: they are counted
    episode: int | None  # None: not one episode's problem
    what: str  # where, what was expected, what came


class LabelError(UserError):
    """Labels that cannot be read or do not fit the dataset; `problems` has all of them, the message the first ten."""

    def __init__(self, source: str, problems: Sequence[Problem]):
        self.problems = list(problems)
        totals = ", ".join(f"{count} x {kind}" for kind, count in Counter(p.kind for p in problems).items())
        lines = [f"  {p.kind}: {'' if p.episode is None else f'episode {p.episode}: '}{p.what}" for p in problems]
        hidden = len(lines) - _LISTED_PROBLEMS
        more = [f"  … and {hidden} more"] if hidden > 0 else []
        super().__init__("\n".join([f"{source}: labels refused: {totals}", *lines[:_LISTED_PROBLEMS], *more]))


@dataclasses.dataclass(frozen=True)
class SegmentTable:
    """Labels in one form, whatever file they came from: S segments as columns, and what the file says of each episode.

    Attributes:
        episode, segment, first, last: i64 [S]; `segment` counts within the episode, `last` is inclusive.
        is_end: bool [S]: a sub-step ends at `last`. Not every segment closes one: a file may have gaps.
        instruction: S strings.
        source: where the labels came from.
        lengths: number of steps of each labelled episode, as the label file has it.
        tasks: task instruction of each labelled episode, as the label file has it.
        problems: what is wrong within the file; the join raises it together with what it finds itself.
    """

    episode: np.ndarray
    segment: np.ndarray
    first: np.ndarray
    last: np.ndarray
    is_end: np.ndarray
    instruction: list[str]
    source: str
    lengths: dict[int, int]
    tasks: dict[int, str]
    problems: tuple[Problem, ...] = ()


class Labels(NamedTuple):
    """Labels of N frames."""

    instruction_ids: np.ndarray  # i32 [N]: index into `instructions`
    instructions: list[str]  # sorted, each one once
    ends: np.ndarray  # bool [N]: a sub-step ends at this frame


class Episodes(Protocol):
    """What the join needs of a dataset (`eosjax.data.frames.FrameStore` has it)."""

    episode_starts: np.ndarray  # i64 [E + 1]
    tasks: list[str]


def join_labels(table: SegmentTable, store: Episodes) -> Labels:
    """Labels of every frame, after checking that the table and the dataset agree on every episode.

    Steps that no segment covers have the task instruction (lower-cased) and no end.

    Raises:
        LabelError: with every episode without labels, label without episode, mismatch of length or task instruction, end
            outside its episode, overlap, and the problems within the file.
    """
    problems = [*table.problems, *_disagreements(table, store), *_misplaced(table, np.diff(store.episode_starts))]
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
    return _compact(instruction_ids, list(ids), ends)


def task_labels(store: Episodes) -> Labels:
    """Labels without sub-steps: the lower-cased task instruction everywhere and no end (`use_substep_eos` off)."""
    instructions, ids = np.unique([task.lower() for task in store.tasks], return_inverse=True)
    lengths = np.diff(store.episode_starts)
    return Labels(np.repeat(ids.astype(np.int32), lengths), instructions.tolist(), np.zeros(lengths.sum(), bool))


def _compact(ids: np.ndarray, instructions: list[str], ends: np.ndarray) -> Labels:
    """Keeps the instructions that occur, sorted: the numbering does not depend on the order of the label file."""
    kept = sorted(np.unique(ids).tolist(), key=instructions.__getitem__)
    renumber = np.zeros(len(instructions), np.int32)
    renumber[kept] = np.arange(len(kept))
    return Labels(renumber[ids], [instructions[index] for index in kept], ends)


def _disagreements(table: SegmentTable, store: Episodes) -> Iterator[Problem]:
    """Where the table and the dataset differ about an episode's existence, length or task."""
    reported = {problem.episode for problem in table.problems}
    for episode, (task, length) in enumerate(zip(store.tasks, np.diff(store.episode_starts), strict=True)):
        if episode not in table.lengths:
            if episode not in reported:
                yield Problem("episode without labels", episode, f"{task!r} has no entry")
            continue
        if table.lengths[episode] != length:
            what = f"{length} steps in the dataset, {table.lengths[episode]} in the labels"
            yield Problem("length mismatch", episode, what)
        if _task_key(table.tasks[episode]) != _task_key(task):
            what = f"{task!r} in the dataset, {table.tasks[episode]!r} in the labels"
            yield Problem("instruction mismatch", episode, what)
    for episode in sorted(table.lengths):
        if episode >= len(store.tasks):
            what = f"{table.tasks[episode]!r} is labelled, but the dataset has {len(store.tasks)} episodes"
            yield Problem("labels without episode", episode, what)


def _misplaced(table: SegmentTable, lengths: np.ndarray) -> Iterator[Problem]:
    """Segments that leave their episode or overlap."""
    covered: dict[int, int] = {}  # last step that a segment of the episode covers so far
    for row in np.lexsort((table.first, table.episode)):
        episode, first, last = int(table.episode[row]), int(table.first[row]), int(table.last[row])
        which = f"segment {table.segment[row]} ({table.instruction[row]!r}), steps {first} to {last}"
        if episode < len(lengths) and not 0 <= first <= last < lengths[episode]:
            yield Problem("end outside the episode", episode, f"{which}, in an episode of {lengths[episode]} steps")
        before = covered.get(episode, -1)
        if first <= before:
            yield Problem("overlap", episode, f"{which}, but an earlier segment lasts to step {before}")
        covered[episode] = max(before, last)


def import_labels(path: str | Path, name: str) -> SegmentTable:
    """Reads a label file of the original's format for dataset `name`.

    The format: `{suite: {task: {"episode_N": {"instruction", "total_timesteps", "timestep_labels": [{"timestep",
    "APD_step", "is_substep_end", …}]}}}}`. The suite key may carry or lack `_no_noops` and may begin with `LIBERO_`.
    Timesteps may be left out: the instruction of a gap is that of the last entry before it, and an end is only where an
    entry says so.

    Raises:
        LabelError: not JSON (with the position), another shape, no such suite. What is wrong within single episodes is
            kept in the table, for `join_labels` to raise.
    """
    suites = _read_json(Path(path))
    rows, lengths, tasks, problems = [], {}, {}, []
    for task, episodes in _suite(path, suites, name).items():
        if not isinstance(episodes, dict):
            raise LabelError(str(path), [Problem("wrong shape", None, f"{task}: expected episodes, got {episodes!r:.60}")])
        for key, body in episodes.items():
            digits = key.removeprefix("episode_")
            if digits == key or not digits.isdecimal():
                problems.append(Problem("wrong shape", None, f"{task}: expected keys episode_N, got {key!r}"))
                continue
            episode = int(digits)
            wrong = _body_problem(task, body)
            if episode in lengths:
                wrong = "overlap", f"{task}: labelled under the task {tasks[episode]!r} too"
            if wrong:
                problems.append(Problem(wrong[0], episode, wrong[1]))
                continue
            lengths[episode], tasks[episode] = body["total_timesteps"], body.get("instruction", task)
            segments = _segments(body["timestep_labels"], body["total_timesteps"])
            rows.extend((episode, index, *segment) for index, segment in enumerate(segments))
    columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * 6
    episode, segment, first, last = (np.array(column, np.int64) for column in columns[:4])
    is_end, instruction = np.array(columns[4], bool), list(columns[5])
    return SegmentTable(episode, segment, first, last, is_end, instruction, str(path), lengths, tasks, tuple(problems))


def _segments(entries: list[dict[str, Any]], length: int) -> Iterator[tuple[int, int, bool, str]]:
    """(first, last, is_end, instruction) from an episode's checked entries, without gaps from the first one on."""
    first, instruction = entries[0]["timestep"], entries[0]["APD_step"]
    for entry in entries:
        step = entry["timestep"]
        if entry["APD_step"] != instruction:
            if first < step:
                yield first, step - 1, False, instruction
            first, instruction = step, entry["APD_step"]
        if entry.get("is_substep_end"):
            yield first, step, True, instruction
            first = step + 1
    if first < length:
        yield first, length - 1, False, instruction


def _body_problem(task: str, body: Any) -> tuple[str, str] | None:
    """(kind, what) of the first thing wrong with an episode of the file; None when all is well."""
    entries = body.get("timestep_labels") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        return "wrong shape", f"{task}: expected a list timestep_labels, got {body!r:.80}"
    length = body.get("total_timesteps")
    if not _is_count(length):
        return "wrong shape", f"{task}: total_timesteps: expected a number of steps, got {length!r}"
    instruction = body.get("instruction", task)
    if not isinstance(instruction, str) or _task_key(instruction) != _task_key(task):
        return "instruction mismatch", f"{instruction!r} under the task {task!r} of the label file"
    if not entries:
        return "episode without labels", f"{task}: timestep_labels is empty"
    previous = -1
    for index, entry in enumerate(entries):
        where = f"{task}: timestep_labels[{index}]"
        fields = entry if isinstance(entry, dict) else {}
        step, end = fields.get("timestep"), fields.get("is_substep_end")
        if not _is_count(step) or not isinstance(fields.get("APD_step"), str):
            return "wrong shape", f"{where}: expected timestep (a number) and APD_step (text), got {entry!r:.120}"
        if end not in (None, False, True):  # 0 and 1 equal the booleans
            return "wrong shape", f"{where}: is_substep_end: expected true, false, null, 0 or 1, got {end!r}"
        if step <= previous:
            return "overlap", f"{where}: timestep {step} after timestep {previous}: expected rising timesteps"
        if step >= length:
            return "end outside the episode", f"{where}: timestep {step} of an episode of {length} steps"
        previous = step
    return None


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _task_key(task: str) -> str:
    """How the original spells a task as a key."""
    return task.lower().strip().replace(" ", "_")


def _suite_key(name: str) -> str:
    """What the spellings of a suite's name have in common."""
    key = name.lower().replace("_no_noops", "")
    while key.startswith("libero_"):
        key = key.removeprefix("libero_")
    return key


def _suite(path: str | Path, suites: dict[str, Any], name: str) -> dict[str, Any]:
    """The tasks of dataset `name` in the file."""
    keys = [key for key in suites if _suite_key(key) == _suite_key(name)]
    if name in keys:
        keys = [name]
    if len(keys) != 1:
        what = f"expected one for dataset {name!r}, found {keys} among: {', '.join(list(suites)[:20])}"
        raise LabelError(str(path), [Problem("no such suite", None, what)])
    tasks = suites[keys[0]]
    if not isinstance(tasks, dict):
        raise LabelError(str(path), [Problem("wrong shape", None, f"{keys[0]}: expected tasks, got {tasks!r:.60}")])
    return tasks


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a repeated key, which Python's reader would drop silently, is an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise LabelError(str(path), [Problem("repeated key", None, f"{repeated!r} twice in one object")])
        return result

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise LabelError(str(path), [Problem("unreadable file", None, str(error))]) from error
    except json.JSONDecodeError as error:
        what = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise LabelError(str(path), [Problem("not JSON", None, what)]) from error
    except UnicodeDecodeError as error:
        raise LabelError(str(path), [Problem("not UTF-8", None, str(error))]) from error
    if not isinstance(content, dict):
        what = f"expected an object of suites, got {content!r:.60}"
        raise LabelError(str(path), [Problem("wrong shape", None, what)])
    return content
