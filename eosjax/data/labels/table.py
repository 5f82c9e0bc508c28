"""The common form of labels that every importer makes: segments of episodes, and the metadata of the episodes in the label file."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from eosjax.documents import Fault
from eosjax.fields import show
from eosjax.names import instruction_fault
from eosjax.types import UserError

_LISTED_PROBLEMS = 10

Kind = Literal[
    # of a file
    Fault,
    "missing columns",
    "wrong shape",
    "unknown format",
    "no such suite",
    # of an episode
    "episode without labels",
    "blank task",
    "empty episode",
    "unusable instruction",
    "labels without episode",
    "length mismatch",
    "instruction mismatch",
    "fps mismatch",
    "unknown sub-step",
    "empty segment",
    "overlap",
    "end outside the episode",
    # of all labels together
    "implausible",
]


# Faults that leave an episode out where `--allow` has the name (see `eosjax.flag_values.ALLOWANCES`).
LEFT_OUT_BY: dict[Kind, str] = {
    "episode without labels": "unlabelled",
    "blank task": "blank_tasks",
    "empty episode": "empty_episodes",
}


class Problem(NamedTuple):
    """One fault of a label file."""

    kind: Kind  # problems are counted by kind
    episode: int | None  # None: not the problem of one episode
    what: str  # where, what was expected, what came


class LabelError(UserError):
    """Labels that cannot be read, joined or written. `problems` has all faults, the message the first ten."""

    def __init__(self, source: str, problems: Sequence[Problem]):
        self.problems = list(problems)
        totals = ", ".join(f"{count} x {kind}" for kind, count in Counter(p.kind for p in problems).items())
        lines = [f"  {p.kind}: {'' if p.episode is None else f'episode {p.episode}: '}{p.what}" for p in problems]
        hidden = len(lines) - _LISTED_PROBLEMS
        more = [f"  … and {hidden} more"] if hidden > 0 else []
        if all(p.kind in LEFT_OUT_BY for p in problems):
            names = dict.fromkeys(LEFT_OUT_BY[p.kind] for p in problems)
            more.append(f"  --allow {','.join(names)} leaves such episodes out, if others remain")
        super().__init__("\n".join([f"{source}: labels refused: {totals}", *lines[:_LISTED_PROBLEMS], *more]))


def refused(source: object, kind: Kind, what: str) -> LabelError:
    """The error of one problem that is not one episode's."""
    return LabelError(str(source), [Problem(kind, None, what)])


class Segment(NamedTuple):
    """A stretch of an episode with one instruction."""

    first: int
    last: int  # inclusive
    is_end: bool  # a sub-step ends at `last`
    instruction: str


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentTable:
    """Labels of any format in one form: S segments as columns, and the file's metadata of each episode.

    An episode that cannot be read is in `problems` and nowhere else. One without segments is *unlabelled*.

    Attributes:
        episode, segment, first, last: i64 [S]; `segment` counts within the episode, `last` is inclusive.
        is_end: bool [S]: a sub-step ends at `last`. A segment before a gap may have no end.
        instruction: S strings.
        source: where the labels came from.
        lengths: number of steps of each episode of the label file, as the file has it.
        tasks: task instruction of each episode of the label file, as the file has it.
        problems: faults within the file; the join raises them together with its own.
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

    def __post_init__(self) -> None:
        columns = (self.episode, self.segment, self.first, self.last, self.is_end, self.instruction)
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"columns of one length expected, got {[len(column) for column in columns]}")
        if not set(self.episode.tolist()) <= self.lengths.keys() or self.lengths.keys() != self.tasks.keys():
            raise ValueError("`lengths` and `tasks` must have every episode with segments")


def make_table(
    segments: Mapping[int, Iterable[Segment]],
    source: object,
    lengths: dict[int, int],
    tasks: dict[int, str],
    problems: Iterable[Problem] = (),
) -> SegmentTable:
    """The table of each episode's segments, sorted by episode; the segments keep their order.

    An episode with an instruction that nobody could follow becomes a problem.
    """
    blank = {episode: problem for episode, parts in segments.items() if (problem := _unusable_instruction(episode, parts))}
    lengths = {episode: length for episode, length in lengths.items() if episode not in blank}
    tasks = {episode: task for episode, task in tasks.items() if episode not in blank}
    rows = [(episode, index, *segment) for episode in sorted(segments.keys() - blank) for index, segment in enumerate(segments[episode])]
    columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * 6
    episode, segment, first, last = (np.array(column, np.int64) for column in columns[:4])
    is_end, instruction = np.array(columns[4], bool), list(columns[5])
    return SegmentTable(episode, segment, first, last, is_end, instruction, str(source), lengths, tasks, (*problems, *blank.values()))


def _unusable_instruction(episode: int, segments: Iterable[Segment]) -> Problem | None:
    """The first segment without an instruction that can be written into a prompt."""
    for number, (first, last, _, text) in enumerate(segments):
        if fault := instruction_fault(text):
            what = f"segment {number}, steps {first} to {last}: {fault}; got {show(text)}"
            return Problem("unusable instruction", episode, what)
    return None


def misplaced(table: SegmentTable, lengths: Mapping[int, int]) -> Iterator[Problem]:
    """Segments that are empty, leave their episode (of `lengths`, where it has it) or overlap an earlier one."""
    covered: dict[int, int] = {}  # last step that a segment of the episode covers so far
    for row in np.lexsort((table.first, table.episode)):
        episode, first, last = int(table.episode[row]), int(table.first[row]), int(table.last[row])
        which = f"segment {table.segment[row]} ({table.instruction[row]!r}), steps {first} to {last}"
        length = lengths.get(episode)
        if last < first:
            yield Problem("empty segment", episode, which)
        elif first < 0 or (length is not None and last >= length):
            yield Problem("end outside the episode", episode, f"{which}, in an episode of {length} steps")
        before = covered.get(episode, -1)
        if 0 <= first <= before:
            yield Problem("overlap", episode, f"{which}, but an earlier segment lasts to step {before}")
        covered[episode] = max(before, last)


def task_key(task: str) -> str:
    """How the original spells a task as a key, in one Unicode form (NFC); tasks with the same key count as the same."""
    return unicodedata.normalize("NFC", task.lower().strip()).replace(" ", "_")
