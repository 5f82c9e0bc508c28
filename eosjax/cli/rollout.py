"""Lets the policy of a training run, or a scripted expert, act in an environment. Measures what it costs to let the EOS head, and not an
oracle, decide when the next sub-step begins.

Writes results.json, report.html and the finished episodes to --out. After Ctrl-C the same command goes on. The threshold is that of the
checkpoint. Start states and random numbers are the same for all switchers. With --server the policy is that of a running `eosjax serve`,
and the robot-side broker decides where sub-steps end."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eosjax.cli import common
from eosjax.cli.rollout_policy import Subject, open_run, open_served
from eosjax.cli.trained import add_checkpoint_flags
from eosjax.cli.trained_data import add_place_flags, open_run_data
from eosjax.data.specs import stored_gripper
from eosjax.ends.closed_loop import Episode, rows
from eosjax.envs.decisions import DecisionFolder
from eosjax.envs.episodes import EpisodeFolder, Who
from eosjax.envs.registry import BUILT_IN, Environment, open_env
from eosjax.envs.rollout import EXECUTORS, EXPERT, Planner, play
from eosjax.envs.switchers import EOS, FITTED, SWITCHES, WHOLE, Typical, make_switcher
from eosjax.serving.client import ServerLostError, ServerRefusedError
from eosjax.types import UserError

RESULTS, PAGE, VIDEOS = "results.json", "report.html", "videos"
ALL = "all"
_FILMED = 8  # episodes of which pictures are kept


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_checkpoint_flags(parser, required=False)
    parser.add_argument(
        "--server", metavar="URL", help="ws:// or wss:// of an `eosjax serve` that plays the policy; --checkpoint is then not needed"
    )
    parser.add_argument("--api_key_file", type=common.to_path, metavar="FILE", help="file with the key of the server")
    parser.add_argument(
        "--tls_ca",
        type=common.to_path,
        metavar="FILE",
        help="certificate (PEM) to trust for wss://: that of the server, or of who signed it",
    )
    parser.add_argument("--statistics_of", metavar="NAME", help="dataset of the run whose units the environment has (the only one)")
    parser.add_argument(
        "--env", required=True, metavar="ENV", help=f"{', '.join(BUILT_IN)}, or module:function that makes your own Gymnasium environment"
    )
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
    common.add_boolean_flag(
        parser,
        "--plain_pictures",
        "pictures of LIBERO without reflections and antialiasing: half the time on a CPU, for such training data",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the start states (%(default)s)")
    parser.add_argument("--out", type=common.to_path, required=True, metavar="DIR", help="folder for the results and the finished episodes")
    common.add_boolean_flag(parser, "--video", f"also write the filmed episodes (the first {_FILMED}) as MP4 files, or GIF without PyAV")
    add_place_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Plays, measures and writes."""
    if args.episodes < 1 or args.seed < 0 or args.extra_steps < 0:
        raise UserError(
            "expected --episodes of at least 1, and --seed and --extra_steps of at least 0, "
            f"got {args.episodes}, {args.seed} and {args.extra_steps}"
        )
    environment = open_env(args.env, args.seed, args.plain_pictures)
    policy = open_served(args) if args.server else open_run(args)
    if policy.rule is None and EOS in args.switch:
        raise UserError(f"--switch {EOS}: {policy.name} has no EOS head; name other switchers")
    whos = [(switch, executor) for executor in args.executor for switch in args.switch if (switch, executor) != (WHOLE, EXPERT)]
    settings = {"checkpoint": policy.record, "env": args.env, "seed": args.seed, "extra_steps": args.extra_steps}
    others = {"through": "a server" if args.server else None, "plain_pictures": args.plain_pictures or None}
    folder = EpisodeFolder(args.out, settings | others)
    played = _play_all(args, policy, environment, folder, whos)
    traces = {who: [each.trace for each in episodes if each.fault is None] for who, episodes in played.items()}
    faults = [f"{'-'.join(who)} {each.trace.episode}: {each.fault}" for who, found in played.items() for each in found if each.fault]
    table = rows({who: found for who, found in traces.items() if found})
    about = {
        **policy.about,
        "env": args.env,
        "seed": args.seed,
        "extra_steps": args.extra_steps,
        "plain_pictures": args.plain_pictures,
        "faults": faults,
    }
    _write(args, f"{policy.name}, in {args.env}", table, about, played, policy.rule and policy.rule.of_one_slot)
    return 0


