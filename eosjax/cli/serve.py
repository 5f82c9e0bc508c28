"""Serves the policy of a training run to robots, in the websocket protocol of openpi. Runs until SIGTERM or Ctrl-C.

Listens only on this machine unless --host says otherwise, which needs --api_key_file. GET /healthz says whether it runs, GET /metrics
has figures for Prometheus."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import ssl
from pathlib import Path

from eosjax.cli.common import to_path
from eosjax.cli.trained import add_checkpoint_flags
from eosjax.documents import read_text
from eosjax.serving.hosted import HostedPolicy
from eosjax.serving.mapping import ROBOTS, open_keys
from eosjax.serving.policy import Policy
from eosjax.serving.server import Server, ServerSettings, serve_until_stopped
from eosjax.types import UserError

log = logging.getLogger(__name__)
_SHORTEST_KEY = 16


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_checkpoint_flags(parser)
    parser.add_argument("--dataset", metavar="NAME", help="whose statistics to use, for a run on several datasets")
    robots = f"{'|'.join(ROBOTS)}|FILE"
    parser.add_argument("--keys", default="libero", metavar=robots, help="which entries of an observation are what (%(default)s)")
    where = parser.add_argument_group("where, and for whom")
    where.add_argument("--host", default=ServerSettings.host, help="address to listen on (%(default)s); 0.0.0.0 for all")
    where.add_argument("--port", type=int, default=ServerSettings.port, help="port to listen on (%(default)s); 0 for a free one")
    where.add_argument("--api_key_file", type=to_path, metavar="FILE", help="file with the key that a client must bring")
    where.add_argument("--tls_cert", type=to_path, metavar="FILE", help="certificate chain (PEM), to encrypt: wss://")
    where.add_argument("--tls_key", type=to_path, metavar="FILE", help="private key of the certificate (PEM)")
    for flag, metavar, default, text in (
        ("execute_steps", "N", None, "actions of a chunk that a robot executes before it asks again, if it does not say (all)"),
        ("max_batch", "N", ServerSettings.max_batch, "most requests computed together (%(default)s)"),
        ("max_connections", "N", ServerSettings.max_connections, "at one time (%(default)s)"),
    ):
        parser.add_argument(f"--{flag}", type=int, default=default, metavar=metavar, help=text)
    parser.add_argument("--max_message_mb", type=float, default=16.0, metavar="MB", help="largest message (%(default)g)")
    rate = "requests per second of a connection (%(default)g)"
    parser.add_argument("--max_rate", type=float, default=ServerSettings.max_rate, metavar="N", help=rate)


def run(args: argparse.Namespace) -> int:
    """Serves."""
    _show_log()
    settings = _settings(args)  # and the keys: what is wrong with the flags is told before anything is loaded
    keys = open_keys(args.keys)
    policy = Policy.load(args.checkpoint, args.step, args.dataset, args.vla_path)
    server = Server(HostedPolicy(policy), keys, settings)
    print(f"compiling for 1 to {settings.max_batch} robots at a time", flush=True)
    scheme = "wss" if settings.tls else "ws"
    host = f"[{args.host}]" if ":" in args.host else args.host
    serve_until_stopped(server, lambda port: print(f"serving {args.checkpoint} at {scheme}://{host}:{port}", flush=True))
    print("stopped")
    return 0


def _show_log() -> None:
    """What eosjax logs goes to stderr, with the time; libraries do as they do."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("eosjax")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _settings(args: argparse.Namespace) -> ServerSettings:
    if not 0 <= args.port < 65536:
        raise UserError(f"--port: expected 0 to 65535, got {args.port}")
    for flag in ("max_batch", "max_connections", "max_message_mb", "max_rate", "execute_steps"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise UserError(f"--{flag}: expected more than 0, got {value}")
    key = None if args.api_key_file is None else read_key(args.api_key_file)
    if key is None and not is_loopback(args.host):
        raise UserError(f"--host {args.host}: expected --api_key_file beside an address that other machines reach; or use 127.0.0.1")
    tls = _tls(args.tls_cert, args.tls_key)
    if tls is None and not is_loopback(args.host):
        log.warning("--tls_cert is not given: the key and the images travel unencrypted")
    return ServerSettings(
        args.host,
        args.port,
        key,
        tls,
        max_batch=args.max_batch,
        execute_steps=args.execute_steps,
        max_bytes=int(args.max_message_mb * 1e6),
        max_connections=args.max_connections,
        max_rate=args.max_rate,
    )


def read_key(path: Path) -> bytes:
    """The key in a file; `UserError` for one that is short or has characters that no HTTP header takes."""
    key = read_text(path).strip()
    if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"--api_key_file {path}: expected one word of at least {_SHORTEST_KEY} ASCII characters, such as of: openssl rand -hex 32"
        )
    return key.encode()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if (certificate is None) != (key is None):
        raise UserError("--tls_cert, --tls_key: expected both or none")
    if certificate is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password="")  # never asked for on a terminal
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UserError(f"--tls_cert {certificate}, --tls_key {key}: cannot be used: {error}") from error
    return context
