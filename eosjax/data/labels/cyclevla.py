"""Format 5, CycleVLA: one JSON object per episode, in a folder of files or in one list.

The object: `{"metadata": {"episode_id", "n_steps", "language_instruction"}, "chunks": [{"start", "end", "subtask"}]}`.
`end` is inclusive. A chunk without `subtask` is not labelled. Layout of the folder as in
github.com/dannymcy/cyclevla_code: `episode_N/chunks_summary.json` (`N` may be followed by `_llm` or `_manual`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eosjax.data.labels.files import episode_number, fields_fault, is_count, read_json
from eosjax.data.labels.table import Problem, Segment, SegmentTable, make_table, refused
from eosjax.fields import Field, show, table

EPISODE = table(
    Field("metadata", "honoured", "which episode it is"),
    Field("chunks", "honoured", "the sub-steps"),
    Field("features", "honoured", "only the number of its states: that of the steps, before an idle tail is cut off"),
)
METADATA = table(
    Field("episode_id_pseudo", "honoured", "place of the episode in the dataset"),
    Field("episode_id", "honoured", "the same, where there is no episode_id_pseudo"),
    Field("n_steps", "honoured", "number of steps; compared with that of the dataset"),
    Field("language_instruction", "honoured", "the task; compared with that of the dataset"),
    Field("file_path", "harmless", "where the episode came from"),
    Field("caption", "harmless", "description of the scene"),
)
CHUNK = table(
    Field("start", "honoured", "first step"),
    Field("end", "honoured", "last step, inclusive"),
    Field("subtask", "honoured", "the instruction; a chunk without it is not labelled"),
    Field("value", "harmless", "state of the gripper"),
)
# Where an episode has several folders, CycleVLA's own builder takes the first of these.
_FOLDERS = re.compile(r"(?P<episode>episode_[0-9]{1,9})(?P<made>|_llm|_manual)")
_PRECEDENCE = ("", "_llm", "_manual")


@dataclasses.dataclass(frozen=True, repr=False)
class EpisodeFiles:
    """The parsed JSON files of a folder, by their path in it."""

    bodies: dict[str, Any]

    def __repr__(self) -> str:
        return "a folder of JSON files"


def read_folder(folder: Path) -> EpisodeFiles:
    """Every `*/chunks_summary.json` of a folder or, if it has none, every `*.json`; `LabelError` when it has neither.

    Of `episode_3`, `episode_3_llm` and `episode_3_manual` the first one counts, as for CycleVLA's builder of datasets.
    """
    files = _preferred(sorted(folder.glob("*/chunks_summary.json"))) or sorted(folder.glob("*.json"))
    if not files:
        looked_for = "meta/info.json (LeRobot), */chunks_summary.json or *.json (CycleVLA)"
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
        raise refused(folder, "unknown format", f"looked for {looked_for}; found {found}")
    return EpisodeFiles({str(file.relative_to(folder)): read_json(file) for file in files})


def _preferred(files: list[Path]) -> list[Path]:
    """The files but those of an episode that another one of higher precedence has."""
    named = [(file, _FOLDERS.fullmatch(file.parent.name)) for file in files]
    ranks: dict[str, list[int]] = {}
    for _, match in named:
        if match:
            ranks.setdefault(match["episode"], []).append(_PRECEDENCE.index(match["made"]))
    return [file for file, match in named if not match or _PRECEDENCE.index(match["made"]) == min(ranks[match["episode"]])]


def mismatch(content: Any) -> str | None:
    """Why what was read is not of this format; None when it is."""
    bodies = _bodies(content)
    for where, body in bodies.items():
        if not isinstance(body, dict) or not {"metadata", "chunks"} <= body.keys():
            got = f"keys {', '.join(list(body)[:5])}" if isinstance(body, dict) else f"{show(body)}"
            return f"{where + ': ' if where else ''}expected metadata and chunks, got {got}"
    return None if bodies else "expected a list of episodes, got an empty one"


def read_episodes(source: object, content: Any, name: str) -> SegmentTable:
    """The table of parsed episodes of format 5. The format has no dataset names, so `name` is ignored.

    Raises:
        LabelError: never; faults within single episodes are kept in the table.
    """
    lengths: dict[int, int] = {}
    tasks: dict[int, str] = {}
    segments: dict[int, list[Segment]] = {}
    problems: list[Problem] = []
    found_in: dict[int, str] = {}
    for where, body in _bodies(content).items():
        metadata = body["metadata"] if isinstance(body["metadata"], dict) else {}
        if fault := fields_fault(body, EPISODE) or fields_fault(metadata, METADATA):
            problems.append(Problem("wrong shape", None, f"{where}: {fault}"))
            continue
        # `episode_id` is the source's own number in Bridge; the place in the dataset is then the pseudo id.
        number = episode_number(str(metadata.get("episode_id_pseudo", metadata.get("episode_id"))))
        length, task, chunks = metadata.get("n_steps"), metadata.get("language_instruction"), body["chunks"]
        if not (number is not None and is_count(length) and isinstance(task, str) and isinstance(chunks, list)):
            what = f"{where}: expected metadata with episode_id, n_steps, language_instruction and a list chunks"
            problems.append(Problem("wrong shape", None, f"{what}, got {show(body['metadata'])}"))
            continue
        if number in found_in:
            problems.append(Problem("overlap", number, f"labelled in {found_in[number]} and in {where}"))
            continue
        found_in[number] = where
        wrong = next(_chunk_problems(number, where, chunks), None)
        if wrong:
            problems.append(wrong)
            continue
        lengths[number], tasks[number] = _true_length(body, length), task
        segments[number] = [Segment(c["start"], c["end"], True, c["subtask"]) for c in chunks if "subtask" in c]
    return make_table(segments, source, lengths, tasks, problems)


def _bodies(content: Any) -> dict[str, Any]:
    """The episodes by where they are."""
    if isinstance(content, EpisodeFiles):
        return content.bodies
    if isinstance(content, list):
        return {f"[{index}]": body for index, body in enumerate(content)}
    return {"": content}


def _true_length(body: dict[str, Any], n_steps: int) -> int:
    """Number of steps of the episode. CycleVLA lowers `n_steps` when it cuts off an idle tail, but keeps a state for every step."""
    features = body.get("features")
    states = features.get("state_3d") if isinstance(features, dict) else None
    return max(n_steps, len(states)) if isinstance(states, list) else n_steps


def _chunk_problems(episode: int, where: str, chunks: list[Any]) -> Iterator[Problem]:
    for index, chunk in enumerate(chunks):
        fields = chunk if isinstance(chunk, dict) else {}
        if fault := fields_fault(fields, CHUNK):
            yield Problem("wrong shape", episode, f"{where}: chunks[{index}]: {fault}")
        start, end, subtask = fields.get("start"), fields.get("end"), fields.get("subtask", "")
        if not is_count(start) or not is_count(end) or not isinstance(subtask, str):
            what = f"{where}: chunks[{index}]: expected start, end (numbers) and subtask (text), got {show(chunk)}"
            yield Problem("wrong shape", episode, what)
