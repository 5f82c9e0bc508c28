"""The finished episodes of a rollout on disk: one JSON file each, so that an interrupted command goes on where it was."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eosjax.documents import read_json
from eosjax.ends.closed_loop import Episode, Film, Switch, Trace
from eosjax.types import UserError

SETTINGS_FILE = "rollout.json"
Who = tuple[str, str]  # switcher and executor


class EpisodeFolder:
    """The episodes of one checkpoint, environment and seed.

    Args:
      folder: made if it is not there.
      settings: what all its episodes have in common; plain JSON values.

    Raises:
      UserError: the folder has episodes with other settings, or cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        path = folder / SETTINGS_FILE
        if path.exists():
            found = read_json(path)
            found = found if isinstance(found, dict) else {}
            other = [f"{key} {found.get(key)!r}, now {value!r}" for key, value in settings.items() if found.get(key) != value]
            if other:
                raise UserError(f"--out {folder}: has episodes with other settings: {'; '.join(other)}; choose another folder or remove it")
        else:
            _write(path, dict(settings))

    def read(self, who: Who, number: int) -> Episode | None:
        """The episode from the start state with this number, if it is finished."""
        path = self._path(who, number)
        return _from_json(read_json(path)) if path.exists() else None

    def write(self, who: Who, episode: Episode) -> None:
        """Keeps a finished episode."""
        _write(self._path(who, episode.trace.episode), _to_json(episode))

    def _path(self, who: Who, number: int) -> Path:
        return self._folder / "episodes" / "-".join(who) / f"{number:05d}.json"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _to_json(episode: Episode) -> dict[str, Any]:
    film = episode.film and {
        "instruction": episode.film.instruction,
        "eos": [None if np.isnan(each) else float(each) for each in episode.film.eos],
        "holds": episode.film.holds.tolist(),
        "at": episode.film.at,
        "pictures": [[base64.b64encode(picture).decode() for picture in pictures] for pictures in episode.film.pictures],
    }
    trace = episode.trace._asdict() | {"switches": [list(switch) for switch in episode.trace.switches]}
    return {"trace": trace, "film": film, "fault": episode.fault}


def _from_json(content: Any) -> Episode:
    trace, film = content["trace"], content["film"]
    switches = tuple(Switch(*each) for each in trace["switches"])
    return Episode(
        Trace(**{**trace, "reached": tuple(trace["reached"]), "switches": switches}),
        film
        and Film(
            film["instruction"],
            np.array([np.nan if each is None else each for each in film["eos"]], np.float32),
            np.array(film["holds"], bool),
            film["at"],
            [[base64.b64decode(picture) for picture in pictures] for pictures in film["pictures"]],
        ),
        content["fault"],
    )
