"""The configuration of a training run: one flat set of flags, checked here; `eosjax.flags` reads and writes them.

Names and defaults are those of the PyTorch original (OpenVLA-OFT `vla-scripts/finetune.py` with its EOS extension) wherever it has the
flag. This module imports no JAX, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from eosjax.flag_values import ConfigError, MixtureMember, OperatingRule, parse_allowances, parse_mixture, parse_operating_rule
from eosjax.names import LONGEST, check_name, folder_name, size_of

DEMO_MODEL = "demo"
DEMO_DATASET = "eosjax_demo"
BALANCED_BUFFER = "balanced_buffer"  # the `eos_loss` that draws from the buffer alone
BUFFER_FRESH = "buffer_fresh"  # that, and fresh rows, of which the policy learns, too
FOCAL_GAMMA = 2.0  # of the `eos_loss` focal (Lin et al. 2017, arXiv:1708.02002)

# In the folder of a run
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainConfig:
    """Flags of `train.py`. Without any flag the built-in demo (configs/demo.yaml) is run."""

    # Model
    vla_path: str = "openvla/openvla-7b"  # policy to fine-tune; `demo` builds a small one with random weights
    vla_revision: str | None = None  # branch, tag or commit of the policy on the hub; default: the newest commit of its main branch
    use_l1_regression: bool = True  # continuous actions from an L1 regression head; without it and diffusion, actions are tokens
    use_diffusion: bool = False  # continuous actions by denoising (with --use_l1_regression False)
    num_diffusion_steps_train: int = 50  # noise levels of --use_diffusion
    num_diffusion_steps_inference: int = 50  # of these, the levels visited to generate actions: in validation and by the trained policy
    use_film: bool = False  # let the instruction modulate both vision encoders
    num_images_in_input: int = 1  # cameras seen by the policy: 1 = primary, 2 = primary and wrist, 3 = primary and both wrists
    use_proprio: bool = False  # give the robot state to the policy as an additional token
    vision_heads: str | None = None  # attention heads of the two encoders, as `16,16`: needed only for unpublished encoders
    use_lora: bool = True  # freeze the base and train low-rank adapters and the heads; False trains everything
    lora_rank: int = 32  # rank of the adapters; alpha is min(rank, 16), or that of --lora_adapter_path
    lora_dropout: float = 0.0  # dropout on the input of the adapters
    lora_adapter_path: Path | None = None  # folder of a PEFT adapter to start from (default: new adapters, which change nothing at first)
    freeze_vision: bool = False  # freeze both vision encoders: no adapters there, and no updates with --use_lora False
    model_dtype: str = "auto"  # of activations and the frozen base: bfloat16 or float32; auto: float32 for the demo, else bfloat16
    attention: str = "auto"  # xla, or the fused kernel of cudnn (16-bit types on NVIDIA GPUs); auto: cudnn where it can run
    layers: str = "auto"  # scan: one compiled loop over equal layers; unroll: each compiled for itself; auto: unroll on a GPU
    remat: str = "auto"  # what the backward pass recomputes: full, all but dots, or none; auto: the faster of dots and full that fits

    # Data
    data_root_dir: Path = Path("datasets/rlds")  # folder with the RLDS/TFDS and LeRobot datasets
    dataset_name: str = "libero_goal_no_noops"  # in data_root_dir, or owner/name[@revision] on the hub, or a mixture `a:2,b`
    dataset_specs: Path | None = None  # YAML file with the descriptions of your own datasets
    substep_labels_path: Path | None = None  # sub-step labels: one file, or one per dataset (`a.json,`: the second has its own)
    substep_labels_format: str = "auto"  # format of the labels; auto: recognised by content
    allow: str | None = None  # exceptions, separated by commas: unlabelled, blank_tasks, empty_episodes, mixed_conventions
    cache_dir: Path | None = None  # folder of the frame stores; default $EOSJAX_CACHE or ~/.cache/eosjax
    image_aug: bool = True  # random crop and colour changes on training images
    rephrase: bool = True  # draw the wording of each training prompt from 14; False: always the wording of evaluation
    use_val_set: bool = True  # hold out episodes and validate on them
    val_share: float = 0.1  # share of the episodes that is held out with --use_val_set True
    loader_threads: int = 0  # threads that read, decode and augment samples; 0: one per core, at most 8

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
    keep_checkpoints: int = 3  # newest checkpoints to keep, in addition to the one with the best validation
    resume: bool = False  # continue from the newest checkpoint of the run
    seed: int = 7  # seed of weights, data order, augmentation and draws
    num_devices: int = 0  # devices to train on, of all processes; 0 takes all
    shard_frozen: bool = False  # each device holds a share of the kernels of frozen layers, and gathers those of a layer when it runs
    coordinator_address: str | None = None  # host:port of process 0, for a run of several processes; SLURM and Open MPI need no flag
    num_processes: int | None = None  # processes of the run
    process_id: int | None = None  # number of this process, from 0
    start_timeout: int = 300  # seconds to wait for the other processes
    deterministic: bool = False  # the same bits from the same run on the same kind of GPU, at some cost in speed; CPUs need no flag
    compile_cache_dir: Path | None = None  # folder of compiled programs; default $EOSJAX_CACHE/xla or ~/.cache/eosjax/xla

    # End of sub-step
    use_substep_eos: bool = True  # instructions and ends from the label file; False: task instruction, no ends
    use_eos_classification: bool = True  # train the EOS head
    lambda_eos: float = 2.0  # weight of the EOS loss: total = L1 + lambda_eos * BCE
    eos_hidden_dim: int = 1024  # width of the EOS head
    eos_dropout: float = 0.1  # dropout in the EOS head
    eos_threshold: float = 0.5  # probability from which a drawn row counts as an end; also a step, until validation has chosen
    eos_operating_point: str = "false_alarms:1"  # how validation chooses the threshold: false_alarms:K, f1:C, cost:R, early:S or fixed
    eos_tune_decision: bool = True  # validation also chooses cumulative reading, debounce, least length, time-out (not with fixed)
    lambda_eos_policy: float = 0.2  # weight of the fresh rows of --eos_loss buffer_fresh, from which the policy learns about ends, too
    eos_loss: str = (
        BALANCED_BUFFER  # balanced_buffer: drawn rows; buffer_fresh: and fresh ones; fresh alone: bce, pos_weight, focal, logit_adjust
    )
    eos_buffer_capacity: int = 50  # hidden states kept per class
    eos_sample_positive: int = 15  # ends drawn for each update
    eos_sample_negative: int = 20  # other steps drawn for each update
    eos_min_positive: int = 15  # ends in the buffer before the first update
    eos_min_negative: int = 20  # other steps in the buffer before the first update
    eos_age_match: bool = False  # add as many other steps to the buffer as ends, so that age does not reveal the class
    eos_backbone_grad: bool = False  # pass the gradient of an --eos_loss on fresh rows alone on to the policy; buffer_fresh always does
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
        _check_run_id(self)
        _ = self.label_paths, self.encoder_heads, self.operating_rule, self.allowances  # read dataset_name, too
        _check_eos(self)
        _check_combinations(self)
        _check_processes(self)

    @property
    def run_dir(self) -> Path:
        """Folder of this run, named after the flags that most often differ. A folder that holds another run is refused."""
        return self.run_root_dir / (self.run_id_override or _run_id(self))

    @property
    def compute_dtype(self) -> str:
        """`model_dtype` with `auto` resolved: bfloat16 for pretrained weights, float32 for the demo model on a CPU."""
        if self.model_dtype == "auto":
            return "float32" if self.vla_path == DEMO_MODEL else "bfloat16"
        return self.model_dtype

    @property
    def predicts_tokens(self) -> bool:
        """Whether actions are tokens of the language model."""
        return not (self.use_l1_regression or self.use_diffusion)

    @property
    def uses_buffer(self) -> bool:
        """Whether the EOS head learns from draws of the buffer."""
        return self.eos_loss in (BALANCED_BUFFER, BUFFER_FRESH)

    @property
    def eos_reaches_policy(self) -> bool:
        """Whether the policy learns from the EOS loss, too."""
        return self.eos_backbone_grad or self.eos_loss == BUFFER_FRESH

    @property
    def encoder_heads(self) -> tuple[int, int] | None:
        """`vision_heads` as numbers."""
        if self.vision_heads is None:
            return None
        heads = [int(part) if part.strip().isdecimal() else 0 for part in str(self.vision_heads).split(",")]
        if len(heads) != 2 or min(heads) < 1:
            raise ConfigError(f"--vision_heads: expected two positive numbers, as in 16,16; got {self.vision_heads}")
        return heads[0], heads[1]

    @property
    def num_loader_threads(self) -> int:
        """`loader_threads` with 0 resolved; more threads than cores would only wait for each other."""
        return self.loader_threads or min(os.cpu_count() or 1, 8)

    @property
    def mixture(self) -> tuple[MixtureMember, ...]:
        """The datasets to train on; `DEMO_DATASET` is generated on first use."""
        return parse_mixture(self.dataset_name)

    @property
    def allowances(self) -> frozenset[str]:
        """`allow` as names of `ALLOWANCES`."""
        return parse_allowances(self.allow)

    @property
    def operating_rule(self) -> OperatingRule:
        """`eos_operating_point` as a rule."""
        return parse_operating_rule(self.eos_operating_point)

    @property
    def label_paths(self) -> tuple[Path | None, ...]:
        """The label path of each dataset of the mixture; None for one that has its own, as the demo and annotated LeRobot datasets do.

        A single path serves all datasets except the demo. In a list, an empty entry stands for labels of the dataset's own.

        Raises `ConfigError` unless there is one path, or one per dataset.
        """
        names = [member.name for member in self.mixture]
        if self.substep_labels_path is None:
            return (None,) * len(names)
        paths = [Path(part.strip()) if part.strip() else None for part in str(self.substep_labels_path).split(",")]
        if len(paths) == len(names):
            return tuple(paths)
        if len(paths) == 1:
            return tuple(None if name == DEMO_DATASET else paths[0] for name in names)
        raise ConfigError(f"--substep_labels_path: expected one path, or one for each of the {len(names)} datasets; got {len(paths)}")


def _model_name(config: TrainConfig) -> str:
    return Path(config.vla_path).name or config.vla_path


def _run_id(config: TrainConfig) -> str:
    data = folder_name(config.dataset_name).replace(",", "+").replace(":", "-").replace(" ", "")
    parts = [f"{_model_name(config)}+{data}+b{config.batch_size * config.grad_accumulation_steps}"]
    parts.append(f"+lr-{config.learning_rate:g}")
    if config.use_lora:
        parts.append(f"+lora-r{config.lora_rank}+dropout-{config.lora_dropout:g}")
    if config.use_diffusion or config.predicts_tokens:
        parts.append("--diffusion" if config.use_diffusion else "--tokens")
    if config.image_aug:
        parts.append("--image_aug")
    if config.use_eos_classification:
        kind = "" if config.eos_loss == BALANCED_BUFFER else f"-{config.eos_loss}"
        parts.append(f"--eos{kind}" + (f"-cap{config.eos_buffer_capacity}" if config.uses_buffer else ""))
    parts.append(f"--seed{config.seed}")
    if config.run_id_note:
        parts.append(f"--{config.run_id_note}")
    return "".join(parts)


def _check_run_id(config: TrainConfig) -> None:
    """What becomes part of the name of the run's folder is a plain name, and all of it together is not too long."""
    if config.run_id_override is not None:
        check_name("--run_id_override", config.run_id_override, ConfigError)
        return
    check_name("--vla_path", _model_name(config), ConfigError)
    if config.run_id_note is not None:
        check_name("--run_id_note", config.run_id_note, ConfigError)
    size, note = size_of(_run_id(config)), size_of(config.run_id_note or "")
    if size > LONGEST:
        raise ConfigError(
            f"--{'run_id_note' if size - note <= LONGEST else 'dataset_name'}: the name of the run's folder would have {size} bytes, and a "
            f"file name has at most {LONGEST}; name the run with --run_id_override"
        )


