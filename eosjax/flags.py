"""Flags into a `TrainConfig` and back: from the command line, from YAML files and to them.

Imports no JAX, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path

import yaml

from eosjax.config import ConfigError, TrainConfig


def parse(argv: Sequence[str]) -> TrainConfig:
    """Reads the flags (`--flag value`, `--flag=value`, `--config_path FILE.yaml` overridden by flags) into a checked config.

    Raises `ConfigError` for a flag or key that does not exist (naming the nearest), a value of the wrong type, or a combination that
    cannot be run. `--help` prints all flags and exits.
    """
    import draccus  # of the extra `train`; without it a configuration can still be written

    args = _complete([_spell(arg) for arg in argv])
    known = {field.name for field in dataclasses.fields(TrainConfig)} | {"config_path", "help"}
    for name in flag_names(args):
        _check_known(name, known, prefix="--", where="unknown flag")
    for name, value in _config_paths(args):
        _check_file(name, value, known)
    try:
        return draccus.parse(TrainConfig, args=args, exit_on_error=False)
    except ConfigError:
        raise
    except Exception as error:  # draccus wraps what __post_init__ raises, at times more than once
        raise ConfigError(_root_message(error)) from error


def flag_names(argv: Sequence[str]) -> set[str]:
    """Names of the flags in a command line, without the leading dashes."""
    return {_spell(arg)[2:].split("=", 1)[0] for arg in argv if arg.startswith("--")}


def _spell(arg: str) -> str:
    """`--eos-tune=x` and `--eos_tune=x` are the same flag."""
    if not arg.startswith("--"):
        return arg
    name, sep, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + sep + value


def _complete(args: list[str]) -> list[str]:
    """A boolean flag without a value means True."""
    switches = {f"--{field.name}" for field in dataclasses.fields(TrainConfig) if field.type == "bool"}
    completed = []
    for arg, following in zip(args, [*args[1:], "--"], strict=False):
        completed.append(arg)
        if arg in switches and following.startswith("--"):
            completed.append("True")
    return completed


def _config_paths(args: Sequence[str]) -> list[tuple[str, str]]:
    flag = "--config_path"
    paths = [following for arg, following in zip(args, args[1:], strict=False) if arg == flag]
    return [(flag, path) for path in (*paths, *(arg.removeprefix(flag + "=") for arg in args if arg.startswith(flag + "=")))]


def _check_known(name: str, known: set[str], *, prefix: str, where: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    raise ConfigError(f"{where} {prefix}{name}" + (f": did you mean {prefix}{near[0]}?" if near else "; --help lists all"))


def _check_file(flag: str, value: str, known: set[str]) -> None:
    path = Path(value)
    if not path.is_file():
        raise ConfigError(f"{flag} {path}: no such file")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag} {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{flag} {path}: expected `flag: value` lines, got a {type(content).__name__}")
    for key in content:
        _check_known(str(key), known - {"config_path", "help"}, prefix="", where=f"{path}: unknown key")


def _root_message(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(error)


def save(config: TrainConfig, path: Path) -> None:
    """Writes the resolved configuration as YAML; `--config_path` reads it back to an equal one, `resume` aside."""
    started = dataclasses.replace(config, resume=False)  # as a recipe, the file describes the run from its start
    path.write_text("".join(f"{name}: {_plain(value)}\n" for name, value in dataclasses.asdict(started).items()))


def _plain(value: object) -> str:
    return yaml.safe_dump(str(value) if isinstance(value, Path) else value, default_flow_style=True).removesuffix("...\n").strip()


def load(path: Path) -> TrainConfig:
    """Reads a configuration that `save` wrote."""
    return parse(["--config_path", str(path)])
