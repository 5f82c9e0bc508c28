"""Plan files: for each task its sub-steps in words, `[{"suite", "instruction": {"raw", "plan": [{"step", "subgoal", …}]}}]`."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eosjax.data.labels.files import is_count
from eosjax.data.labels.labeller import FoundSegment, NotFound
from eosjax.documents import DocumentError, read_json
from eosjax.fields import show
from eosjax.names import instruction_fault
from eosjax.types import UserError

Plans = dict[str, list[str]]  # sub-steps by task, spelt as `_task` does

_MOVES = "move reach go return approach carry transport bring retreat withdraw"
_VERBS = {
    **dict.fromkeys(_MOVES.split(), ("reach", "carry", "leave")),
    **dict.fromkeys("pick grasp grab take lift raise".split(), ("pick",)),
    **dict.fromkeys("place put lower release drop".split(), ("place",)),
    # Not part of a pick and place: a plan with these does not describe the detected sub-steps, even if the numbers agree.
    **dict.fromkeys("push pull open close turn rotate press slide wipe pour".split(), ()),
}


class PlanError(UserError):
    """A plan file that cannot be read."""


def read_plans(path: str | Path, dataset: str) -> Plans:
    """The plans of a dataset: those whose suite is the dataset's name, or that without `libero_` and `_no_noops`.

    Raises:
        PlanError: unreadable, not JSON, another shape (names the entry), two plans of one task, or none of the dataset.
    """
    try:
        entries = read_json(Path(path))
    except DocumentError as error:
        raise PlanError(f"--plan {error}") from error
    if not isinstance(entries, list):
        raise PlanError(f"--plan {path}: expected a list of plans, got {show(entries)}")
    plans: Plans = {}
    suites = set()
    for index, entry in enumerate(entries):
        suite, task, steps = _entry(entry, f"--plan {path}: entry {index}")
        suites.add(suite)
        if _suite(suite) != _suite(dataset):
            continue
        if plans.setdefault(task, steps) != steps:
            raise PlanError(f"--plan {path}: entry {index}: another plan of the task {task!r}")
    if not plans:
        raise PlanError(f"--plan {path}: no plan of the suite of {dataset!r}; the file has: {', '.join(sorted(suites))}")
    return plans


def plan_instructions(plans: Plans, task: str, segments: Sequence[FoundSegment]) -> list[str]:
    """The instruction of each segment of an episode, from the plan of its task.

    Raises:
        NotFound: no plan of the task, another number of sub-steps in it, or one that begins with the verb of another motion.
    """
    steps = plans.get(_task(task))
    if steps is None:
        raise NotFound(f"the plan file has no plan of {task!r}")
    if len(steps) != len(segments):
        raise NotFound(f"{len(segments)} sub-steps found, {len(steps)} in the plan of {task!r}")
    for number, (step, segment) in enumerate(zip(steps, segments, strict=True), 1):
        kinds = _VERBS.get(step.split()[0].lower())
        if kinds is not None and segment.kind not in kinds:
            raise NotFound(f"sub-step {number} is a {segment.kind}, and {step!r} in the plan of {task!r}")
    return steps


def _entry(entry: Any, where: str) -> tuple[str, str, list[str]]:
    """(suite, task, sub-steps) of an entry of the file."""
    try:
        suite, task = entry["suite"], entry["instruction"]["raw"]
        steps = [(step["step"], step["subgoal"]) for step in entry["instruction"]["plan"]]
        sound = isinstance(suite, str) and all(map(is_count, dict(steps))) and all(map(_says, [task, *dict(steps).values()]))
    except (KeyError, TypeError):
        sound, suite, task, steps = False, "", "", []
    if not sound:
        shape = '{"suite", "instruction": {"raw", "plan": [{"step", "subgoal"}]}}'
        raise PlanError(f"{where}: expected {shape} with texts that are not blank and step numbers, got {show(entry)}")
    if len(dict(steps)) < len(steps):
        raise PlanError(f"{where}: expected each step number once, got {show([number for number, _ in steps])}")
    return suite, _task(task), [text.strip() for _, text in sorted(steps)]


def _says(text: Any) -> bool:
    return isinstance(text, str) and instruction_fault(text) is None


def _task(task: str) -> str:
    return " ".join(unicodedata.normalize("NFC", task.lower()).replace("_", " ").split())


def _suite(name: str) -> str:
    key = name.lower().removesuffix("_no_noops").removeprefix("libero_")
    return "long" if key == "10" else key  # two names of the same LIBERO suite
