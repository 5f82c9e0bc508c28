"""A finished run, read back from its folder without its data and its optimizer: for serving, evaluation and export.

run = load_run(Path("runs/my-run"))          # the best checkpoint
run.record.run.datasets[0].spec              # what its numbers mean
run.params["eos_head"]                       # its weights
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from eosjax.config import CHECKPOINTS, DEMO_MODEL, TrainConfig
from eosjax.data.samples.tokens import PromptForm, PromptTokenizer, load_tokenizer
from eosjax.ends.operating_points import OperatingPoint
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.openvla import VLAConfig
from eosjax.models.parts import abstract_params, base_parts, split_params
from eosjax.models.policies import Params
from eosjax.models.shards import in_stack
from eosjax.runs.checkpoint import (
    CheckpointError,
    checkpoint_steps,
    fetch_fingerprints,
    fetch_fingerprints_of_base,
    read_record,
    restore_part,
)
from eosjax.runs.record import CheckpointRecord, fingerprint

log = logging.getLogger(__name__)
TOKENIZER_FILE = "tokenizer.json"  # in the folder of a run
BEST, NEWEST = "best", "newest"


class Chosen(NamedTuple):
    """A checkpoint of a run."""

    folder: Path
    record: CheckpointRecord
    why: str  # it and no other, in words

    def sentence(self) -> str:
        """Which checkpoint it is, for the console."""
        return f"checkpoint of step {self.record.step} ({self.why})"


@dataclasses.dataclass(frozen=True, eq=False)
class SavedRun:
    """A checkpoint of a run, read.

    Attributes:
      folder: of the run.
      chosen: which checkpoint, with its record.
      params: by part, see `eosjax.models.parts`; what was trained as NumPy arrays, a frozen base on the default device.
    """

    folder: Path
    chosen: Chosen
    params: Params

    @property
    def record(self) -> CheckpointRecord:
        """What its numbers mean."""
        return self.chosen.record

    @property
    def config(self) -> TrainConfig:
        """The configuration of the run, as it was used; paths in it may have gone since."""
        return self.record.run.config

    @property
    def vla_config(self) -> VLAConfig:
        """The shape of the policy."""
        return self.record.run.model

    @property
    def step(self) -> int:
        """Updates made."""
        return self.record.step

    @property
    def operating_point(self) -> OperatingPoint | None:
        """What turns the raw logits of the EOS head into decisions; None without that head."""
        return self.record.operating_point


def load_run(
    run_dir: Path, step: str | int | None = None, *, with_base: bool = True, vla_path: str | None = None, apart: bool = False
) -> SavedRun:
    """The policy of a checkpoint.

    Args:
      run_dir: folder of the run, as `eosjax.training.run.run` leaves it.
      step: which checkpoint, see `choose_checkpoint`.
      with_base: read the frozen base weights, too. A base that was trained is in the checkpoint anyway.
      vla_path: where the base weights are now; None: where the run found them.
      apart: the stacks of a frozen base as `eosjax.models.stacks.take_apart` has them, without ever being whole on the device.

    Raises:
      CheckpointError: no run in the folder, no such checkpoint, one that is damaged, or base weights that are not those of the run.
      eosjax.models.hf.weights.WeightsError: there is nothing at `vla_path`, or no such policy.
    """
    chosen = choose_checkpoint(run_dir, step)
    record = chosen.record.run
    trained, frozen = split_params(abstract_params(record.config, record.model))
    params = restore_part(chosen.folder, "trainable", trained, chosen.record)
    run = SavedRun(run_dir, chosen, params)
    if not with_base or not frozen or record.config.vla_path == DEMO_MODEL:
        return run
    pretrained = open_base(run, vla_path)

    def put(path: tuple[str, ...], array: np.ndarray) -> Any:
        return jax.device_put(tuple(array) if apart and in_stack(path) else array)

    base = _frozen_base(pretrained.load_base(record.model, put)[0], record.model)
    _compare_base(pretrained, run, fetch_fingerprints_of_base(base))
    return dataclasses.replace(run, params=params | base)


def choose_checkpoint(run_dir: Path, step: str | int | None = None) -> Chosen:
    """Which checkpoint of a run is meant; reads the records alone.

    Args:
      run_dir: folder of the run.
      step: `best` (the highest validation score), `newest`, or the number of updates made (as a number or text); None: the best one, or
        the newest where no checkpoint was validated.

    Raises:
      CheckpointError: no run in the folder, no such checkpoint, or one whose record is damaged.
      eosjax.runs.faults.UnreadableError: a record cannot be read, which shows no damage.
    """
    directory = run_dir / CHECKPOINTS
    steps = checkpoint_steps(directory)
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: no such folder; expected that of a training run")
    if not steps:
        raise CheckpointError(f"{directory}: no checkpoint; expected the folder of a training run")
    if step in (None, BEST):
        return _best(directory, steps, required=step == BEST)
    if step == NEWEST:
        return Chosen(directory / str(steps[-1]), read_record(directory / str(steps[-1])), "the newest")
    if str(step) not in map(str, steps):
        listed = ", ".join(map(str, steps))
        raise CheckpointError(f"{directory}: no checkpoint of step {step}; expected {BEST}, {NEWEST} or one of {listed}")
    return Chosen(directory / str(step), read_record(directory / str(step)), "as asked for")


def _best(directory: Path, steps: list[int], *, required: bool) -> Chosen:
    records, fault = [], None
    for step in steps:
        try:
            records.append(read_record(directory / str(step)))
        except CheckpointError as error:  # one that is damaged must not hide the others
            log.warning("%s", error)
            fault = error
    if fault is not None and not records:
        raise fault
    validated = [record for record in records if record.validation is not None and record.score is not None]
    if not validated:
        if required:
            raise CheckpointError(f"{directory}: no checkpoint was validated, so that none is the best; expected {NEWEST} or a step")
        return Chosen(directory / str(records[-1].step), records[-1], "the newest; none was validated")
    best = max(validated, key=lambda record: (record.score, record.step))
    assert best.validation is not None
    name, value = best.validation.score
    others = f" of {len(validated)}" if len(validated) > 1 else ""
    return Chosen(directory / str(best.step), best, f"the best{others} validated: {name} {value:.4f}")


def open_tokenizer(run_dir: Path, record: CheckpointRecord) -> PromptTokenizer:
    """The tokenizer of a run, from its folder.

    Raises:
      CheckpointError: it is not there or not the one that was trained with, or this version of eosjax words prompts otherwise.
    """
    path = run_dir / TOKENIZER_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; the folder of a run has its tokenizer") from error
    if (found := fingerprint(content)) != record.run.tokenizer:
        raise CheckpointError(
            f"{path}: not the tokenizer that the run was trained with: expected SHA-256 {record.run.tokenizer}, got {found}"
        )
    form = PromptForm.of(record.run.config.rephrase)
    if form != record.run.prompt:
        raise CheckpointError(f"{run_dir}: trained on prompts like {record.run.prompt.evaluation!r}; this version asks {form.evaluation!r}")
    return load_tokenizer(path)


def open_base(run: SavedRun, vla_path: str | None = None) -> Pretrained:
    """The checkpoint that the run began with: at `vla_path`, or where the run found it (on the hub: the same commit)."""
    record = run.record.run
    if vla_path is not None:
        return Pretrained.open(vla_path)
    return Pretrained.open(record.config.vla_path, record.base_revision)


def check_base(run: SavedRun, pretrained: Pretrained) -> None:
    """Raises `CheckpointError` unless `pretrained` holds the frozen base weights of the run; reads them array by array."""
    if not run.record.run.base:
        return
    base = _frozen_base(pretrained.load_base(run.vla_config, lambda _, array: fetch_fingerprints(array))[0], run.vla_config)
    read: dict[Any, Any] = dict(flatten_dict(base))
    _compare_base(pretrained, run, {"".join(f"['{key}']" for key in path[:-1]): value for path, value in read.items()})


def _frozen_base(base: Params, vla_config: VLAConfig) -> Params:
    """Those parts of the base weights that the run left as they were."""
    return {part: tree for part, tree in base_parts(base, vla_config).items() if vla_config.lora_rank or part == "vision_backbone"}


def _compare_base(pretrained: Pretrained, run: SavedRun, found: dict[str, int]) -> None:
    expected = run.record.run.base
    if found != expected:
        changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise CheckpointError(
            f"{pretrained.folder}: the base weights are not those that the run began with: {len(changed)} of {len(expected)} arrays "
            f"differ, such as {changed[0]}: expected fingerprint {expected.get(changed[0])}, got {found.get(changed[0])}"
        )
