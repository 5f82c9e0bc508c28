"""Environments by the names that `--env` takes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from eosjax.envs.attempts import DemoSource, Source
from eosjax.envs.demo import DemoWorlds
from eosjax.envs.libero.attempts import LiberoSource
from eosjax.envs.libero.session import Begin
from eosjax.envs.libero.simulator import find_tasks
from eosjax.envs.libero.tasks import COVERED, split_name
from eosjax.envs.libero.worlds import LiberoWorlds, Pool
from eosjax.envs.worlds import GymWorlds, WorldError, Worlds

DEMO = "demo"
BUILT_IN = (DEMO, *(f"{suite}[:tasks]" for suite in COVERED))
_ROLLOUT = 20_000_003  # tells the start states of rollouts from those of demonstrations with the same seed
MakeWorlds = Callable[[Sequence[int]], Worlds]  # numbers of start states -> environments at them
_AT_ONCE = 64  # episodes
_MOST_SIMULATORS = 16  # of LIBERO; each takes a core and about 2 GB


class Environment(NamedTuple):
    """An environment that was opened by its name."""

    make: MakeWorlds
    at_once: int  # episodes that are to be played together


def open_env(name: str, seed: int, plain_pictures: bool) -> Environment:
    """The environment of this name: `demo`, a suite of LIBERO, or `module:function` of a user's own Gymnasium environment.

    A start state depends on the name, `seed` and its number alone.

    Args:
      name: of the environment.
      seed: of the start states.
      plain_pictures: see `open_source`.

    Raises:
      WorldError: no such environment, module or function, or one that makes no Gymnasium environment.
    """
    kind, colon, function = name.partition(":")
    if name == DEMO:
        return Environment(lambda numbers: DemoWorlds([(_ROLLOUT, seed, number) for number in numbers]), _AT_ONCE)
    if kind in COVERED:
        return _open_libero(name, seed, plain_pictures)
    if not colon:
        raise WorldError(f"--env {name}: expected {', '.join(BUILT_IN)}, or module:function of your own environment")
    try:
        make = getattr(importlib.import_module(kind), function)
    except (ImportError, AttributeError) as error:
        raise WorldError(f"--env {name}: {error}") from error
    return Environment(lambda numbers: GymWorlds(make, [_integer(seed, number) for number in numbers]), _AT_ONCE)


def _open_libero(name: str, seed: int, plain_pictures: bool) -> Environment:
    """Start states take turns through the tasks."""
    tasks, pool, start = find_tasks(*split_name(name)), Pool(), _integer(seed, 0)

    def begin(number: int) -> Begin:
        turn, task = divmod(number, len(tasks))
        return Begin(tasks[task], start, turn, plain_pictures)

    return Environment(
        lambda numbers: LiberoWorlds(pool, [begin(number) for number in numbers]), min(os.cpu_count() or 1, _MOST_SIMULATORS)
    )


def open_source(name: str, plain_pictures: bool) -> Source:
    """The attempts in the environment of this name: `demo`, or a suite of LIBERO with or without numbers of tasks.

    Args:
      name: of the environment.
      plain_pictures: of LIBERO, without reflections and antialiasing.

    Raises:
      WorldError: no such environment.
    """
    if name.partition(":")[0] in COVERED:
        return LiberoSource(*split_name(name), plain_pictures)
    if name != DEMO:
        raise WorldError(f"--env {name}: expected {' or '.join(BUILT_IN)}")
    return DemoSource()


def _integer(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((_ROLLOUT, seed, number)).generate_state(1)[0] >> 1)
