"""Lets the policy of a training run, or a scripted expert, act in an environment. Measures what it costs to let the EOS head, and not an
oracle, decide when the next sub-step begins.

Writes results.json, report.html and the finished episodes to --out. After Ctrl-C the same command goes on. The threshold is that of the
checkpoint. Start states and random numbers are the same for all switchers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eosjax.cli import common
from eosjax.cli.trained import add_checkpoint_flags, load
from eosjax.cli.trained_data import add_place_flags, open_run_data
from eosjax.ends.closed_loop import Episode, rows
from eosjax.envs.episodes import EpisodeFolder, Who
from eosjax.envs.planner import PolicyPlanner
from eosjax.envs.registry import MakeWorlds, open_env
from eosjax.envs.rollout import EXECUTORS, EXPERT, play
from eosjax.envs.switchers import EOS, FITTED, SWITCHES, WHOLE, Typical, make_switcher
from eosjax.runs.load import SavedRun
from eosjax.runs.record import fingerprint
from eosjax.serving.policy import Policy
from eosjax.types import UserError

RESULTS, PAGE, VIDEOS = "results.json", "report.html", "videos"
ALL = "all"
_FILMED = 8  # episodes of which pictures are kept
_AT_ONCE = 64  # episodes played at once


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_checkpoint_flags(parser)
    parser.add_argument("--statistics_of", metavar="NAME", help="dataset of the run whose units the environment has (the only one)")
    parser.add_argument("--env", required=True, metavar="ENV", help="demo, or module:function that makes your own Gymnasium environment")
    parser.add_argument("--episodes", type=int, default=50, metavar="N", help="start states (%(default)s)")
    parser.add_argument(
        "--switch",
        type=_choices(SWITCHES),
        default=SWITCHES,
        metavar="LIST",
        help=f"who switches: all, or some of {','.join(SWITCHES)} (all)",
    )
    parser.add_argument(
        "--executor", type=_choices(EXECUTORS), default=("policy",), metavar="LIST", help="who acts: policy, expert, or all (policy)"
    )
    parser.add_argument(
        "--extra_steps",
        type=int,
        default=0,
        metavar="N",
        help="steps executed after the one with which the EOS head ends a sub-step (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the start states (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results and the finished episodes")
    common.add_boolean_flag(parser, "--video", f"also write the filmed episodes (the first {_FILMED}) as GIF files")
    add_place_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Plays, measures and writes."""
    if args.episodes < 1 or args.seed < 0 or args.extra_steps < 0:
        raise UserError(
            "expected --episodes of at least 1, and --seed and --extra_steps of at least 0, "
            f"got {args.episodes}, {args.seed} and {args.extra_steps}"
        )
    make = open_env(args.env, args.seed)
    saved = load(args)
    point = saved.operating_point
    if point is None and EOS in args.switch:
        raise UserError(f"--switch {EOS}: {args.checkpoint} has no EOS head; name other switchers")
    whos = [(switch, executor) for executor in args.executor for switch in args.switch if (switch, executor) != (WHOLE, EXPERT)]
    folder = EpisodeFolder(args.out, _settings(args, saved))
    played = _play_all(args, saved, make, folder, whos)
    traces = {who: [each.trace for each in episodes if each.fault is None] for who, episodes in played.items()}
    faults = [f"{'-'.join(who)} {each.trace.episode}: {each.fault}" for who, found in played.items() for each in found if each.fault]
    table = rows({who: found for who, found in traces.items() if found})
    about = {"checkpoint": str(args.checkpoint), "step": saved.step, "env": args.env, "seed": args.seed}
    about |= {"extra_steps": args.extra_steps, "faults": faults}
    _write(args, table, about, played, point and point.rule.threshold)
    return 0


