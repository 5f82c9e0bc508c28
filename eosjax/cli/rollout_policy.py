"""The policy that `eosjax rollout` lets act: of a run in this process, or of a server."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eosjax.cli.serve import read_key
from eosjax.cli.trained import load
from eosjax.ends.protocols import Rule
from eosjax.envs.planner import PolicyPlanner
from eosjax.envs.rollout import Planner
from eosjax.envs.served import LogOf, ServedPlanner
from eosjax.runs.load import SavedRun
from eosjax.serving.client import RemotePolicy
from eosjax.serving.policy import Policy
from eosjax.types import UserError

_WAIT = 10.0  # seconds for a server that does not listen yet
_PATIENCE = 60.0  # seconds for a reply; it may have to compile, or to be started anew


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A policy to be measured.

    Attributes:
      name: for people.
      about: for the results.
      record: fingerprint of the record of its checkpoint.
      rule: of its operating point; None without an EOS head.
      saved: the run; None where only a server knows it.
      planner: makes what a rollout asks, for at most so many rows; the log is of the brokers where there is a server.
    """

    name: str
    about: Mapping[str, Any]
    record: str
    rule: Rule | None
    saved: SavedRun | None
    planner: Callable[[int, LogOf | None], Planner]


def open_run(args: argparse.Namespace) -> Subject:
    """The run that the flags name."""
    if args.checkpoint is None:
        raise UserError("expected --checkpoint RUN, or --server URL")
    for flag in ("api_key_file", "tls_ca"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag}: belongs to --server URL")
    saved = load(args, with_base=False)

    @functools.cache
    def policy() -> Policy:
        return Policy.load(args.checkpoint, saved.step, args.statistics_of, args.vla_path)

    about = {"checkpoint": str(args.checkpoint), "step": saved.step}
    rule = saved.operating_point and saved.operating_point.rule
    name = f"{args.checkpoint.name}, step {saved.step}"
    return Subject(name, about, saved.record.fingerprint, rule, saved, lambda width, log: PolicyPlanner(policy(), width))


def open_served(args: argparse.Namespace) -> Subject:
    """The policy of the server that the flags name.

    Raises:
      UserError: no server of this version is there, or it serves another checkpoint than --checkpoint.
    """
    for flag in ("statistics_of", "vla_path", *(["step"] if args.checkpoint is None else [])):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag}: the server was told which {'checkpoint' if flag == 'step' else 'it uses'} when it was started")
    if not args.server.startswith(("ws://", "wss://")):
        raise UserError(f"--server {args.server}: expected ws://HOST:PORT, or wss://HOST:PORT")
    tls = _trusted(args.server, args.tls_ca)
    saved = None if args.checkpoint is None else load(args, with_base=False)
    key = None if args.api_key_file is None else read_key(args.api_key_file).decode()
    policy = RemotePolicy(args.server, key, deadline=_PATIENCE, wait=_WAIT, tls=tls)
    missing = sorted({"record", "step", "max_rate", "images", "image_channels", "state"} - policy.metadata.keys())
    if missing:
        raise UserError(f"--server {args.server}: expected `eosjax serve` of this version; its metadata lack {', '.join(missing)}")
    record, step = policy.metadata["record"], policy.metadata["step"]
    if saved is not None and saved.record.fingerprint != record:
        raise UserError(
            f"--server {args.server}: serves another checkpoint (step {step}, record {record[:12]}) than --checkpoint {args.checkpoint} "
            f"(step {saved.step}, record {saved.record.fingerprint[:12]})"
        )
    print(f"{args.server}: checkpoint of step {step}, record {record[:12]}")
    about = {"checkpoint": args.checkpoint and str(args.checkpoint), "step": step, "server": args.server, "record": record}
    return Subject(f"{args.server}, step {step}", about, record, policy.rule, saved, lambda width, log: ServedPlanner(policy, log))


def _trusted(server: str, certificate: Path | None) -> ssl.SSLContext | None:
    """The certificates to trust; None for those of the system."""
    if certificate is None:
        return None
    if not server.startswith("wss://"):
        raise UserError(f"--tls_ca: belongs to --server wss://HOST:PORT, got {server}")
    try:
        return ssl.create_default_context(cafile=certificate)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UserError(f"--tls_ca {certificate}: cannot be used: {error}") from error
