"""The pick-and-place tasks of LIBERO: which there are, what their BDDL files say, and the sub-steps of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from eosjax.envs.worlds import WorldError

# By their number in the suite's own order: those that the scripted expert finishes, or nearly always. docs/closed_loop.md has its success.
COVERED = {
    "libero_goal": (1, 4, 6, 8),
    "libero_object": tuple(range(10)),
    "libero_spatial": (0, 1, 2, 5, 6, 8),
}
VERBS = ("move", "pick", "move", "place", "move")
_WORDS = {"akita_black_bowl": "black bowl"}
_PLACES = ("stove", "cabinet", "plate", "basket", "bowl")
_INTO = ("basket", "bowl")


class Goal(NamedTuple):
    """What a BDDL file asks for."""

    thing: str  # name of the object to be placed, such as `akita_black_bowl_1`
    target: str  # name of the object or region


class Task(NamedTuple):
    """A task of a suite."""

    suite: str
    number: int  # in the suite's own order
    language: str  # the instruction of the whole task
    bddl: str  # path of its BDDL file
    goal: Goal

    @property
    def plan(self) -> list[str]:
        """The instructions of the sub-steps."""
        thing, place = category(self.goal.thing), next(word for word in _PLACES if word in self.goal.target)
        thing = _WORDS.get(thing, thing.replace("_", " "))
        return [
            f"reach for the {thing}",
            f"grasp the {thing} and lift it",
            f"move the {thing} above the {place}",
            f"place the {thing} {'in' if place in _INTO else 'on'} the {place}",
            "move the gripper away",
        ]


def category(name: str) -> str:
    """The kind of an object: its name without the number."""
    return re.sub(r"_\d+$", "", name)


def read_goal(text: str) -> Goal:
    """The goal of a BDDL file with this text.

    Raises:
      WorldError: it is not that one thing lies on or in another.
    """
    goal = re.search(r"\(:goal\s*\(And((?:\s*\([^()]*\))*)\s*\)", text, re.IGNORECASE)
    atoms = re.findall(r"\(([^()]*)\)", goal[1]) if goal else []
    words = atoms[0].split() if len(atoms) == 1 else []
    if len(words) != 3 or words[0].lower() not in ("on", "in"):
        raise WorldError(f"expected the goal that one thing is on or in another, got {' '.join((goal[1] if goal else 'none').split())}")
    return Goal(words[1], words[2])


def split_name(name: str) -> tuple[str, tuple[int, ...]]:
    """The suite and the numbers of the tasks that `SUITE` or `SUITE:1,4` names.

    Raises:
      WorldError: a task that is not covered.
    """
    suite, _, given = name.partition(":")
    covered = COVERED[suite]
    if not given:
        return suite, covered
    wanted = given.split(",")
    wrong = [each for each in wanted if each not in map(str, covered)]
    if wrong:
        raise WorldError(f"--env {name}: expected some of the tasks {_listed(covered)} of {suite}, got {_listed(wrong)}")
    return suite, tuple(dict.fromkeys(map(int, wanted)))


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
