"""Formats 1 and 2: one JSON entry per step, nested by suite and task, or flat. Both have the same body per episode.

The body: `{"instruction", "total_timesteps", "timestep_labels": [{"timestep", "APD_step", "is_substep_end", …}]}`.
Timesteps may be left out: a gap has the instruction of the last entry before it, and an end exists only where an entry
says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from eosjax.data.labels.files import episode_number, fields_fault, is_count
from eosjax.data.labels.table import Kind, Problem, Segment, SegmentTable, make_table, refused, task_key
from eosjax.fields import Field, show, table

BODY = table(
    Field("instruction", "honoured", "the task; compared with that of the dataset"),
    Field("total_timesteps", "honoured", "number of steps; compared with that of the dataset"),
    Field("timestep_labels", "honoured", "the entries of the steps"),
    *(Field(name, "harmless", "counts and texts for people") for name in "labeled_timesteps summary original_instruction substeps".split()),
)
ENTRY = table(
    Field("timestep", "honoured", "the step"),
    Field("APD_step", "honoured", "the instruction of the sub-step"),
    Field("is_substep_end", "honoured", "whether a sub-step ends at this step"),
    *(Field(name, "harmless", "kind of the motion, for people") for name in ("action", "cycle", "APD_prep_step")),
)
_FLAT_KEY = re.compile(r"(?P<dataset>.+)_episode_(?P<episode>[0-9]{1,9})")


def suites_mismatch(content: Any) -> str | None:
    """Why parsed JSON is not of format 1, `{suite: {task: {"episode_N": body}}}`; None when it may be."""
    if not isinstance(content, dict) or not content:
        return f"expected an object of suites, got {show(content)}"
    suites = {key: value for key, value in content.items() if not _is_flat_item(key, value)}
    if not suites:
        return f"expected an object of suites, got keys like {next(iter(content))!r}"
    reasons = [_suite_mismatch(*suite) for suite in suites.items()]
    return None if None in reasons else reasons[0]


def flat_mismatch(content: Any) -> str | None:
    """Why parsed JSON is not of format 2, `{"<dataset>_episode_N": body}`; None when it may be."""
    if isinstance(content, dict) and any(_is_flat_item(*item) for item in content.items()):
        return None
    got = f"keys {', '.join(list(content)[:3])}" if isinstance(content, dict) else f"{show(content)}"
    return f"expected keys <dataset>_episode_N with timestep_labels, got {got}"


def read_suites(source: object, content: dict[str, Any], name: str) -> SegmentTable:
    """The table of suite `name` in format 1. The suite key may have or lack `_no_noops` and may begin with `LIBERO_`.

    Raises:
        LabelError: no such suite, or another shape. Faults within single episodes are kept in the table.
    """
    suite = _of_dataset(source, {key: key for key in content}, name)
    if reason := _suite_mismatch(suite, content[suite]):
        raise refused(source, "wrong shape", reason)
    reader = _Reader()
    for task, episodes in content[suite].items():
        for key, body in episodes.items():
            number = episode_number(key.removeprefix("episode_")) if key.startswith("episode_") else None
            if number is None:
                reader.problems.append(Problem("wrong shape", None, f"{task}: expected keys episode_N, got {show(key)}"))
            else:
                reader.add(number, task, task, body)
    return reader.table(source)


def read_flat(source: object, content: dict[str, Any], name: str) -> SegmentTable:
    """The table of dataset `name` in format 2; episodes of other datasets in the file are ignored.

    Raises:
        LabelError: no such dataset. Faults within single episodes are kept in the table.
    """
    reader = _Reader()
    matches = {key: _FLAT_KEY.fullmatch(key) for key in content}
    for key, match in matches.items():
        if match is None:
            reader.problems.append(Problem("wrong shape", None, f"expected keys <dataset>_episode_N, got {show(key)}"))
    datasets = {match["dataset"]: match["dataset"] for match in matches.values() if match}
    dataset = _of_dataset(source, datasets, name)
    for key, match in matches.items():
        if match and match["dataset"] == dataset:
            reader.add(int(match["episode"]), key, None, content[key])
    return reader.table(source)


class _Reader:
    """Collects episodes and their problems."""

    def __init__(self) -> None:
        self.segments: dict[int, list[Segment]] = {}
        self.lengths: dict[int, int] = {}
        self.tasks: dict[int, str] = {}
        self.problems: list[Problem] = []

    def add(self, episode: int, where: str, task: str | None, body: Any) -> None:
        """One body; `task` is the task by its key in the file, where there is one."""
        wrong = _body_problem(where, task, body)
        if episode in self.lengths:
            wrong = "overlap", f"{where}: labelled under {self.tasks[episode]!r} too"
        if wrong:
            self.problems.append(Problem(wrong[0], episode, wrong[1]))
            return
        self.lengths[episode] = body["total_timesteps"]
        self.tasks[episode] = body.get("instruction", task)
        self.segments[episode] = list(_segments(body["timestep_labels"], body["total_timesteps"]))

    def table(self, source: object) -> SegmentTable:
        return make_table(self.segments, source, self.lengths, self.tasks, self.problems)


def _segments(entries: list[dict[str, Any]], length: int) -> Iterator[Segment]:
    """The segments of an episode's checked entries, without gaps from the first one on."""
    if not entries:
        return
    first, instruction = entries[0]["timestep"], entries[0]["APD_step"]
    for entry in entries:
        step = entry["timestep"]
        if entry["APD_step"] != instruction:
            if first < step:
                yield Segment(first, step - 1, False, instruction)
            first, instruction = step, entry["APD_step"]
        if entry.get("is_substep_end"):
            yield Segment(first, step, True, instruction)
            first = step + 1
    if first < length:
        yield Segment(first, length - 1, False, instruction)


