"""Does an operating point that was chosen on some episodes hold on others? The table of docs/evaluation.md, "From score to decision".

    python benchmarks/operating_points.py RUN [--halvings 15]

RUN: folder of a training run with held-out episodes, such as the demo's. They are halved at random; each rule chooses on one half, without
the decision options, with those that look at single slots, and with all, and is measured on the other half in the deployed protocol. Beside
it the probabilities: raw, exactly corrected, and calibrated on the first half.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eosjax.bench.full import chunked_episodes
from eosjax.ends.calibration import Calibration, exact_calibration
from eosjax.ends.events import MAIN_COLLAR
from eosjax.ends.measure import measure_decisions
from eosjax.ends.operating_points import Selection, choose
from eosjax.ends.protocols import ChunkedEpisode, Rule
from eosjax.ends.sweeps import option_grid
from eosjax.flag_values import parse_operating_rule
from eosjax.reports.evaluation import reliability
from eosjax.runs.data import episode_ends, reopen_data
from eosjax.runs.load import load_run, open_tokenizer

RULES = ("false_alarms:1", "f1:2", "early:0.05")
FIGURES = ("precision", "recall", "f1", "false_alarms_per_episode")
Halves = tuple[list[ChunkedEpisode], list[ChunkedEpisode]]


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the training run")
    parser.add_argument("--halvings", type=int, default=15, metavar="N", help="random halvings of the held-out episodes (%(default)s)")
    args = parser.parse_args()
    saved = load_run(args.run)
    data = reopen_data(saved.config, saved.record.run, open_tokenizer(args.run, saved.record))
    if data.val is None:
        parser.error(f"{args.run} held out no episodes (--use_val_set False)")
    episodes = chunked_episodes(saved, data.val)
    orders = [np.random.default_rng(seed).permutation(len(episodes)) for seed in range(args.halvings)]
    halvings = [([episodes[n] for n in order[::2]], [episodes[n] for n in order[1::2]]) for order in orders]
    options = option_grid(episode_ends(data.train))
    exact = exact_calibration(saved.config, saved.record.run.share_of_ends)
    print_rules(halvings, exact, options)
    print_reliability(halvings, exact)


def print_rules(halvings: Sequence[Halves], exact: Calibration, options: Sequence[Rule]) -> None:
    """Each rule without, with some and with all decision options: figures on the other half, and the F1 where it was chosen."""
    slots = [each for each in options if not each.cumulative]
    print("| | precision | recall | F1 | false alarms/episode | F1 where chosen |\n| --- | --- | --- | --- | --- | --- |")
    for rule in RULES:
        for what, tried in (("threshold alone", ()), ("options of single slots", slots), ("all options", options)):
            chosen_on, others = [], []
            for first, second in halvings:
                point = choose(first, Selection(exact, parse_operating_rule(rule), options=tried))
                for half, found in ((first, chosen_on), (second, others)):
                    values = measure_decisions([point.deployed(each) for each in half], replicates=0).values
                    found.append([values[f"event/{name}@{MAIN_COLLAR}"] for name in FIGURES])
            cells = [f"{value:.2f}" for value in (*np.nanmean(others, axis=0), np.nanmean(chosen_on, axis=0)[2])]
            print(f"| `{rule}`, {what} | {' | '.join(cells)} |", flush=True)


def print_reliability(halvings: Sequence[Halves], exact: Calibration) -> None:
    """Negative log likelihood and calibration error of single chunks on the other half, by kind of probability."""
    found = []
    for first, second in halvings:
        logits, ends = (np.concatenate(column) for column in zip(*(each.votes for each in first), strict=True))
        found.append(reliability(second, exact.fit(logits, ends)))
    print("\n| probability | negative log likelihood | calibration error |\n| --- | --- | --- |")
    for kind in found[0]:
        nll, ece = np.mean([each[kind] for each in found], axis=0)
        print(f"| {kind} | {nll:.3f} | {ece:.4f} |")


if __name__ == "__main__":
    main()
