"""Flags into a `TrainConfig` and back: from the command line, from YAML files and to them.

Imports no JAX, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path

import yaml

from eosjax.config import TrainConfig
from eosjax.documents import DocumentError, read_yaml
from eosjax.fields import show
from eosjax.flag_values import ConfigError


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
    args = _with_files(args, known)
    _check_paths(args)
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


def _with_files(args: Sequence[str], known: set[str]) -> list[str]:
    """The arguments with the flags of each `--config_path` in front, which all others then override."""
    of_files, others, rest = [], [], iter(args)
    for arg in rest:
        flag, sep, value = arg.partition("=")
        if flag == "--config_path":
            of_files += _read_file(Path(value if sep else next(rest, "")), known)
        else:
            others.append(arg)
    return of_files + others


def _check_paths(args: Sequence[str]) -> None:
    """An empty path, as of a variable of the shell that is not set, would mean the current folder."""
    paths = {f"--{field.name}" for field in dataclasses.fields(TrainConfig) if "Path" in str(field.type)}
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        flag, sep, value = arg.partition("=")
        if flag in paths and not (value if sep else following).strip(" '\""):
            raise ConfigError(f"{flag}: expected a path, got an empty text")


def _check_known(name: str, known: set[str], *, prefix: str, where: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    raise ConfigError(f"{where} {prefix}{name}" + (f": did you mean {prefix}{near[0]}?" if near else "; --help lists all"))


def _read_file(path: Path, known: set[str]) -> list[str]:
    """The flags in a YAML file, `--name=value` each."""
    try:
        content = read_yaml(path) or {}
    except DocumentError as error:
        raise ConfigError(f"--config_path {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config_path {path}: expected `flag: value` lines, got {show(content)}")
    for key in content:
        _check_known(str(key), known - {"config_path", "help"}, prefix="", where=f"{path}: unknown key")
    return [f"--{key}={_plain(value)}" for key, value in content.items()]


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
    path.write_text("".join(f"{name}: {_plain(value)}\n" for name, value in dataclasses.asdict(started).items()), encoding="utf-8")


def _plain(value: object) -> str:
    return (
        yaml.safe_dump(str(value) if isinstance(value, Path) else value, default_flow_style=True, width=float("inf"))
        .removesuffix("...\n")
        .strip()
    )


def load(path: Path) -> TrainConfig:
    """Reads a configuration that `save` wrote."""
    return parse(["--config_path", str(path)])
