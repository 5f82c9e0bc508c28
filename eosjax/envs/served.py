"""A policy behind `eosjax serve`, as a rollout asks it: the robot-side broker plays its chunks and decides where sub-steps end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eosjax.ends.protocols import Clock, Rule
from eosjax.envs.rollout import Asked, Chunks, End
from eosjax.serving.broker import Broker, BrokerSettings
from eosjax.serving.chunk import Chunk
from eosjax.serving.client import RemotePolicy, ServerLostError
from eosjax.serving.decisions import DecisionLog
from eosjax.serving.door import Budget
from eosjax.types import UserError

_TIME_OUT = "time_out"  # outcome of a broker whose only sub-step ended because its time was up
_SETTINGS = BrokerSettings(on_time_out="stop", on_loss="stop")
LogOf = Callable[[Asked], DecisionLog]
_SHARE = 0.9  # of the requests per second that the server allows


class ServedPlanner:
    """Asks a server, one row after the other over one connection. Each sub-step of each episode has a broker.

    A server that gets one request at a time computes it alone: what it says does not depend on which episodes run beside it.

    Args:
      policy: of the server.
      log: where the broker of a sub-step that begins writes its decisions; None to keep none.

    Raises:
      UserError: the server wants the state in several entries, which an environment does not have.
    """

    def __init__(self, policy: RemotePolicy, log: LogOf | None = None) -> None:
        self._link, self._log = _Link(policy), log
        self._entries = _Entries(policy.metadata)
        self._brokers: dict[int, Broker] = {}

    def __call__(self, observation: dict[str, Any], asked: Sequence[Asked]) -> Chunks:
        """The next chunk of each row. Raises as `RemotePolicy.plan`."""
        said = [self._play(self._entries.row(observation, row), each) for row, each in enumerate(asked)]
        actions = np.stack([chunk.actions for chunk, _ in said]).astype(np.float32)
        eos = [chunk.eos for chunk, _ in said if chunk.eos is not None]
        return Chunks(actions, np.stack(eos) if eos else None, [end for _, end in said])

    def _play(self, observation: Mapping[str, Any], asked: Asked) -> tuple[Chunk, End | None]:
        """A whole chunk, and where the broker ends the sub-step in it."""
        broker = self._brokers.get(asked.episode)
        if broker is None or asked.begins or broker.done:  # it is done where another switcher does not follow it
            log = self._log and self._log(asked)
            broker = Broker(self._link, [asked.instruction], _SETTINGS, log=log, episode=str(asked.episode))
            self._brokers[asked.episode] = broker
        played = []
        while len(played) < self._link.chunk and not broker.done:
            action = broker.act(lambda: observation)
            if action is None:
                raise self._link.fault
            played.append(action)
        chunk = self._link.said
        actions = np.concatenate([np.stack(played), chunk.actions[len(played) :]])  # the broker drops what follows an end
        return Chunk(actions, chunk.eos), End(len(played) - 1, broker.outcome == _TIME_OUT) if broker.done else None


class _Link:
    """The server, as a broker asks it. Keeps the last chunk and the last loss, and no more requests a second than are allowed."""

    def __init__(self, policy: RemotePolicy) -> None:
        self._policy = policy
        self._rate = _SHARE * policy.metadata["max_rate"]
        self._budget = Budget(self._rate)
        self.chunk: int = policy.chunk
        self.rule: Rule | None = policy.rule
        self.said: Chunk
        self.fault: ServerLostError

    def plan(self, observation: Mapping[str, Any], instruction: str, clock: Clock, execute_steps: int) -> Chunk:
        """See `eosjax.serving.broker.Planner`."""
        while not self._budget.take():
            time.sleep(1.0 / self._rate)
        try:
            self.said = self._policy.plan(observation, instruction, clock, execute_steps)
        except ServerLostError as error:
            self.fault = error
            raise
        return self.said


class _Entries:
    """An environment's observation under the keys that a server names in its metadata."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._images: Mapping[str, str] = metadata["images"]
        self._turn: Callable[[np.ndarray], np.ndarray] = (
            (lambda image: np.moveaxis(image, -1, 0)) if metadata["image_channels"] == "first" else (lambda image: image)
        )
        self._state: Sequence[str] = metadata["state"]
        if len(self._state) > 1:
            raise UserError(
                f"--server: takes the state of another robot, in the entries {', '.join(self._state)}; expected one: "
                "start it with --keys libero, or a file with one key"
            )

    def row(self, observation: Mapping[str, Any], row: int) -> dict[str, Any]:
        """What the server takes; `UserError` for an environment that does not have it."""
        images = observation["images"]
        if len(images) < len(self._images):
            raise UserError(f"--server: takes images of {', '.join(self._images)}; those of the environment are {len(images)}")
        found = {key: np.ascontiguousarray(self._turn(images[number][row])) for number, key in enumerate(self._images.values())}
        if self._state:
            if "state" not in observation:
                raise UserError("--server: takes the state of the robot; the environment has none")
            found[self._state[0]] = observation["state"][row]
        return found
