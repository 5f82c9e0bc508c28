"""One connection's sub-step: the clock between its requests, what a request may say about it, and the reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from eosjax.ends.protocols import Clock, Cut, Rule, cut_chunk
from eosjax.serving.chunk import Chunk
from eosjax.serving.inference import Answer
from eosjax.serving.observation import ObservationError

OPTIONS = "eosjax"  # the entry of a request that only clients of this server send
NO_END = -1  # `cut` of a chunk in which the sub-step goes on
_LONGEST_ID = 64
_MOST_STEPS = 1_000_000_000


class Options(NamedTuple):
    """What a request says beside the observation."""

    request_id: str | int | None = None  # comes back in the reply
    clock: Clock | None = None  # of the running sub-step, held by the client; None: the connection's
    execute_steps: int | None = None  # how many actions of the chunk the robot will execute; None: as the server was told
    reset: bool = False  # a new sub-step begins, even under the same instruction


def read_options(message: Mapping[str, Any], chunk: int) -> Options:
    """The entry `eosjax` of a request; `ObservationError` for one that is not as described."""
    given = message.get(OPTIONS, {})
    if not isinstance(given, dict) or (unknown := given.keys() - set(Options._fields)):
        what = f"the unknown {sorted(unknown)}" if isinstance(given, dict) else type(given).__name__
        raise ObservationError(f"{OPTIONS}: expected a map of {', '.join(Options._fields)}, got {what!s:.80}")
    options = Options(**given)
    if not (options.request_id is None or _is_count(options.request_id) or isinstance(options.request_id, str)):
        raise ObservationError(f"{OPTIONS}/request_id: expected a text or a whole number, got {options.request_id!r:.80}")
    if isinstance(options.request_id, str) and len(options.request_id) > _LONGEST_ID:
        raise ObservationError(f"{OPTIONS}/request_id: expected at most {_LONGEST_ID} characters, got {len(options.request_id)}")
    if options.execute_steps is not None and not (_is_count(options.execute_steps) and 1 <= options.execute_steps <= chunk):
        raise ObservationError(f"{OPTIONS}/execute_steps: expected 1 to {chunk}, got {options.execute_steps!r:.80}")
    if not isinstance(options.reset, bool):
        raise ObservationError(f"{OPTIONS}/reset: expected true or false, got {options.reset!r:.80}")
    return options if options.clock is None else options._replace(clock=_clock(options.clock))


class Session:
    """What the server remembers of one connection.

    Robots whose client knows nothing of ends need no clock: the connection has one. It starts anew with each instruction that differs from
    the last one, after an end, and with `reset`. A client that sends a clock holds it itself.

    Args:
      rule: when a sub-step ends; None for a policy without an EOS head.
      execute_steps: actions of a chunk that the robot executes before it asks again.
    """

    def __init__(self, rule: Rule | None, execute_steps: int) -> None:
        self._rule, self._execute_steps = rule, execute_steps
        self._instruction: str | None = None
        self._clock = Clock()

    def reply(self, instruction: str, options: Options, answer: Answer) -> tuple[dict[str, Any], Cut | None]:
        """The reply, and what the rule says about the chunk; the clock goes on as if the actions up to the cut, or all, were executed."""
        chunk = answer.chunk
        cut = self._decide(instruction, options, chunk)
        content: dict[str, Any] = {"actions": chunk.actions}
        if cut is not None:
            content["eos"] = chunk.eos
            content["cut"] = NO_END if cut.slot is None else cut.slot
            content["timed_out"] = cut.timed_out
            content["clock"] = cut.clock._asdict()
        if options.request_id is not None:
            content["request_id"] = options.request_id
        content["server_timing"] = {"queue_ms": 1e3 * answer.waited, "infer_ms": 1e3 * answer.computed}
        return content, cut

    def _decide(self, instruction: str, options: Options, chunk: Chunk) -> Cut | None:
        if self._rule is None or chunk.eos is None:
            return None
        if options.clock is not None:
            clock = options.clock
        elif options.reset or instruction != self._instruction:
            clock = Clock()
        else:
            clock = self._clock
        cut = cut_chunk(chunk.eos[: options.execute_steps or self._execute_steps], self._rule, clock)
        self._instruction, self._clock = instruction, cut.clock
        return cut


def _clock(given: Any) -> Clock:
    if not isinstance(given, dict) or given.keys() != set(Clock._fields) or not all(map(_is_count, given.values())):
        raise ObservationError(f"{OPTIONS}/clock: expected the whole numbers {' and '.join(Clock._fields)}, got {given!r:.80}")
    return Clock(**given)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_STEPS
