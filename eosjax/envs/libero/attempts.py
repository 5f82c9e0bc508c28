"""Attempts in LIBERO's tasks, for `eosjax collect`: made without pictures first, and rendered from the saved states if they are kept."""

from __future__ import annotations

import numpy as np

from eosjax.data.rlds.write import Recorded, jpeg
from eosjax.envs.attempts import DEMONSTRATION
from eosjax.envs.libero.expert import Style
from eosjax.envs.libero.recordings import Recording, record
from eosjax.envs.libero.session import simulator
from eosjax.envs.libero.simulator import SIZE, Simulator, find_tasks
from eosjax.envs.libero.tasks import VERBS, Task
from eosjax.types import UserError

_TRIALS = 20  # at a demonstration, until one succeeds


class LiberoSource:
    """Attempts in the tasks of a suite, one task after the other. See `eosjax.envs.attempts.Source`.

    Args:
      suite: of LIBERO.
      numbers: of the tasks.
      plain: pictures without reflections and antialiasing.
    """

    size = SIZE

    def __init__(self, suite: str, numbers: tuple[int, ...], plain: bool) -> None:
        self._tasks, self._plain = find_tasks(suite, numbers), plain
        self.dataset = f"{suite}_expert"

    def make(self, seed: tuple[int, int], kind: str, rng: np.random.Generator, file_path: str) -> tuple[bool, Recorded]:
        """See `Source`. A demonstration that fails is made again with other random numbers."""
        task = self._tasks[seed[1] % len(self._tasks)]
        table = simulator(task, self._plain)
        style, lose_after = _plan_of(kind, rng)
        for trial in range(_TRIALS if kind == DEMONSTRATION else 1):
            random = np.random.default_rng((*seed, trial))
            found = record(table, int(random.integers(2**31)), random, style, lose_after)
            if kind != DEMONSTRATION or (found.success and found.end.sum() == len(task.plan)):
                return found.success, _recorded(table, found, task, file_path)
        raise UserError(f"{task.suite}:{task.number}: no success in {_TRIALS} trials of episode {seed[1]}; choose other tasks")


def _plan_of(kind: str, rng: np.random.Generator) -> tuple[Style, int | None]:
    """How the expert of an attempt acts, and when it loses what it carries."""
    recover = bool(rng.random() < 0.5)
    if kind == "missed":
        misses = int(rng.integers(1, 3))
        return Style(misses=misses, tries=misses + 3 * recover), None
    if kind == "lost":
        return Style(recover=recover), int(rng.integers(1, 25))
    return Style(beside=kind == "beside"), None


def _recorded(table: Simulator, recording: Recording, task: Task, file_path: str) -> Recorded:
    """A recording as it is written into a dataset; the simulator still has its scene."""
    views: tuple[list[bytes], list[bytes]] = ([], [])
    for state in recording.states:
        table.show(state)
        for view, picture in zip(views, table.pictures(), strict=True):
            view.append(jpeg(picture))
    reward = np.zeros(len(recording.action), np.float32)
    reward[-1] = recording.success
    return Recorded(
        file_path=file_path,
        task=task.language,
        images=views[0],
        wrist_images=views[1],
        state=recording.robot,
        joints=recording.joints,
        action=recording.action,
        reward=reward,
        plan=task.plan,
        verbs=VERBS,
        substep=recording.substep,
        end=recording.end,
    )