_POSITIVE = (
    "num_images_in_input num_diffusion_steps_train num_diffusion_steps_inference "
    "lora_rank batch_size grad_accumulation_steps max_steps learning_rate num_steps_before_decay "
    "val_freq save_freq keep_checkpoints eos_hidden_dim eos_buffer_capacity eos_sample_positive eos_sample_negative "
    "eos_min_positive eos_min_negative log_freq start_timeout"
).split()
_NOT_NEGATIVE = ("lr_warmup_steps", "loader_threads", "num_devices", "lambda_eos", "lambda_eos_policy", "seed")
_LARGEST_SEED = 2**32 - 1  # of a JAX key
_SHARES = ("lora_dropout", "eos_dropout")
_CHOICES = {
    "model_dtype": ("auto", "bfloat16", "float32"),
    "attention": ("auto", "xla", "cudnn"),
    "layers": ("auto", "scan", "unroll"),
    "remat": ("auto", "full", "dots", "none"),
    "eos_loss": (BALANCED_BUFFER, BUFFER_FRESH, "bce", "pos_weight", "focal", "logit_adjust"),
    "eos_tune": ("manual", "auto"),
    "num_images_in_input": (1, 2, 3),
}


def _check_values(config: TrainConfig) -> None:
    for name in _POSITIVE:
        if not getattr(config, name) > 0:
            raise ConfigError(f"--{name} must be greater than 0, got {getattr(config, name)}")
    for name in _NOT_NEGATIVE:
        if getattr(config, name) < 0:
            raise ConfigError(f"--{name} must not be negative, got {getattr(config, name)}")
    for name in ("learning_rate", "lambda_eos", "lambda_eos_policy"):
        if not math.isfinite(getattr(config, name)):
            raise ConfigError(f"--{name} must be finite, got {getattr(config, name)}")
    if config.seed > _LARGEST_SEED:
        raise ConfigError(f"--seed must be at most {_LARGEST_SEED}, got {config.seed}")
    for name in _SHARES:
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"--{name} must be at least 0 and less than 1, got {getattr(config, name)}")
    for name in ("val_share", "eos_threshold"):
        if not 0 < getattr(config, name) < 1:
            raise ConfigError(f"--{name} must lie between 0 and 1, got {getattr(config, name)}")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ConfigError(f"--{name} must be one of {', '.join(map(str, choices))}, got {getattr(config, name)}")


