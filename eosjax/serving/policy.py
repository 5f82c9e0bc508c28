"""A policy as a robot sees it.

An observation and an instruction go in; a chunk of actions comes out, and where in it the sub-step ends:

    policy, clock = Policy.load(Path("runs/my-run")), Clock()
    step = policy({"images": [primary, wrist], "state": state}, "pick up the bowl", clock)
    robot.execute(step.actions if step.cut is None else step.actions[: step.cut + 1])
    clock = step.clock
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eosjax.data.images import transforms
from eosjax.data.samples.tokens import PromptTokenizer, evaluation_prompt
from eosjax.data.specs import GripperConvention, Normalisation
from eosjax.data.stats import DatasetStats, normalise, unnormalise
from eosjax.data.targets import to_targets
from eosjax.ends.calibration import sigmoid
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import Clock, Rule, cut_chunk
from eosjax.models import policies
from eosjax.models.heads import EosHead
from eosjax.models.openvla import VLAConfig
from eosjax.models.policies import Params
from eosjax.models.stacks import take_apart, unrolls
from eosjax.runs.load import load_run, open_tokenizer
from eosjax.serving.observation import ObservationError, read_images, read_instructions, read_state, split_rows
from eosjax.types import UserError

log = logging.getLogger(__name__)

PROMPT_TOKENS = 64  # prompts are padded to a multiple of this, so that instructions of usual length share one compiled function


class OutputError(UserError):
    """The networks computed something that no robot may execute."""


class Prediction(NamedTuple):
    """What to do next; with a leading batch axis (and lists for `cut` and `clock`) if a list of instructions was given."""

    actions: np.ndarray  # f64 [k a], in the units of the dataset, targets as such; where it is normalised that way, a gripper of 1 is open
    eos_raw: np.ndarray | None  # f64 [k], sigmoid of what the EOS head says; None without an EOS head
    eos: np.ndarray | None  # f64 [k], calibrated probability that the sub-step ends with this action
    cut: Any  # int or None: the action with which the sub-step ends; what follows it belongs to the next one
    clock: Any  # `Clock` for the next call, if one was given, once the actions up to `cut`, or all, are executed; a new one after an end


class Outputs(NamedTuple):
    """What the networks compute, on the device."""

    hidden: jax.Array  # [b k a d], hidden states of each number of each action
    actions: jax.Array  # f32 [b k a], normalised
    eos_logits: jax.Array | None  # f32 [b k], raw


class Origin(NamedTuple):
    """The checkpoint of a policy."""

    record: str  # fingerprint of its record
    step: int  # updates made


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a policy was trained, beside its weights."""

    cameras: tuple[str, ...]  # names of those whose images the policy sees: the first ones of the dataset's description
    image_aug: bool  # trained with random crops: evaluated on centre crops
    normalisation: Normalisation
    gripper: GripperConvention  # of the dataset; `Prediction.actions` have 1 = open unless it is "as_stored"
    control_hz: float  # control steps per second
    eos: OperatingPoint | None  # None: no EOS head
    origin: Origin | None = None  # None: built from parts
    from_anchor: bool = False  # the networks say differences from the state, as `DatasetSpec.from_anchor`; `Prediction.actions` are targets

    @property
    def rule(self) -> Rule | None:
        """When a sub-step is said to end where a clock runs, for `eosjax.ends.protocols.cut_chunk`; None without an EOS head."""
        return self.eos and self.eos.rule


