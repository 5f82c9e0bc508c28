"""What the threshold of the EOS head does in the loop: success on the demo table with the expert acting, at several thresholds.

python benchmarks/rollout_thresholds.py RUN     (a run of the demo; 50 start states, those of `eosjax rollout --env demo`)

Each threshold is tried alone, and with a time-out, in place of the rule in the checkpoint.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from eosjax.ends.protocols import Rule
from eosjax.envs.planner import PolicyPlanner
from eosjax.envs.registry import DEMO, open_env
from eosjax.envs.rollout import EXPERT, play
from eosjax.envs.switchers import EOS, make_switcher
from eosjax.serving.policy import Policy

EPISODES, TIME_OUT = 50, 60
THRESHOLDS = (0.15, 0.3, 0.5, 0.7)


def measure(policy: Policy, rule: Rule) -> tuple[float, float]:
    """Success, and the share of the detections that came before the goal held."""
    assert policy.settings.eos is not None, "a run with an EOS head"
    policy.settings = dataclasses.replace(policy.settings, eos=dataclasses.replace(policy.settings.eos, rule=rule))
    numbers = range(EPISODES)
    worlds = open_env(DEMO, seed=0, plain_pictures=False).make(numbers)
    planner = PolicyPlanner(policy, EPISODES)
    traces = [each.trace for each in play(worlds, numbers, planner, EOS, make_switcher(EOS, None), EXPERT, lambda _: False)]
    early = [switch.held < 0 for trace in traces for switch in trace.switches if not switch.timed_out]
    return float(np.mean([trace.success for trace in traces])), float(np.mean(early)) if early else 0.0


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    policy = Policy.load(parser.parse_args().run)
    print(f"| threshold | no time-out: success, early share | time-out of {TIME_OUT} steps: success, early share |\n| --- | --- | --- |")
    for threshold in THRESHOLDS:
        cells = (measure(policy, Rule(threshold, time_out=time_out)) for time_out in (None, TIME_OUT))
        print(f"| {threshold} | " + " | ".join(f"{success:.2f}, {early:.2f}" for success, early in cells) + " |")


if __name__ == "__main__":
    main()