def _check_eos(config: TrainConfig) -> None:
    if not config.use_eos_classification:
        return
    _check_eos_loss(config)
    if not config.uses_buffer:
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


def _check_eos_loss(config: TrainConfig) -> None:
    """What goes with the `eos_loss`."""
    kind = config.eos_loss
    if not config.uses_buffer:
        for name, value in (("eos_age_match", False), ("eos_tune", "manual")):
            if getattr(config, name) != value:
                raise ConfigError(f"--{name} {getattr(config, name)} is about the buffer, which --eos_loss {kind} does not use")
    if kind == BUFFER_FRESH:
        for name in ("lambda_eos", "lambda_eos_policy"):
            if not getattr(config, name) > 0:
                other = "bce" if name == "lambda_eos" else BALANCED_BUFFER
                raise ConfigError(f"--{name} must be greater than 0 with --eos_loss {kind}, got 0: for one term alone choose {other}")
    elif config.lambda_eos_policy != TrainConfig.lambda_eos_policy:
        raise ConfigError(f"--lambda_eos_policy {config.lambda_eos_policy:g} is about --eos_loss {BUFFER_FRESH}, got --eos_loss {kind}")
    if not config.eos_backbone_grad:
        return
    if kind == BUFFER_FRESH:
        raise ConfigError(f"--eos_backbone_grad True with --eos_loss {kind}: its fresh rows reach the policy anyway; leave the flag out")
    if kind == BALANCED_BUFFER:
        raise ConfigError(
            f"--eos_backbone_grad True with --eos_loss {kind}: rows are stored without gradient, so that none could reach the policy; "
            f"choose {BUFFER_FRESH}, or an --eos_loss on fresh rows alone (bce, pos_weight, focal, logit_adjust)"
        )


