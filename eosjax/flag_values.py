"""Flags whose values have a grammar: the mixture of datasets, what is allowed though refused otherwise, the rule for the threshold."""

from __future__ import annotations

import math
from typing import NamedTuple

from eosjax.names import check_dataset_name
from eosjax.types import UserError

NAMED_MIXTURES = {
    f"libero_4_task_suites{suffix}": tuple(f"libero_{suite}{suffix}" for suite in ("spatial", "object", "goal", "10"))
    for suffix in ("", "_no_noops")
}  # of equal weights

# What `--allow` accepts although it is refused otherwise.
ALLOWANCES = {
    "unlabelled": "leave out episodes without sub-step labels",
    "blank_tasks": "leave out episodes whose task instruction has no letter or digit",
    "empty_episodes": "leave out episodes without steps",
    "mixed_conventions": "mix datasets whose gripper, motion, action mask or control rate differ",
}


class ConfigError(UserError):
    """A configuration that cannot be run; the message says what to change."""


class MixtureMember(NamedTuple):
    """A dataset to train on, and its weight relative to the others."""

    name: str
    weight: float = 1.0


def parse_mixture(text: str) -> tuple[MixtureMember, ...]:
    """The datasets that `--dataset_name` asks for: one name, a named mixture, or a list `name:weight,name`.

    Raises:
      ConfigError: a name that is empty, repeated or not plain, or a weight that is not a number above 0.
    """
    if text in NAMED_MIXTURES:
        return tuple(MixtureMember(name) for name in NAMED_MIXTURES[text])
    members = tuple(_parse_member(part.strip()) for part in text.split(","))
    names = [member.name for member in members]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise ConfigError(f"--dataset_name {text}: {repeated} is named twice; give it one weight")
    return members


def _parse_member(part: str) -> MixtureMember:
    name, sep, number = part.partition(":")
    try:
        weight = float(number) if sep else 1.0
    except ValueError:
        weight = 0.0
    if not name or not 0 < weight < float("inf"):
        raise ConfigError(f"--dataset_name: expected NAME, or NAME:WEIGHT with a weight above 0, separated by commas; got {part!r}")
    check_dataset_name("--dataset_name", name, ConfigError)
    return MixtureMember(name, weight)


def parse_allowances(text: str | None) -> frozenset[str]:
    """The names of `ALLOWANCES` that `--allow` lists, separated by commas.

    Raises:
      ConfigError: a name that is none of them.
    """
    names = frozenset(part.strip() for part in text.split(",")) if text else frozenset()
    if unknown := sorted(names - ALLOWANCES.keys()):
        known = "; ".join(f"{name}: {meaning}" for name, meaning in ALLOWANCES.items())
        raise ConfigError(f"--allow: expected some of these, separated by commas ({known}); got {', '.join(map(repr, unknown))}")
    return names


class OperatingRule(NamedTuple):
    """How the threshold of the EOS head is chosen on validation episodes."""

    kind: str  # false_alarms, f1, cost, early or fixed
    # Most false alarms per episode; the collar in control steps; the cost of a miss if a false alarm costs 1; the largest share of firings
    # that come early.
    value: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "fixed" else f"{self.kind}:{self.value:g}"


def parse_operating_rule(text: str) -> OperatingRule:
    """The rule that `--eos_operating_point` names.

    Raises:
      ConfigError: no such rule, or a number outside its range.
    """
    kind, _, number = text.partition(":")
    if text == "fixed":
        return OperatingRule("fixed")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    finite = math.isfinite(value)
    sound = {
        "false_alarms": value >= 0,
        "f1": value >= 0 and finite and value == int(value),
        "cost": value > 0,
        "early": 0 <= value < 1,
    }
    if not (finite and sound.get(kind)):
        raise ConfigError(
            "--eos_operating_point: expected false_alarms:K (at most K an episode, then fewest misses), f1:C (a whole number of steps), "
            "cost:R (a miss costs R false alarms, above 0), early:S (the share of firings before an end, below 1) or fixed "
            f"(--eos_threshold itself); got {text!r}"
        )
    return OperatingRule(kind, value)
