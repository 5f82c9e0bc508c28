"""The scores of any system as a CSV file, one row a control step: `episode,step,score,label`; or the decision log of a robot.

A decision log (`eosjax.serving.decisions`) has one JSON object a line. Its events `step` have the scores, its events `truth` the true ends.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eosjax.ends.events import ScoredEpisode
from eosjax.types import UserError

LOG_SUFFIX = ".jsonl"
COLUMNS = ("episode", "step", "score", "label")


class ScoreFileError(UserError):
    """A score file that cannot be used."""


def read_scores(path: Path) -> list[ScoredEpisode]:
    """Reads a score file.

    The columns `episode` (any text), `step` (0, 1, 2, … within the episode), `score` (probability that a sub-step ends at this step) and
    `label` (1 where one ends, else 0) are found by their names in the first line; others are ignored. Rows may come in any order. A file
    whose name ends in `.jsonl` is a decision log.

    Returns:
      The episodes, in order of their first row.

    Raises:
      ScoreFileError: the file cannot be read, or a row or an episode is not as described.
    """
    episodes: dict[str, dict[int, tuple[float, bool]]] = {}
    for line, (episode, step, score, label) in _rows_of_log(path) if path.suffix == LOG_SUFFIX else _rows(path):
        if not episode:
            raise ScoreFileError(f"{path}, line {line}, column episode: expected a name, got nothing")
        if not (step.isascii() and step.isdecimal() and len(step) < 10):
            raise ScoreFileError(f"{path}, line {line}, column step: expected a whole number from 0 on, got {step!r}")
        probability, end = _number(score), _number(label)
        if not 0 <= probability <= 1:  # nor NaN
            raise ScoreFileError(f"{path}, line {line}, column score: expected a probability from 0 to 1, got {score!r}")
        if end not in (0, 1):
            raise ScoreFileError(f"{path}, line {line}, column label: expected 0 or 1, got {label!r}")
        steps = episodes.setdefault(episode, {})
        if int(step) in steps:
            raise ScoreFileError(f"{path}, line {line}, column step: step {int(step)} of episode {episode!r} came before")
        steps[int(step)] = probability, end == 1
    if not episodes:
        raise ScoreFileError(f"{path}: expected at least one row below the first line, got none")
    return [_episode(path, name, steps) for name, steps in episodes.items()]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of each line and its fields in the order of `COLUMNS`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for name in COLUMNS:
                if header.count(name) != 1:
                    found = f"{header.count(name)} of them" if name in header else ",".join(header) or "an empty line"
                    raise ScoreFileError(f"{path}, line 1: expected one column {name} (of {','.join(COLUMNS)}), got {found}")
            places = [header.index(name) for name in COLUMNS]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ScoreFileError(f"{path}, line {reader.line_num}: expected {len(header)} fields, got {len(row)}")
                yield reader.line_num, [row[place].strip() for place in places]
    except OSError as error:
        raise ScoreFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScoreFileError(f"{path}: expected CSV in UTF-8, got {error}") from error


def _rows_of_log(path: Path) -> list[tuple[int, list[str]]]:
    """The same of a decision log. An episode in which no true end is marked has no labels, and is refused."""
    steps: list[tuple[int, str, Any, Any]] = []
    true: dict[str, set[Any]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line, text in enumerate(file, 1):
                entry = json.loads(text)
                if not isinstance(entry, dict) or entry.get("event") not in ("step", "truth"):
                    continue
                episode, step = str(entry.get("episode", "")), entry.get("step")
                if entry["event"] == "truth" and step is None:  # somebody looked, and there was no end
                    true.setdefault(episode, set())
                    continue
                if type(step) is not int:
                    raise ScoreFileError(f"{path}, line {line}, step: expected a whole number, got {step!r:.40}")
                if entry["event"] == "truth":
                    true.setdefault(episode, set()).add(step)
                else:
                    steps.append((line, episode, step, entry.get("score")))
    except OSError as error:
        raise ScoreFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ScoreFileError):
            raise
        raise ScoreFileError(f"{path}: expected a JSON object a line, in UTF-8: {error}") from error
    for _, episode, _, _ in steps:
        if episode not in true:
            raise ScoreFileError(f"{path}, episode {episode!r}: no true end is marked (event `truth`), so there is nothing to compare with")
    return [(line, [episode, str(step), str(score), str(int(step in true[episode]))]) for line, episode, step, score in steps]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _episode(path: Path, name: str, steps: dict[int, tuple[float, bool]]) -> ScoredEpisode:
    missing = next((step for step in range(len(steps)) if step not in steps), None)
    if missing is not None:
        raise ScoreFileError(f"{path}, episode {name!r}: expected steps 0 to {max(steps)}, step {missing} is missing")
    scores, ends = zip(*(steps[step] for step in range(len(steps))), strict=True)
    return ScoredEpisode(name, np.array(scores, np.float64), np.array(ends, bool))