def _check_processes(config: TrainConfig) -> None:
    named = [f"--{name}" for name in ("coordinator_address", "num_processes", "process_id") if getattr(config, name) is not None]
    if named and len(named) < 3:
        raise ConfigError(
            f"{', '.join(named)}: a run of several processes needs all of --coordinator_address, --num_processes, --process_id"
        )
    if not named:
        return
    host, _, port = (config.coordinator_address or "").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator_address: expected host:port, got {config.coordinator_address}")
    processes, number = config.num_processes or 0, config.process_id or 0
    if not 0 <= number < processes:
        raise ConfigError(f"--process_id: expected a number from 0 to {processes - 1} with --num_processes {processes}, got {number}")


def _check_combinations(config: TrainConfig) -> None:
    if config.use_eos_classification and not config.use_substep_eos:
        raise ConfigError(
            "--use_eos_classification True needs the ends of the sub-steps, and --use_substep_eos False leaves them out: the EOS head "
            "would never learn; set --use_substep_eos True or --use_eos_classification False"
        )
    _check_policy(config)
    if config.vla_path == DEMO_MODEL and config.vla_revision is not None:
        raise ConfigError(f"--vla_revision {config.vla_revision}: --vla_path demo is built here, and only the hub has revisions")
    if config.vla_path == DEMO_MODEL and config.use_lora:
        raise ConfigError(
            "--vla_path demo starts from random weights, not worth freezing under adapters; add --use_lora False to train it whole"
        )