def _body_problem(where: str, task: str | None, body: Any) -> tuple[Kind, str] | None:
    """(kind, what) of the first problem of an episode of the file; None without a problem."""
    entries = body.get("timestep_labels") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        return "wrong shape", f"{where}: expected a list timestep_labels, got {show(body)}"
    if fault := fields_fault(body, BODY):
        return "wrong shape", f"{where}: {fault}"
    length = body.get("total_timesteps")
    if not is_count(length):
        return "wrong shape", f"{where}: total_timesteps: expected a number of steps, got {length!r}"
    instruction = body.get("instruction", task)
    if not isinstance(instruction, str):
        return "wrong shape", f"{where}: instruction: expected text, got {show(instruction)}"
    if task is not None and task_key(instruction) != task_key(task):
        return "instruction mismatch", f"{instruction!r} under the task {task!r} of the label file"
    previous = -1
    for index, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        step, end = fields.get("timestep"), fields.get("is_substep_end")
        at = f"{where}: timestep_labels[{index}]"
        if not is_count(step) or not isinstance(fields.get("APD_step"), str):
            return "wrong shape", f"{at}: expected timestep (a number) and APD_step (text), got {show(entry)}"
        if fault := fields_fault(fields, ENTRY):
            return "wrong shape", f"{at}: {fault}"
        if end not in (None, False, True):  # 0 and 1 equal the booleans
            return "wrong shape", f"{at}: is_substep_end: expected true, false, null, 0 or 1, got {end!r}"
        if step <= previous:
            return "overlap", f"{at}: timestep {step} after timestep {previous}: expected rising timesteps"
        if step >= length:
            return "end outside the episode", f"{at}: timestep {step} of an episode of {length} steps"
        previous = step
    return None


def _suite_mismatch(suite: str, tasks: Any) -> str | None:
    """Why a value of the file has not the tasks of a suite; None when it has."""
    if not isinstance(tasks, dict):
        return f"{suite}: expected tasks, got {show(tasks)}"
    wrong = [f"{task}: expected episodes, got {show(episodes)}" for task, episodes in tasks.items() if not isinstance(episodes, dict)]
    return wrong[0] if wrong else None


def _is_flat_item(key: str, value: Any) -> bool:
    return _FLAT_KEY.fullmatch(key) is not None and isinstance(value, dict) and "timestep_labels" in value


def _suite_key(name: str) -> str:
    """The common form of the spellings of a suite's name."""
    key = name.lower().replace("_no_noops", "")
    while key.startswith("libero_"):
        key = key.removeprefix("libero_")
    return key


def _of_dataset(source: object, keys: Mapping[str, Any], name: str) -> str:
    """The one of the keys that means dataset `name`."""
    found = [name] if name in keys else [key for key in keys if _suite_key(key) == _suite_key(name)]
    if len(found) != 1:
        what = f"expected one for dataset {name!r}, found {found} among: {', '.join(list(keys)[:20])}"
        raise refused(source, "no such suite", what)
    return found[0]
