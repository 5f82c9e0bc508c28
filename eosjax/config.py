"""The configuration of a training run: one flat set of flags, read, checked and written here.

Names and defaults are those of the PyTorch original (OpenVLA-OFT `vla-scripts/finetune.py` with its EOS extension) wherever it has the
flag. This module imports no JAX, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import draccus
import yaml

from eosjax.types import UserError

DEMO_MODEL = "demo"
DEMO_DATASET = "eosjax_demo"

# In the folder of a run
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


class ConfigError(UserError):
    """A configuration that cannot be run; the message says what to change."""


@dataclass(frozen=True)
class TrainConfig:
    """Flags of `train.py`. Without any flag the built-in demo (configs/demo.yaml) is run."""

    # Model
    vla_path: str = "openvla/openvla-7b"  # policy to fine-tune; `demo` builds a small one with random weights
    use_l1_regression: bool = True  # continuous actions from an L1 regression head (the one action head so far)
    num_images_in_input: int = 1  # cameras seen by the policy: 1 = primary, 2 = primary and wrist
    use_proprio: bool = False  # give the robot state to the policy as one more token
    use_lora: bool = True  # freeze the base and train low-rank adapters (and the heads); False trains everything
    lora_rank: int = 32  # rank of the adapters; alpha is min(rank, 16)
    lora_dropout: float = 0.0  # dropout on the input of the adapters
    model_dtype: str = "auto"  # of activations and the frozen base: bfloat16 or float32; auto: float32 for the demo model only
    remat: bool = True  # recompute activations layer by layer in the backward pass: less memory, more time

    # Data
    data_root_dir: Path = Path("datasets/rlds")  # folder that holds the RLDS/TFDS datasets
    dataset_name: str = "libero_goal_no_noops"  # dataset below data_root_dir; `eosjax_demo` is made on first use
    substep_labels_path: Path | None = None  # JSON file with the sub-step labels (the demo brings its own)
    cache_dir: Path | None = None  # where the frame store goes; default $EOSJAX_CACHE or ~/.cache/eosjax
    image_aug: bool = True  # random crop and colour changes on training images
    use_val_set: bool = True  # hold out episodes and validate on them
    val_share: float = 0.1  # share of the episodes that is held out with --use_val_set True
    loader_threads: int = 4  # threads that read, decode and augment samples

    # Training
    run_root_dir: Path = Path("runs")  # a run is written to run_root_dir/<run id>
    run_id_note: str | None = None  # appended to the run id
    run_id_override: str | None = None  # the whole run id
    batch_size: int = 8  # samples per device and forward pass
    grad_accumulation_steps: int = 1  # forward passes per update; the batch of an update is batch_size x this x devices
    max_steps: int = 200_000  # updates
    learning_rate: float = 5e-4  # peak learning rate of AdamW
    lr_warmup_steps: int = 0  # updates of linear warm-up, from a tenth of the learning rate
    num_steps_before_decay: int = 100_000  # updates after which the learning rate falls to a tenth
    val_freq: int = 10_000  # updates between validations; one more at the end
    save_freq: int = 10_000  # updates between checkpoints; one more at the end
    keep_checkpoints: int = 3  # newest checkpoints to keep, beside the one with the best validation
    resume: bool = False  # go on from the newest checkpoint of the run
    seed: int = 7  # seed of weights, data order, augmentation and draws
    num_devices: int = 0  # devices to train on; 0 takes all

    # End of sub-step
    use_substep_eos: bool = True  # instructions and ends from the label file; False: task instruction, no ends
    use_eos_classification: bool = True  # train the EOS head
    lambda_eos: float = 2.0  # weight of the EOS loss: total = L1 + lambda_eos * BCE
    eos_hidden_dim: int = 1024  # width of the EOS head
    eos_dropout: float = 0.1  # dropout in the EOS head
    eos_threshold: float = 0.5  # probability from which a step counts as an end in the training metrics
    eos_buffer_capacity: int = 50  # hidden states kept per class
    eos_sample_positive: int = 15  # ends drawn for each update
    eos_sample_negative: int = 20  # other steps drawn for each update
    eos_min_positive: int = 15  # ends in the buffer before the first update
    eos_min_negative: int = 20  # other steps in the buffer before the first update
    eos_tune: str = "manual"  # auto: choose the counts of ends from their share in the training data

    # Logging
    log_freq: int = 10  # updates between log lines
    use_tensorboard: bool = True  # write TensorBoard event files
    use_wandb: bool = False  # log to Weights & Biases (extra `wandb`)
    wandb_project: str = "eosjax"  # project of the run there
    wandb_entity: str | None = None  # user or team of the run there

    def __post_init__(self) -> None:
        """Checks what can be checked without touching the disk. Raises `ConfigError`."""
        _check_values(self)
        _check_eos_counts(self)
        _check_combinations(self)

    @property
    def run_dir(self) -> Path:
        """Folder of this run: made of what tells runs apart, so that two different ones do not meet in one folder."""
        return self.run_root_dir / (self.run_id_override or _run_id(self))

    @property
    def compute_dtype(self) -> str:
        """`model_dtype` with `auto` resolved: bfloat16 suits pretrained weights and accelerators, float32 the demo model on a CPU."""
        if self.model_dtype == "auto":
            return "float32" if self.vla_path == DEMO_MODEL else "bfloat16"
        return self.model_dtype

    @property
    def is_demo_data(self) -> bool:
        """Whether the dataset is the built-in one, which is generated on first use."""
        return self.dataset_name == DEMO_DATASET


def _run_id(config: TrainConfig) -> str:
    model = Path(config.vla_path).name or config.vla_path
    parts = [f"{model}+{config.dataset_name}+b{config.batch_size * config.grad_accumulation_steps}"]
    parts.append(f"+lr-{config.learning_rate:g}")
    if config.use_lora:
        parts.append(f"+lora-r{config.lora_rank}+dropout-{config.lora_dropout:g}")
    if config.image_aug:
        parts.append("--image_aug")
    if config.use_eos_classification:
        parts.append(f"--eos-cap{config.eos_buffer_capacity}")
    parts.append(f"--seed{config.seed}")
    if config.run_id_note:
        parts.append(f"--{config.run_id_note}")
    return "".join(parts)


_POSITIVE = (
    "num_images_in_input lora_rank loader_threads batch_size grad_accumulation_steps max_steps learning_rate num_steps_before_decay "
    "val_freq save_freq keep_checkpoints lambda_eos eos_hidden_dim eos_buffer_capacity eos_sample_positive eos_sample_negative "
    "eos_min_positive eos_min_negative log_freq"
).split()
_NOT_NEGATIVE = ("lr_warmup_steps", "num_devices", "seed")
_SHARES = ("lora_dropout", "eos_dropout")
_CHOICES = {"model_dtype": ("auto", "bfloat16", "float32"), "eos_tune": ("manual", "auto"), "num_images_in_input": (1, 2)}


def _check_values(config: TrainConfig) -> None:
    for name in _POSITIVE:
        if not getattr(config, name) > 0:
            raise ConfigError(f"--{name} must be greater than 0, got {getattr(config, name)}")
    for name in _NOT_NEGATIVE:
        if getattr(config, name) < 0:
            raise ConfigError(f"--{name} must not be negative, got {getattr(config, name)}")
    for name in _SHARES:
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"--{name} must be at least 0 and less than 1, got {getattr(config, name)}")
    for name in ("val_share", "eos_threshold"):
        if not 0 < getattr(config, name) < 1:
            raise ConfigError(f"--{name} must lie between 0 and 1, got {getattr(config, name)}")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ConfigError(f"--{name} must be one of {', '.join(map(str, choices))}, got {getattr(config, name)}")


def _check_eos_counts(config: TrainConfig) -> None:
    if not config.use_eos_classification:
        return
    for kind in ("positive", "negative"):
        least, drawn = getattr(config, f"eos_min_{kind}"), getattr(config, f"eos_sample_{kind}")
        if least < drawn:
            raise ConfigError(
                f"--eos_min_{kind} ({least}) is less than --eos_sample_{kind} ({drawn}): a draw could ask for more rows than there "
                f"are; raise --eos_min_{kind} to at least {drawn} or lower --eos_sample_{kind}"
            )
        if config.eos_buffer_capacity < least:
            raise ConfigError(
                f"--eos_buffer_capacity ({config.eos_buffer_capacity}) is less than --eos_min_{kind} ({least}): the buffer could never "
                f"become ready; raise --eos_buffer_capacity to at least {least} or lower --eos_min_{kind}"
            )


def _check_combinations(config: TrainConfig) -> None:
    if config.use_eos_classification and not config.use_substep_eos:
        raise ConfigError(
            "--use_eos_classification True needs the ends of the sub-steps, and --use_substep_eos False leaves them out: the EOS head "
            "would never learn; set --use_substep_eos True or --use_eos_classification False"
        )
    if not config.use_l1_regression:
        raise ConfigError("--use_l1_regression False: the L1 regression head is the only action head; leave it on")
    if config.vla_path == DEMO_MODEL and config.use_lora:
        raise ConfigError(
            "--vla_path demo starts from random weights, not worth freezing under adapters; add --use_lora False to train it whole"
        )


def check_paths(config: TrainConfig) -> None:
    """Checks what the run will read and where it will write, before anything is built.

    Raises `ConfigError` for a missing dataset or label file, for a run folder that already holds a run (unless `resume`), and for
    `resume` without a run to go on from. Whether that run holds a usable checkpoint is for `training.checkpoint` to say.
    """
    if not config.is_demo_data:
        dataset = config.data_root_dir / config.dataset_name
        if not dataset.is_dir():
            raise ConfigError(f"no dataset at {dataset}: set --data_root_dir to the folder that holds {config.dataset_name}/")
    if config.substep_labels_path is not None and not config.substep_labels_path.is_file():
        raise ConfigError(f"--substep_labels_path {config.substep_labels_path}: no such file")
    if config.use_substep_eos and config.substep_labels_path is None and not config.is_demo_data:
        raise ConfigError(
            "--substep_labels_path is missing: the ends of the sub-steps come from it (or train without them: --use_substep_eos False "
            "--use_eos_classification False)"
        )
    if config.resume:
        if not _holds_run(config.run_dir):
            raise ConfigError(
                f"--resume: {config.run_dir} holds no run to go on from; check --run_root_dir and the flags that name the run"
            )
        _check_same_run(load(config.run_dir / CONFIG_FILE), config)
    elif _holds_run(config.run_dir):
        raise ConfigError(
            f"{config.run_dir} already holds a run: go on with it (--resume True), or start another (--run_id_note NAME, "
            "--run_root_dir DIR)"
        )


def _holds_run(folder: Path) -> bool:
    """Whether something would be lost; a run that failed before its first numbers may be started again."""
    metrics, checkpoints = folder / METRICS_FILE, folder / CHECKPOINTS
    return (metrics.is_file() and metrics.stat().st_size > 0) or (checkpoints.is_dir() and any(checkpoints.iterdir()))


# Flags that a resumed run may change without becoming another run.
_MAY_CHANGE = (
    "resume max_steps val_freq save_freq keep_checkpoints log_freq loader_threads num_devices data_root_dir substep_labels_path "
    "cache_dir run_root_dir run_id_note run_id_override use_tensorboard use_wandb wandb_project wandb_entity"
).split()


def _check_same_run(saved: TrainConfig, config: TrainConfig) -> None:
    changed = [
        f"--{field.name} is {getattr(config, field.name)}, was {getattr(saved, field.name)}"
        for field in dataclasses.fields(TrainConfig)
        if field.name not in _MAY_CHANGE and getattr(config, field.name) != getattr(saved, field.name)
    ]
    if changed:
        raise ConfigError(f"--resume: {config.run_dir} is a run with other flags: " + "; ".join(changed))


def parse(argv: Sequence[str]) -> TrainConfig:
    """Reads the flags (`--flag value`, `--flag=value`, `--config_path FILE.yaml` overridden by flags) into a checked config.

    Raises `ConfigError` for a flag or key that does not exist (naming the nearest), a value of the wrong type, or a combination that
    cannot be run. `--help` prints all flags and exits.
    """
    args = _complete([_spell(arg) for arg in argv])
    known = {field.name for field in dataclasses.fields(TrainConfig)} | {"config_path", "help"}
    for arg in args:
        if arg.startswith("--"):
            _check_known(arg[2:].split("=", 1)[0], known, prefix="--", where="unknown flag")
    for name, value in _config_paths(args):
        _check_file(name, value, known)
    try:
        return draccus.parse(TrainConfig, args=args, exit_on_error=False)
    except ConfigError:
        raise
    except Exception as error:  # draccus wraps what __post_init__ raises, at times more than once
        raise ConfigError(_root_message(error)) from error


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
    joined = " ".join(args)
    return [("--config_path", m) for m in re.findall(r"--config_path[= ](\S+)", joined)]


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
    """Writes the resolved configuration as YAML; `--config_path` reads it back to an equal one."""
    path.write_text("".join(f"{name}: {_plain(value)}\n" for name, value in dataclasses.asdict(config).items()))


def _plain(value: object) -> str:
    return yaml.safe_dump(str(value) if isinstance(value, Path) else value, default_flow_style=True).removesuffix("...\n").strip()


def load(path: Path) -> TrainConfig:
    """Reads a configuration that `save` wrote."""
    return parse(["--config_path", str(path)])