class Policy:
    """A trained policy, compiled at its first call.

    The number of rows is padded to a power of two and the prompt to a multiple of `PROMPT_TOKENS`: only a new one of these
    compiles again.

    Args:
        vla_config: the model.
        params: by part, see `eosjax.models.parts`; on the default device from here on.
        stats: of the dataset whose state and actions the robot has.
        tokenizer: of the prompts.
        settings: the rest.
    """

    def __init__(self, vla_config: VLAConfig, params: Params, stats: DatasetStats, tokenizer: PromptTokenizer, settings: Settings) -> None:
        self.config, self.stats, self.tokenizer, self.settings = vla_config, stats, tokenizer, settings
        unroll = unrolls()
        self._params = jax.device_put(take_apart(params) if unroll else params)
        self._run = jax.jit(functools.partial(_run, policies.make_policy(dataclasses.replace(vla_config, unroll=unroll))))

    @classmethod
    def load(cls, run: Path, step: str | int | None = None, dataset: str | None = None, vla_path: str | None = None) -> Policy:
        """The policy of a training run, with all that its numbers mean from the record in its checkpoint.

        Args:
            run: folder of the run.
            step: which checkpoint: `best`, `newest` or a number; None for the best one, or the newest where none was validated.
            dataset: whose statistics to use if the run was trained on several datasets.
            vla_path: where frozen base weights are now, if not where the run found them.

        Raises:
            eosjax.runs.checkpoint.CheckpointError: no run there, no such checkpoint, a damaged one, or other base weights.
            UserError: `dataset` is missing or not one of the run's.

        Says (by `logging`) which checkpoint it took, and warns if its threshold was not chosen on this very checkpoint.
        """
        run = Path(run)
        saved = load_run(run, step, vla_path=vla_path, apart=unrolls())
        record = saved.record.run
        data = record.dataset(dataset)
        log.info("%s: %s", run, saved.chosen.sentence())
        if saved.operating_point and (saved.record.score is None or not saved.operating_point.episodes):
            log.warning("%s, step %d: %s", run, saved.step, saved.record.describe_point())
        settings = Settings(
            cameras=data.spec.image_keys[: record.config.num_images_in_input],
            image_aug=record.config.image_aug,
            normalisation=data.spec.normalisation,
            gripper=data.spec.gripper,
            control_hz=data.spec.control_hz,
            eos=saved.operating_point,
            origin=Origin(saved.record.fingerprint, saved.step),
            from_anchor=data.spec.from_anchor,
        )
        return cls(record.model, saved.params, data.statistics, open_tokenizer(run, saved.record), settings)

    @property
    def state_size(self) -> int:
        """Numbers of the state that an observation must have; 0 for none."""
        return self.stats.proprio.min.size if self.settings.from_anchor else self.config.proprio_dim

    def __call__(
        self, observation: Mapping[str, Any], instruction: str | Sequence[str], clock: Clock | Sequence[Clock] | None = None
    ) -> Prediction:
        """The next chunk of actions. Remembers nothing: what a rule must know of the steps before goes in and out as a clock.

        Args:
            observation: `images`, u8 [h w 3] of any size for each camera, in the order of the dataset's description; `state` [p],
                as the dataset has it, for a policy with proprioception or with differences from the state. For a list of instructions
                each image and the state have a leading axis, or are lists.
            instruction: the sub-step to follow, or a list of b.
            clock: of the running sub-step, or a list of b: `Clock()` at its first step, then that of the last prediction. With it the end
                is decided by the whole rule of the operating point; None decides chunk by chunk, by its plain threshold.

        Raises:
            ObservationError: something is missing, has another shape or type than it should, or is not finite; before the networks run.
            OutputError: an action or a logit is not finite.
        """
        given = _clocks(clock, instruction)
        states = [read_state(row, self.state_size) for row in _rows(observation, instruction)] if self.settings.from_anchor else []
        outputs = self.outputs(observation, instruction)
        actions = unnormalise(np.asarray(outputs.actions), self.stats.action, self.settings.normalisation)
        if states:
            actions = to_targets(actions, np.stack(states)[:, None])
        _check_finite("action", actions)
        raw = corrected = None
        cuts: list[Any] = [None] * len(actions)
        clocks: list[Any] = given
        if self.settings.eos is not None and outputs.eos_logits is not None:
            logits = np.asarray(outputs.eos_logits).astype(np.float64)
            raw, corrected = sigmoid(logits), self.settings.eos.calibration.probabilities(logits)
            decided = [_cut(row, self.settings.eos, each) for row, each in zip(corrected, given, strict=True)]
            cuts, clocks = [cut for cut, _ in decided], [after for _, after in decided]
        if not isinstance(instruction, str):
            return Prediction(actions, raw, corrected, cuts, clocks)
        return Prediction(actions[0], None if raw is None else raw[0], None if corrected is None else corrected[0], cuts[0], clocks[0])

    def outputs(self, observation: Mapping[str, Any], instruction: str | Sequence[str]) -> Outputs:
        """The bare outputs of the networks, always with a batch axis; arguments and errors as in `__call__`."""
        instructions = read_instructions(instruction)
        rows = _rows(observation, instruction)
        pictures = np.stack([self._pictures(row) for row in rows])
        proprio = np.stack([self._proprio(row) for row in rows])
        inputs = (pictures, *self._text(instructions), proprio)
        padding = (1 << (len(rows) - 1).bit_length()) - len(rows)
        padded = (np.concatenate([x, np.repeat(x[:1], padding, axis=0)]) for x in inputs)
        outputs = jax.tree.map(lambda x: x[: len(rows)], self._run(self._params, *padded))
        _check_finite("normalised action", outputs.actions)
        if outputs.eos_logits is not None:
            _check_finite("EOS logit", outputs.eos_logits)
        return outputs

    def _pictures(self, row: Mapping[str, Any]) -> np.ndarray:
        """u8 [v h w 3], prepared as for evaluation."""
        prepare = transforms.centre_crop if self.settings.image_aug else transforms.resize
        return np.stack([prepare(image, self.config.dino.image_size) for image in read_images(row, self.settings.cameras)])

    def _proprio(self, row: Mapping[str, Any]) -> np.ndarray:
        """f32 [p], normalised; [0] for a policy without proprioception.

        Clipped as a whole, as in the original, though in training the dimensions outside the mask are not.
        """
        size = self.config.proprio_dim
        if not size:
            return np.zeros(0, np.float32)
        return np.clip(normalise(read_state(row, size), self.stats.proprio, self.settings.normalisation), -1.0, 1.0)

    def _text(self, instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask [b l]."""
        shortest = self.tokenizer.required_length(instructions, 0)
        length = -(-shortest // PROMPT_TOKENS) * PROMPT_TOKENS + self.config.action_tokens
        return self.tokenizer.encode([evaluation_prompt(each) for each in instructions], length, self.config.action_tokens)


def _rows(observation: Mapping[str, Any], instruction: Any) -> Sequence[Mapping[str, Any]]:
    """The observation of each instruction."""
    return [observation] if isinstance(instruction, str) else split_rows(observation, len(read_instructions(instruction)))


def _cut(probabilities: np.ndarray, point: OperatingPoint, clock: Any) -> tuple[int | None, Clock | None]:
    """Where a chunk ends its sub-step, and the clock after it."""
    if clock is None:
        return first_end(probabilities, point.plain_threshold), None
    found = cut_chunk(probabilities, point.rule, clock)
    return found.slot, found.clock


def first_end(probabilities: np.ndarray, threshold: float) -> int | None:
    """The first of the probabilities [k] that reaches the threshold; None if none does."""
    reached = np.flatnonzero(probabilities >= threshold)
    return int(reached[0]) if reached.size else None


def _clocks(clock: Any, instruction: Any) -> list[Clock | None]:
    """The clock of each instruction, or None for each; `ObservationError` for another number of them, or something else."""
    given: list[Any] = [clock]
    if not isinstance(instruction, str):
        wanted = len(read_instructions(instruction))
        given = [None] * wanted if clock is None else list(clock) if isinstance(clock, Sequence) else [clock]
        if len(given) != wanted:
            raise ObservationError(f"clock: expected {wanted}, one for each instruction, got {len(given)}")
    for each in given:
        if each is not None and not isinstance(each, Clock):
            raise ObservationError(
                f"clock: expected a Clock, as an earlier prediction has it, or None; got {type(each).__name__} {each!r:.40}"
            )
    return given


def _check_finite(what: str, values: Any) -> None:
    """Raises `OutputError` if `values` [b k …] are not all finite."""
    faulty = np.argwhere(~np.isfinite(np.asarray(values)))
    if faulty.size:
        row, slot = faulty[0, :2].tolist()
        raise OutputError(
            f"the policy's {what} is not finite in {len(faulty)} place(s), the first in row {row}, slot {slot}: nothing is returned; its "
            "weights or statistics hold a number that is not finite, or the computation overflowed"
        )


def _run(policy: policies.Policy, params: Params, *inputs: jax.Array) -> Outputs:
    # A policy that denoises starts from the same noise each time, so that what it does depends on what it sees alone.
    keys = jnp.broadcast_to(jax.random.key(0), (len(inputs[0]),))
    hidden, actions = policy.act(params, policies.Observation(*inputs), keys)
    if "eos_head" not in params:
        return Outputs(hidden, actions, None)
    head = params["eos_head"]
    logits: Any = EosHead(head["fc1"]["bias"].shape[0]).apply({"params": head}, hidden)
    return Outputs(hidden, actions, logits)