def _write(
    args: argparse.Namespace,
    title: str,
    table: list[dict[str, Any]],
    about: dict[str, Any],
    played: Mapping[Who, list[Episode]],
    threshold: float | None,
) -> None:
    from eosjax.reports.closed_loop import closed_loop_text, rollout_page  # loads matplotlib
    from eosjax.reports.films import film_file

    files = [(RESULTS, (json.dumps({"rows": table, "about": about}, indent=1, allow_nan=False) + "\n").encode())]
    shown = [(who, episode) for who, episodes in played.items() for episode in _one_of_each(episodes)]
    files.append((PAGE, rollout_page(title, table, shown, threshold).encode()))
    if args.video:
        for who, each in [(who, each) for who, episodes in played.items() for each in episodes if each.film and each.film.pictures]:
            suffix, content = film_file(each)
            files.append((f"{VIDEOS}/{'-'.join(who)}-{each.trace.episode}{suffix}", content))
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
    args: argparse.Namespace, policy: Subject, environment: Environment, folder: EpisodeFolder, whos: Sequence[Who]
) -> dict[Who, list[Episode]]:
    """All episodes of each switcher and executor, those that are not on disk played."""
    numbers = range(args.episodes)
    found = {who: {number: each for number in numbers if (each := folder.read(who, number))} for who in whos}
    missing = {who: [number for number in numbers if number not in found[who]] for who in whos}
    fitted = [switch for switch, executor in whos if switch in FITTED and missing[switch, executor]]
    typical = _typical(args, policy, fitted[0]) if fitted else None
    total = args.episodes * len(whos)
    with tqdm(total=total, initial=total - sum(map(len, missing.values())), unit="episode", disable=not sys.stderr.isatty()) as bar:
        for who in whos:
            bar.set_description(f"{who[1]}, {who[0]}")
            with contextlib.ExitStack() as stack:
                decisions = (
                    stack.enter_context(contextlib.closing(DecisionFolder(args.out, "-".join(who)))) if _is_logged(args, who) else None
                )
                planner = policy.planner(min(environment.at_once, args.episodes), decisions and decisions.log) if missing[who] else None
                for first in range(0, len(missing[who]), environment.at_once):
                    batch = missing[who][first : first + environment.at_once]
                    assert planner is not None
                    with _told_what_is_left(args.out, who, batch, found[who]):
                        for episode in _play(args, environment, planner, who, typical, batch):
                            if decisions and episode.fault is None:
                                decisions.finish(episode.trace)
                            folder.write(who, episode)
                            found[who][episode.trace.episode] = episode
                            bar.update()
                if decisions and (log := decisions.join([number for number, each in sorted(found[who].items()) if each.fault is None])):
                    bar.write(f"written: {log}")
    return {who: [found[who][number] for number in numbers] for who in whos}


def _play(
    args: argparse.Namespace, environment: Environment, planner: Planner, who: Who, typical: Typical | None, batch: Sequence[int]
) -> Iterator[Episode]:
    """Some episodes at once."""
    switch, executor = who
    switcher, middle = make_switcher(switch, typical), typical.middle if typical else 0.0
    filmed = lambda number: number < _FILMED
    return play(environment.make(batch), batch, planner, switch, switcher, executor, filmed, args.extra_steps, middle)


def _is_logged(args: argparse.Namespace, who: Who) -> bool:
    """Whether what the brokers decide is what is done."""
    return args.server is not None and who[0] == EOS and not args.extra_steps


@contextlib.contextmanager
def _told_what_is_left(out: Path, who: Who, batch: Sequence[int], found: Mapping[int, Episode]) -> Iterator[None]:
    """Adds to the error of a server which episodes it cost."""
    try:
        yield
    except (ServerLostError, ServerRefusedError) as error:
        switch, executor = who
        left = [number for number in batch if number not in found]
        raise UserError(
            f"{error}\nnot finished: {executor}, {switch}, episodes {', '.join(map(str, left))}. "
            f"Finished episodes are in {out}; the same command goes on"
        ) from error


def _typical(args: argparse.Namespace, policy: Subject, switch: str) -> Typical:
    """What the training data of the run say of its sub-steps."""
    if policy.saved is None:
        raise UserError(f"--switch {switch}: reads the training data of the run; give --checkpoint, too, or name other switchers")
    source = open_run_data(args, policy.saved).train
    data = source.data
    spans = [slice(*data.episode_starts[[each, each + 1]].tolist()) for each in source.episodes.tolist()]
    ends, gripper = (np.concatenate([column[span] for span in spans]) for column in (data.labels.ends, data.gripper))
    convention = policy.saved.record.run.dataset(args.statistics_of).spec.gripper
    starts = np.concatenate([[0], np.cumsum([span.stop - span.start for span in spans])])
    return Typical.fit(ends.astype(bool), stored_gripper(gripper[:, None], convention)[:, 0], starts)


def _choices(names: Sequence[str]) -> Any:
    """Reads a list of some of the names, for `argparse`."""

    def read(text: str) -> tuple[str, ...]:
        wanted = list(names) if text == ALL else text.split(",")
        unknown = [each for each in wanted if each not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"expected {ALL} or some of {', '.join(names)}; got {', '.join(unknown)}")
        return tuple(dict.fromkeys(wanted))

    return read
