"""Plans a training run without weights or a GPU: parameters, device memory by purpose, arithmetic of an update, largest batch, and speed.

Takes all flags of `train.py`. Reads no data. The memory is what XLA assigns to the compiled training step. It excludes the memory of the
GPU driver (0.5 to 1 GB) and fragmentation."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from eosjax import flags
from eosjax.config import DEMO_MODEL, TrainConfig
from eosjax.data.samples.tokens import demo_tokenizer
from eosjax.data.sources import describe
from eosjax.data.specs import DatasetSpec
from eosjax.models.hf import files, hub
from eosjax.models.hf.config import PUBLISHED, action_vocabulary, vla_config_from_hf
from eosjax.models.hf.pretrained import Pretrained
from eosjax.models.openvla import VLAConfig
from eosjax.models.stacks import REMAT
from eosjax.reports.plan_tables import (
    ParameterGroup,
    memory_table,
    parameter_table,
    remat_table,
    scaling_table,
    speed_table,
    traffic_table,
)
from eosjax.runs.policy_source import PolicySource
from eosjax.training import plan
from eosjax.training.plan import Memory, Step, count
from eosjax.training.state import Params
from eosjax.training.traffic import count_traffic
from eosjax.types import UserError

PROMPT_TOKENS = 40  # assumed of the longest evaluation prompt; those of LIBERO have up to about 35
REWORDING_TOKENS = 2  # more in the longest of the wordings that --rephrase draws from
_MORE = 8  # the second batch size that is compiled, as a multiple of the first


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument("--memory_gb", type=float, default=80.0, metavar="GB", help="memory of a GPU, in 10^9 bytes (%(default)s)")
    parser.add_argument("--mfu", type=float, default=40.0, metavar="PERCENT", help="model FLOPs utilisation to assume (%(default)s)")
    parser.add_argument("--num_processes", type=int, default=1, metavar="M", help="machines that the --num_devices belong to (%(default)s)")
    parser.add_argument(
        "--link_gb_s", type=float, default=20.0, metavar="GB", help="10^9 bytes a second between GPUs of a machine (%(default)s: PCIe 4.0)"
    )
    parser.add_argument(
        "--network_gb_s", type=float, default=10.0, metavar="GB", help="10^9 bytes a second between machines (%(default)s: 100 Gbit/s)"
    )
    parser.usage = "%(prog)s [-h] [--memory_gb GB] [--mfu PERCENT] [--vla_path PATH] [--num_devices N] [any other flag of train.py]"
    for field in _train_flags():
        switch: dict[str, Any] = {"nargs": "?", "const": "True"} if field.type == "bool" else {}
        spellings = dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}"))
        parser.add_argument(*spellings, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **switch)
    parser.add_argument("--config_path", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    if not args.memory_gb > 0:
        raise UserError(f"--memory_gb: expected more than 0, got {args.memory_gb}")
    if not 0 < args.mfu <= 100:
        raise UserError(f"--mfu: expected more than 0, up to 100 %, got {args.mfu}")
    for name in ("link_gb_s", "network_gb_s", "num_processes"):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name}: expected more than 0, got {getattr(args, name)}")
    known = {field.name for field in _train_flags()} | {"config_path"}
    config = flags.parse([f"--{name}={value}" for name, value in vars(args).items() if name in known])
    devices = max(config.num_devices, 1)
    if devices % args.num_processes:
        raise UserError(f"--num_devices {devices}: expected a multiple of the number of processes, {args.num_processes}")
    if config.shard_frozen and devices == 1:
        raise UserError("--shard_frozen True: give --num_devices, the devices that hold a share each")
    jax.config.update("jax_platforms", "cpu")  # the plan needs no GPU, and shall not take the memory of one
    vla_config, source = policy_shape(config, describe(config.data_root_dir, config.mixture[0].name, config.dataset_specs))
    text_length = _prompt_tokens(config) + vla_config.action_tokens + 3
    print(f"{config.vla_path}: {source}\n")
    minimal = plan.trace_step(config, dataclasses.replace(vla_config, attention="xla", remat="none"), text_length, config.batch_size)
    print(parameter_table(_parameter_groups(minimal)) + "\n", flush=True)
    options = _options(config, plan.without_kernels(config, vla_config), text_length, args.memory_gb * 1e9)
    candidates = [option for option in options if config.remat != "auto" or option.remat in plan.AUTO_REMAT]
    chosen = next((option for option in candidates if option.peak <= plan.USABLE * args.memory_gb * 1e9), candidates[-1])
    print(memory_table({size: memory._asdict() for size, memory in chosen.memories.items()}) + "\n")
    samples = config.batch_size * config.grad_accumulation_steps
    flops = plan.count_flops(minimal) / samples
    print(remat_table([(each.remat, each.flops / samples / flops, each.peak, each.largest_batch) for each in options]) + "\n")
    print(speed_table([(card, args.mfu / 100 * peak * 1e12 / flops) for card, (peak, _) in plan.CARDS.items()], args.mfu) + "\n")
    if devices > 1:
        print(_several_devices(config, dataclasses.replace(vla_config, remat=chosen.remat), text_length, flops, args) + "\n")
    print(f"a sample: {flops / 1e12:,.3g} TFLOP in matrix products, without what the backward pass recomputes (model FLOPs)")
    print(f"--remat {config.remat}: {chosen.remat}, in {args.memory_gb:g} GB")
    print(f"assumed: prompts of up to {_prompt_tokens(config)} tokens")
    return 0


def _train_flags() -> list[dataclasses.Field[Any]]:
    """The flags of `train.py`, but for what the command has as its own."""
    return [field for field in dataclasses.fields(TrainConfig) if field.name != "num_processes"]


def _several_devices(config: TrainConfig, vla_config: VLAConfig, text_length: int, flops: float, args: argparse.Namespace) -> str:
    """What an update moves, and how much of the speed of one device each of several has."""
    devices, processes = config.num_devices, args.num_processes
    vla_config = dataclasses.replace(vla_config, attention="xla")
    traffic = count_traffic(config, vla_config, text_length, devices)
    rate = min(args.link_gb_s, args.network_gb_s) if processes > 1 else args.link_gb_s
    seconds, samples = traffic.total / (rate * 1e9), config.batch_size * config.grad_accumulation_steps
    cards = []
    for card, (peak, _) in plan.CARDS.items():
        alone = args.mfu / 100 * peak * 1e12 / flops
        cards.append((card, alone, devices * samples / (samples / alone + seconds)))
    moved = traffic_table(traffic._asdict(), devices, processes)
    return f"{moved}\n\n{scaling_table(cards, devices)}\n\n{rate:g} GB/s each way, {seconds:.2f} s an update, in which nothing is computed"


class _Option(NamedTuple):
    """A way to keep or recompute what the backward pass needs."""

    remat: str
    memories: dict[int, Memory]  # by batch size
    flops: int  # of an update at the first of them
    largest_batch: int

    @property
    def peak(self) -> int:
        """Bytes at the first batch size."""
        return next(iter(self.memories.values())).peak


def _options(config: TrainConfig, vla_config: VLAConfig, text_length: int, limit: float) -> list[_Option]:
    """The ways that `--remat` allows, each compiled at two batch sizes."""
    sizes = (config.batch_size, _MORE * config.batch_size)
    ways = (plan.AUTO_REMAT if config.shard_frozen else REMAT) if config.remat == "auto" else (config.remat,)
    steps = {
        (remat, size): plan.trace_step(config, dataclasses.replace(vla_config, remat=remat), text_length, size)
        for remat in ways
        for size in sizes
    }
    with ThreadPoolExecutor() as threads:
        memories = dict(zip(steps, threads.map(plan.measure, steps.values()), strict=True))
    if config.shard_frozen:
        memories = {key: plan.share_out(memory, steps[key].frozen, config.num_devices) for key, memory in memories.items()}
    options = []
    for remat in ways:
        few, many = ((size, memories[remat, size]) for size in sizes)
        flops = plan.count_flops(steps[remat, sizes[0]])
        options.append(_Option(remat, dict([few, many]), flops, plan.largest_batch(few, many, plan.USABLE * limit)))
    return options


def _prompt_tokens(config: TrainConfig) -> int:
    return PROMPT_TOKENS + (REWORDING_TOKENS if config.rephrase else 0)


@dataclasses.dataclass(frozen=True)
class _Outline(Pretrained):
    """A checkpoint of which there is only the config.json."""

    content: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def vla_config(self, vision_heads: tuple[int, int] | None = None, **overrides: Any) -> VLAConfig:
        """The published encoders before the language model of config.json."""
        return vla_config_from_hf(self.content, **overrides)

    @property
    def action_vocabulary(self) -> int:
        """See `hf.config.action_vocabulary`."""
        return action_vocabulary(self.content)


def policy_shape(config: TrainConfig, spec: DatasetSpec) -> tuple[VLAConfig, str]:
    """The policy that the flags ask for, and where its shape comes from. Reads no weights, and downloads no more than a config.json.

    Raises:
        UserError: nothing at `vla_path`, or nothing that tells the shape of a policy.
    """
    path, tokenizer = config.vla_path, demo_tokenizer()
    folder = None if path == DEMO_MODEL else hub.local_folder(path, config.vla_revision)
    if path == DEMO_MODEL:
        pretrained, source = None, "the built-in small policy"
    elif folder is None and path in PUBLISHED and config.vla_revision is None:
        pretrained, source = _Outline(Path(path), content=PUBLISHED[path]), "shapes as published (nothing was downloaded)"
    elif folder is None:
        folder = _download_config(path, config.vla_revision)
        pretrained, source = _Outline(folder, content=files.read_json(folder, "config.json")), "shapes from its config.json on the hub"
    elif any((folder / name).is_file() for name in (files.INDEX, files.SINGLE)):
        pretrained, source = Pretrained(folder), "shapes from its tensors"
    else:
        pretrained, source = _Outline(folder, content=files.read_json(folder, "config.json")), "shapes from its config.json"
    # The tokenizer matters to the demo alone, whose vocabulary it makes.
    return PolicySource(pretrained, tokenizer, b"").vla_config(config, spec), source


def _download_config(name: str, revision: str | None) -> Path:
    hub.check_hub_name(name)
    import huggingface_hub  # slow to import, and needed for names only

    try:
        return Path(huggingface_hub.hf_hub_download(name, "config.json", revision=revision)).parent
    except (OSError, ValueError) as error:  # its errors are both: no such repository, no access, no network, no valid name
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"--vla_path {name}: no such folder, and no config.json from the hub ({reason}); without the hub the shape of "
            f"{', '.join(PUBLISHED)} is known"
        ) from error


def _groups(params: Params) -> dict[str, Any]:
    """The parts, with the base model taken apart."""
    names = {"vision_backbone": "vision encoders", "projector": "projector", "language_model": "language model"}
    groups = {names.get(str(name), str(name)): tree for name, tree in params["vla"].items()}
    return groups | {part: tree for part, tree in params.items() if part != "vla"}


def _parameter_groups(step: Step) -> list[ParameterGroup]:
    trainable = step.state.trainable
    groups = []
    for name, tree in _groups({**step.frozen, **trainable}).items():
        dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)})
        groups.append(ParameterGroup(name, count(tree), plan.size_in_bytes(tree), name in trainable or "vla" in trainable, dtypes))
    return groups