def _check_policy(config: TrainConfig) -> None:
    if config.use_l1_regression and config.use_diffusion:
        raise ConfigError(
            "--use_diffusion True with --use_l1_regression True: there is one action head; add --use_l1_regression False for diffusion"
        )
    if config.num_diffusion_steps_inference > config.num_diffusion_steps_train:
        raise ConfigError(
            f"--num_diffusion_steps_inference ({config.num_diffusion_steps_inference}) must be at most --num_diffusion_steps_train "
            f"({config.num_diffusion_steps_train}): the policy knows no other noise levels"
        )
    if config.use_film and config.freeze_vision:
        raise ConfigError("--use_film True trains layers within the vision encoders, which --freeze_vision True forbids; choose one")
    if config.freeze_vision and config.vla_path == DEMO_MODEL:
        raise ConfigError("--freeze_vision True: the encoders of --vla_path demo start from random weights, not worth freezing")
    if config.shard_frozen and not (config.use_lora or config.freeze_vision):
        raise ConfigError("--shard_frozen True: nothing is frozen with --use_lora False; leave the flag out, or train adapters")
    if config.shard_frozen and config.remat == "none":
        raise ConfigError("--shard_frozen True with --remat none: the backward pass would keep all gathered layers; use full, dots or auto")
    if config.shard_frozen and config.layers == "unroll":
        raise ConfigError("--shard_frozen True with --layers unroll: XLA may gather all layers at once; use scan or auto")
    if config.lora_adapter_path is not None and not config.use_lora:
        raise ConfigError("--lora_adapter_path needs --use_lora True: without it there are no adapters to start from it")
