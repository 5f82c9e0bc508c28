"""Environments by the names that `--env` takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import numpy as np

from eosjax.envs.demo import DemoWorlds
from eosjax.envs.worlds import GymWorlds, WorldError, Worlds

DEMO = "demo"
_ROLLOUT = 20_000_003  # tells the start states of rollouts from those of demonstrations with the same seed
MakeWorlds = Callable[[Sequence[int]], Worlds]  # numbers of start states -> environments at them


def open_env(name: str, seed: int) -> MakeWorlds:
    """What makes the environments of this name: `demo`, or `module:function` of a user's own Gymnasium environment.

    A start state depends on the name, `seed` and its number alone.

    Raises:
      WorldError: no such module or function, or one that makes no Gymnasium environment.
    """
    if name == DEMO:
        return lambda numbers: DemoWorlds([(_ROLLOUT, seed, number) for number in numbers])
    module, colon, function = name.partition(":")
    if not colon:
        raise WorldError(f"--env {name}: expected {DEMO}, or module:function of your own environment")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise WorldError(f"--env {name}: {error}") from error
    return lambda numbers: GymWorlds(make, [_integer(seed, number) for number in numbers])


def _integer(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((_ROLLOUT, seed, number)).generate_state(1)[0] >> 1)
