"""How often the scripted expert finishes LIBERO's tasks: `python benchmarks/libero_expert.py libero_goal [EPISODES]`.

Each episode has a random scene. It counts as finished if the goals of all five sub-steps come to hold in turn and the task is done.
"""

from __future__ import annotations

import sys

import numpy as np

from eosjax.envs.libero.expert import Style
from eosjax.envs.libero.recordings import record
from eosjax.envs.libero.simulator import Simulator, find_tasks
from eosjax.envs.libero.tasks import split_name


def main(name: str, episodes: int) -> None:
    """Prints a row of a table for each task."""
    for task in find_tasks(*split_name(name)):
        table = Simulator(task, plain=True)
        found = [record(table, seed, np.random.default_rng((1, seed)), Style()) for seed in range(episodes)]
        finished = sum(each.success and each.end.sum() == len(task.plan) for each in found)
        print(f"| {task.suite} | {task.number} | {task.language} | {finished} of {episodes} |", flush=True)
        table.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8)
