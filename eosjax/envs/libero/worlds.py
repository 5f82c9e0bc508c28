"""LIBERO's tasks as `Worlds`: a simulator process a row, pictures only where somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from eosjax.envs.libero.processes import SimulatorDiedError, SimulatorProcess
from eosjax.envs.libero.session import Begin, Facts, Session
from eosjax.envs.libero.simulator import SIZE
from eosjax.envs.worlds import Truth, gather

LIMIT = 400  # steps of an episode
Start = Callable[[], SimulatorProcess]


class Pool:
    """Simulator processes that are used for one batch of episodes after the other.

    Args:
      start: makes a process.
    """

    def __init__(self, start: Start = lambda: SimulatorProcess(Session)) -> None:
        self._start = start
        self._processes: list[SimulatorProcess] = []

    def take(self, count: int) -> list[SimulatorProcess]:
        """So many processes, the same as before, except those that died."""
        self._processes = [each if each.alive else self._start() for each in self._processes]
        self._processes += [self._start() for _ in range(count - len(self._processes))]
        return self._processes[:count]


class LiberoWorlds:
    """One episode of LIBERO in each row. See `eosjax.envs.worlds.Worlds`.

    Args:
      pool: of processes, which no other worlds use any more.
      episodes: how each begins.

    Raises:
      WorldError: what no episode could be played with.
    """

    def __init__(self, pool: Pool, episodes: Sequence[Begin]) -> None:
        self._processes = pool.take(len(episodes))
        self.tasks = [each.task.language for each in episodes]
        self.plans = [each.task.plan for each in episodes]
        self.limit = LIMIT
        self._faults: dict[int, str] = {}
        self._facts = [Facts(np.zeros(len(plan), bool), False) for plan in self.plans]
        for row, facts in self._all(range(len(episodes)), "begin", [(each,) for each in episodes]):
            self._facts[row] = facts

    def observe(self, rows: Sequence[int]) -> dict[str, Any]:
        """See `Worlds`. A row that broke sees nothing, and the next step says so."""
        black = np.zeros((SIZE, SIZE, 3), np.uint8)
        seen = {row: ([black, black], np.zeros(8, np.float32)) for row in rows} | dict(self._all(rows, "observe", [()] * len(rows)))
        return gather([{"images": images, "state": state} for images, state in map(seen.__getitem__, rows)])

    def truth(self, rows: Sequence[int]) -> Truth:
        """See `Worlds`."""
        facts = [self._facts[row] for row in rows]
        return Truth([each.goals for each in facts], np.array([each.success for each in facts]))

    def step(self, rows: Sequence[int], actions: Sequence[np.ndarray]) -> dict[int, str]:
        """See `Worlds`."""
        for row, facts in self._all(rows, "step", [(action,) for action in actions]):
            self._facts[row] = facts
        return {row: self._faults[row] for row in rows if row in self._faults}

    def expert(self, row: int, substep: int) -> np.ndarray:
        """See `Worlds`."""
        return next((action for _, action in self._all([row], "expert", [(substep,)])), np.zeros(7, np.float32))

    def _all(self, rows: Iterable[int], method: str, arguments: Sequence[tuple[Any, ...]]) -> list[tuple[int, Any]]:
        """Asks the rows that did not break, all at the same time; those that answered."""
        asked = [(row, given) for row, given in zip(rows, arguments, strict=True) if row not in self._faults]
        for row, given in asked:
            self._processes[row].ask(method, *given)
        answered = []
        for row, _ in asked:
            try:
                answered.append((row, self._processes[row].reply()))
            except SimulatorDiedError as error:
                self._faults[row] = str(error)
        return answered
