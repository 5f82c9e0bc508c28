"""Describes a run: policy, data, checkpoints, and whether everything it needs is here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eosjax.config import CHECKPOINTS, DEMO_DATASET, DEMO_MODEL, TrainConfig
from eosjax.extras import MissingExtraError, check_train_extra
from eosjax.runs.checkpoint import CheckpointError, checkpoint_steps, read_record
from eosjax.runs.faults import UnreadableError
from eosjax.runs.load import TOKENIZER_FILE, Chosen, choose_checkpoint, open_tokenizer
from eosjax.runs.record import CheckpointRecord, DatasetRecord, RunRecord
from eosjax.types import UserError

if TYPE_CHECKING:
    from eosjax.data.frames.store import FrameStore

Rows = list[tuple[str, ...]]
_FIGURES = ("val/action_loss", "val/frame/average_precision", "val/event/ap_mean")


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """What there is to say of a run.

    Attributes:
      folder: of the run.
      chosen: the checkpoint that a command would take.
      checkpoints: the record of each checkpoint by step, or why it cannot be read.
      presence: what a command needs, and whether it is here.
    """

    folder: Path
    chosen: Chosen
    checkpoints: dict[int, CheckpointRecord | str]
    presence: dict[str, str]

    @property
    def run(self) -> RunRecord:
        """The record of the run."""
        return self.chosen.record.run

    def facts(self) -> Rows:
        """Names and values."""
        run, config = self.run, self.run.config
        trained = f"adapters of rank {config.lora_rank} and heads" if config.use_lora else "all weights"
        actions = "diffusion" if config.use_diffusion else "tokens" if config.predicts_tokens else "L1 regression"
        eos = f"{config.eos_loss}, lambda_eos {config.lambda_eos:g}" if config.use_eos_classification else "none"
        software = run.software
        rows = [
            ("run", str(self.folder)),
            ("policy", config.vla_path + (f" at {run.base_revision}" if run.base_revision else "")),
            ("trained", trained),
            ("actions", f"{actions}, chunks of {run.model.chunk} x {run.model.action_dim}"),
            ("EOS head", f"{eos}; {run.share_of_ends:.2%} of the training steps are ends"),
            ("samples per update", str(run.samples_per_update)),
            ("learning rate", f"{config.learning_rate:g}"),
            ("seed", str(config.seed)),
            (
                "made with",
                f"eosjax {software.eosjax}, jax {software.jax}, {software.num_devices} {software.platform} ({software.device_kind})",
            ),
        ]
        if fit := run.head_fit:
            stopped = f", stopped after {fit.passes_kept}" if fit.patience is not None else ""
            how = f"{fit.passes} passes{stopped}, {fit.batch_size} rows an update, learning rate {fit.learning_rate:g}, seed {fit.seed}"
            rows.insert(5, ("EOS head fitted on", f"the hidden states of {fit.run}, checkpoint {fit.checkpoint[:12]}: {how}"))
        if run.wandb_id:
            rows.append(("Weights & Biases", run.wandb_id))
        rows.append(("checkpoint in use", self.chosen.sentence()))
        if self.chosen.record.operating_point is not None:
            rows.append(("operating point", self.chosen.record.describe_point()))
        return rows

    def checkpoint_rows(self) -> Rows:
        """A table, the header first: figures of the checkpoints that were validated as they are."""
        rows: Rows = [("step", "samples", *_FIGURES, "threshold", "chosen at step")]
        for step, record in self.checkpoints.items():
            if isinstance(record, str):
                rows.append((str(step), record, *("" for _ in rows[0][2:])))
                continue
            validation, point = record.validation, record.operating_point
            figures = validation.figures if validation and validation.step == step else {}
            cells = [f"{figures[name]:.4f}" if name in figures else "–" for name in _FIGURES]
            chosen_at = str(validation.step) if validation and point else "–"
            threshold = f"{point.rule.threshold:.3g}" if point else "–"
            rows.append((str(step), str(step * record.run.samples_per_update), *cells, threshold, chosen_at))
        return rows

    def dataset_rows(self) -> Rows:
        """A table of the datasets, the header first."""
        rows: Rows = [("name", "episodes", "steps", "weight", "cameras", "normalisation", "gripper", "Hz", "frames", "labels")]
        for each in self.run.datasets:
            spec, stats = each.spec, each.statistics
            cameras = " ".join(spec.image_keys[: self.run.config.num_images_in_input])
            rows.append(
                (
                    each.name,
                    str(stats.num_trajectories),
                    str(stats.num_transitions),
                    f"{each.weight:g}",
                    cameras,
                    spec.normalisation,
                    spec.gripper,
                    f"{spec.control_hz:g}",
                    each.frames[:12],
                    each.labels[:12],
                )
            )
        return rows

    def presence_rows(self) -> Rows:
        """What is needed, and whether it is here."""
        return list(self.presence.items())

    def to_json(self) -> dict[str, Any]:
        """Everything, with the whole record of the checkpoint."""
        figures = {
            str(step): record
            if isinstance(record, str)
            else {"validated": record.score is not None, "figures": dict(record.validation.figures) if record.validation else {}}
            for step, record in self.checkpoints.items()
        }
        record = self.chosen.record.to_json()
        del record["fingerprints"], record["sha256"]
        return {"run_dir": str(self.folder), "step": self.chosen.record.step, "why": self.chosen.why} | {
            "checkpoints": figures,
            "here": self.presence,
            "record": record,
        }


def describe_run(
    run_dir: Path, step: str | None = None, vla_path: str | None = None, data_root: Path | None = None, labels: Path | None = None
) -> RunDescription:
    """Reads the records of a run and looks for what it needs.

    Args:
      run_dir: folder of the run.
      step: which checkpoint, see `eosjax.runs.load.choose_checkpoint`.
      vla_path: where to look for base weights; None: where the run found them.
      data_root: where to look for the datasets; None: where the run found them.
      labels: where to look for the labels, as `--substep_labels_path` says it; None: where the run found them.

    Raises:
      eosjax.runs.checkpoint.CheckpointError: no run there, or no such checkpoint.
    """
    chosen = choose_checkpoint(run_dir, step)
    directory = run_dir / CHECKPOINTS
    records: dict[int, CheckpointRecord | str] = {}
    for number in checkpoint_steps(directory):
        try:
            records[number] = read_record(directory / str(number))
        except (CheckpointError, UnreadableError) as error:
            records[number] = str(error).removeprefix(f"{directory / str(number)}: ")
    presence = {"tokenizer": _tokenizer(run_dir, chosen.record), "base weights": _base(chosen.record.run, vla_path)}
    config = chosen.record.run.config
    root = data_root or config.data_root_dir
    if labels is not None:
        config = dataclasses.replace(config, substep_labels_path=labels)
    for each, path in zip(chosen.record.run.datasets, config.label_paths, strict=True):
        presence |= _dataset(config, root, each, path)
    return RunDescription(run_dir, chosen, records, presence)


def _tokenizer(run_dir: Path, record: CheckpointRecord) -> str:
    try:
        open_tokenizer(run_dir, record)
    except UserError as error:
        return f"missing or another one: {error}"
    return f"here: {run_dir / TOKENIZER_FILE}"


def _base(run: RunRecord, vla_path: str | None) -> str:
    if not run.base or run.config.vla_path == DEMO_MODEL:
        return "not needed: all weights are in the checkpoint"
    path = vla_path or run.config.vla_path
    folder = Path(path).expanduser()
    if folder.is_dir():
        return f"found: {folder} (its weights are compared when it is loaded)"
    import huggingface_hub  # slow to import, and needed for names only

    try:
        cached = huggingface_hub.snapshot_download(path, revision=run.base_revision, local_files_only=True)
    except (OSError, ValueError):  # its errors are both
        return f"missing: {path} is neither a folder nor in the cache of the hub; --vla_path says where it is"
    return f"found: {cached} (its weights are compared when it is loaded)"


def _dataset(config: TrainConfig, root: Path, recorded: DatasetRecord, labels: Path | None) -> dict[str, str]:
    """Whether a dataset and its labels are what the run was trained on, as far as that can be told without building a frame store."""
    frames = f"dataset {recorded.name}"
    try:
        check_train_extra()
    except MissingExtraError as error:
        return {frames: f"not looked for: this {error}"}
    from eosjax.data.frames.store import FrameStore, store_folder  # behind the check, since it needs the extra

    if recorded.name == DEMO_DATASET:
        return {frames: "not needed: generated on first use"}
    place = root / recorded.name
    try:
        folder = store_folder(root, recorded.name, recorded.spec, config.cache_dir)
        if not folder.exists():
            return {frames: f"found: {place} (content and labels are compared when they are read)"}
        store = FrameStore(folder)
    except UserError as error:
        return {frames: f"missing: {error}"}
    if store.fingerprint != recorded.frames:
        return {frames: f"changed: {place}: expected frames {recorded.frames}, got {store.fingerprint}"}
    return {frames: f"here: {place}", f"labels {recorded.name}": _labels(config, root, recorded, store, labels)}


def _labels(config: TrainConfig, root: Path, recorded: DatasetRecord, store: FrameStore, path: Path | None) -> str:
    from eosjax.data.sources import own_labels
    from eosjax.runs.data import label_fingerprint, read_labels

    try:
        path = path or own_labels(root, recorded.name)
        place = path if config.use_substep_eos else "the tasks of the dataset"
        found = label_fingerprint(read_labels(config, recorded.name, store, path, recorded.spec))
    except UserError as error:
        return f"missing or others: {str(error).splitlines()[0]}"
    return f"here: {place}" if found == recorded.labels else f"changed: {place}: expected labels {recorded.labels}, got {found}"
