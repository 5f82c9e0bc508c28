"""The decision logs of a rollout through a server: as a robot's (`eosjax.serving.decisions`), with what the environment knows added."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eosjax.ends.closed_loop import Trace
from eosjax.envs.rollout import Asked
from eosjax.serving.decisions import DecisionLog


class DecisionFolder:
    """A log for each episode while it is played, and one of all once they are finished.

    Args:
      out: folder of the rollout.
      name: of switcher and executor.
    """

    def __init__(self, out: Path, name: str) -> None:
        self._folder = out / "decisions" / name
        self._whole = out / f"decisions-{name}.jsonl"
        self._open: dict[int, DecisionLog] = {}

    def log(self, asked: Asked) -> DecisionLog:
        """Where the broker of a sub-step writes. An episode that begins is logged anew."""
        first = asked.episode not in self._open
        if first:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._path(asked.episode)
            path.unlink(missing_ok=True)
            self._open[asked.episode] = DecisionLog(path)
        return _InEpisode(self._open[asked.episode], asked, () if first else ("episode",))

    def finish(self, trace: Trace) -> None:
        """Leaves out what was planned and not played, and adds the true ends and the outcome."""
        log = self._open.pop(trace.episode)
        log.close()
        path = self._path(trace.episode)
        played = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(json.loads(line)) < trace.steps]
        path.write_text("".join(f"{line}\n" for line in played), encoding="utf-8")
        log = DecisionLog(path)
        episode = str(trace.episode)
        true = [held for held in (*(switch.held for switch in trace.switches), trace.held) if held >= 0]
        for step in true or [None]:  # null: it is known that there was none
            log.write("truth", episode=episode, step=step)
        log.write("done", episode=episode, step=trace.steps, outcome="completed" if len(trace.switches) == len(trace.reached) else "limit")
        log.close()

    def join(self, episodes: Sequence[int]) -> Path | None:
        """The file with the logs of all of these episodes; None if one is missing, of a rollout that was begun without logs."""
        paths = [self._path(episode) for episode in episodes]
        if not all(path.is_file() for path in paths):
            return None
        temporary = self._whole.with_name(f".{self._whole.name}.{os.getpid()}")
        temporary.write_text("".join(path.read_text(encoding="utf-8") for path in paths), encoding="utf-8")
        os.replace(temporary, self._whole)
        return self._whole

    def close(self) -> None:
        """Closes the logs of episodes that are not finished."""
        for log in self._open.values():
            log.close()

    def _path(self, episode: int) -> Path:
        return self._folder / f"{episode}.jsonl"


class _InEpisode(DecisionLog):
    """What the broker of one sub-step writes, with its place in the episode; it knows nothing of the end of the episode.

    Args:
      log: of the episode.
      asked: with which the sub-step begins.
      without: events that are left out.
    """

    def __init__(self, log: DecisionLog, asked: Asked, without: Sequence[str]) -> None:
        super().__init__(None)
        self._log, self._begin, self._place, self._without = log, asked.step, asked.place, (*without, "done")

    def write(self, event: str, **fields: Any) -> None:
        """Appends one line."""
        if event not in self._without:
            moved = {name: fields[name] + self._begin for name in ("step", "at") if name in fields}
            self._log.write(event, **{**fields, **moved, "sub_step": self._place})


def _step(entry: dict[str, Any]) -> int:
    """The step that an entry is about: of an end the last of the sub-step."""
    return entry["at"] if entry["event"] == "end" else entry["step"]