def _write(
    args: argparse.Namespace,
    table: list[dict[str, Any]],
    about: dict[str, Any],
    played: Mapping[Who, list[Episode]],
    threshold: float | None,
) -> None:
    from eosjax.reports.closed_loop import closed_loop_text, gif, rollout_page  # loads matplotlib

    title = f"{args.checkpoint.name}, step {about['step']}, in {args.env}"
    files = [(RESULTS, (json.dumps({"rows": table, "about": about}, indent=1, allow_nan=False) + "\n").encode())]
    shown = [(who, episode) for who, episodes in played.items() for episode in _one_of_each(episodes)]
    files.append((PAGE, rollout_page(title, table, shown, threshold).encode()))
    if args.video:
        films = [(who, each) for who, episodes in played.items() for each in episodes if each.film and each.film.pictures]
        files += [(f"{VIDEOS}/{'-'.join(who)}-{each.trace.episode}.gif", gif(each)) for who, each in films]
    for name, content in files:
        common.write_bytes(args.out / name, content)
    print(closed_loop_text(table))
    for fault in about["faults"]:
        print(f"left out, its environment failed: {fault}")
    print(f"\nwritten: {args.out / RESULTS}\nwritten: {args.out / PAGE}")


def _one_of_each(episodes: Sequence[Episode]) -> list[Episode]:
    """The first filmed success and the first filmed failure."""
    filmed = [each for each in episodes if each.film and each.film.pictures and each.fault is None]
    return [found for success in (True, False) for found in [each for each in filmed if each.trace.success == success][:1]]


def _play_all(
    args: argparse.Namespace, saved: SavedRun, make: MakeWorlds, folder: EpisodeFolder, whos: Sequence[Who]
) -> dict[Who, list[Episode]]:
    """All episodes of each switcher and executor, those that are not on disk played."""
    numbers = range(args.episodes)
    found = {who: {number: each for number in numbers if (each := folder.read(who, number))} for who in whos}
    missing = {who: [number for number in numbers if number not in found[who]] for who in whos}
    typical = _typical(args, saved) if any(switch in FITTED and missing[switch, executor] for switch, executor in whos) else None
    policy = Policy.load(args.checkpoint, saved.step, args.statistics_of, args.vla_path)
    planner = PolicyPlanner(policy, min(_AT_ONCE, args.episodes))
    total = args.episodes * len(whos)
    with tqdm(total=total, initial=total - sum(map(len, missing.values())), unit="episode", disable=not sys.stderr.isatty()) as bar:
        for who in whos:
            switch, executor = who
            bar.set_description(f"{executor}, {switch}")
            for first in range(0, len(missing[who]), _AT_ONCE):
                batch = missing[who][first : first + _AT_ONCE]
                filmed = lambda number: number < _FILMED
                switcher = make_switcher(switch, typical)
                rule, extra = policy.settings.rule, args.extra_steps
                for episode in play(make(batch), batch, planner, rule, switch, switcher, executor, filmed, extra):
                    folder.write(who, episode)
                    found[who][episode.trace.episode] = episode
                    bar.update()
    return {who: [found[who][number] for number in numbers] for who in whos}


def _typical(args: argparse.Namespace, saved: SavedRun) -> Typical:
    """What the training data of the run say of its sub-steps."""
    source = open_run_data(args, saved).train
    data = source.data
    spans = [slice(*data.episode_starts[[each, each + 1]].tolist()) for each in source.episodes.tolist()]
    ends, gripper = (np.concatenate([column[span] for span in spans]) for column in (data.labels.ends, data.gripper))
    starts = np.concatenate([[0], np.cumsum([span.stop - span.start for span in spans])])
    return Typical.fit(ends.astype(bool), gripper, starts)


def _settings(args: argparse.Namespace, saved: SavedRun) -> dict[str, Any]:
    record = fingerprint(json.dumps(saved.record.to_json(), sort_keys=True).encode())
    return {"checkpoint": record, "env": args.env, "seed": args.seed, "extra_steps": args.extra_steps}


def _choices(names: Sequence[str]) -> Any:
    """Reads a list of some of the names, for `argparse`."""

    def read(text: str) -> tuple[str, ...]:
        wanted = list(names) if text == ALL else text.split(",")
        unknown = [each for each in wanted if each not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"expected {ALL} or some of {', '.join(names)}; got {', '.join(unknown)}")
        return tuple(dict.fromkeys(wanted))

    return read
