"""Why episodes of a rollout on the demo table failed: first faults of the EOS head with the expert acting, and how early it was.

python benchmarks/rollout_faults.py DIR [DIR …]     (folders that `eosjax rollout --env demo --executor expert --switch eos` wrote)

The early switches are looked at by letting the expert go on: how many more steps until the goal of the sub-step would have shown? Only the
first early switch of each episode is counted, since later ones begin in states that it caused.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from eosjax.ends.closed_loop import Trace
from eosjax.envs.episodes import SETTINGS_FILE, EpisodeFolder
from eosjax.envs.registry import DEMO, open_env

PATIENCE = 100  # steps that the expert is given to finish a sub-step


def first_fault(trace: Trace) -> str:
    """The first thing that went wrong in an episode that failed."""
    early = any(switch.held < 0 and not switch.timed_out for switch in trace.switches)
    if early:
        return "switched early"
    if len(trace.switches) == len(trace.reached):
        return "no fault of the head"
    return "missed an end, the goal held" if trace.reached[len(trace.switches)] else "missed an end, the goal never held"


def steps_early(trace: Trace, seed: int) -> int | None:
    """Steps from the first early switch to the first whose observation would have shown the goal; None without an early switch."""
    early = next((switch for switch in trace.switches if switch.held < 0 and not switch.timed_out), None)
    if early is None:
        return None
    worlds, place = open_env(DEMO, seed, plain_pictures=False).make([trace.episode]), 0
    ends = {switch.step for switch in trace.switches}
    for step in range(early.step + 1):
        worlds.step([0], [worlds.expert(0, place)])
        place += step in ends and step < early.step
    for more in range(PATIENCE):
        if worlds.truth([0]).goals[0][early.place]:
            return more + 1
        worlds.step([0], [worlds.expert(0, early.place)])
    return PATIENCE


def main() -> None:
    """Reads the folders and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    for folder in parser.parse_args().folders:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        episodes = EpisodeFolder(folder, settings)
        numbers = sorted(int(path.stem) for path in (folder / "episodes" / "eos-expert").glob("*.json"))
        traces = [each.trace for number in numbers if (each := episodes.read(("eos", "expert"), number))]
        failed = [trace for trace in traces if not trace.success]
        early = [steps for trace in traces if (steps := steps_early(trace, settings["seed"])) is not None]
        print(f"{folder}: {len(failed)} of {len(traces)} failed: {dict(Counter(map(first_fault, failed)))}")
        within = ", ".join(f"{sum(steps <= limit for steps in early)} by up to {limit}" for limit in (1, 3))
        print(f"  first early switches: {len(early)}; {within} step(s)")


if __name__ == "__main__":
    main()
