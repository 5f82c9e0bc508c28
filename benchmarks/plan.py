"""Checks `eosjax plan` against what training really takes: peak memory of updates of a medium policy, on this machine's CPU.

    python benchmarks/plan.py

Each case is planned here, and trained in a process of its own, whose peak resident memory during an update (arrays, and what comes on
top) is compared with the plan. Exit status 1 if they differ by more than 15 %; the case of XLA's own schedule for CPUs, which trades memory
for parallel branches and which no GPU uses, is there to be seen only. Linux; about a minute a case on two cores.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

TOLERANCE = 0.15
TEXT_LENGTH = 96
# The schedule that the plan assumes, for a training process.
PLANNED = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED --xla_disable_hlo_passes=while-loop-invariant-code-motion"


class Case(NamedTuple):
    """A run to plan and to measure."""

    name: str
    flags: tuple[str, ...]
    xla_flags: str


_COMMON = ("--batch_size=8", "--num_images_in_input=2", "--use_proprio=True", "--attention=xla", "--remat=full")
_LORA = (*_COMMON, "--lora_rank=16")
_ALL = (*_COMMON, "--use_lora=False", "--model_dtype=float32")
CASES = (
    Case("LoRA, float32", (*_LORA, "--model_dtype=float32"), PLANNED),
    Case("LoRA, float32, as XLA schedules for CPUs by default", (*_LORA, "--model_dtype=float32"), ""),
    Case("LoRA, bfloat16", (*_LORA, "--model_dtype=bfloat16"), PLANNED),
    Case(
        "LoRA, float32, shared out among four fake devices", (*_LORA, "--model_dtype=float32", "--shard_frozen", "--num_devices=4"), PLANNED
    ),
    Case("all weights, float32", _ALL, PLANNED),
    Case("all weights, float32, without remat", (*_ALL, "--remat=none"), PLANNED),
)


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(description="Plans beside measured peaks of memory, for a medium policy on the CPU.")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(CASES[arguments.measure])))
        return
    print("| case | planned (MB) | measured (MB) | planned / measured |\n| --- | --- | --- | --- |")
    apart = []
    for number, case in enumerate(CASES):
        planned = plan(case)
        devices = policy(case)[0].num_devices or 1
        fake = f"{case.xla_flags} --xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": fake, "JAX_PLATFORMS": "cpu"}
        child = subprocess.run([sys.executable, __file__, "--measure", str(number)], env=environment, capture_output=True, encoding="utf-8")
        if child.returncode:
            sys.exit(child.stderr)
        measured = json.loads(child.stdout)
        if case.xla_flags:
            apart.append(abs(planned / measured - 1))
        print(f"| {case.name} | {planned / 1e6:.0f} | {measured / 1e6:.0f} | {planned / measured:.3f} |", flush=True)
    sys.exit(max(apart) > TOLERANCE)


def plan(case: Case) -> int:
    """Peak bytes according to the plan."""
    from eosjax.training import plan

    config, vla_config = policy(case)
    step = plan.trace_step(config, vla_config, TEXT_LENGTH, config.batch_size)
    memory = plan.measure(step)
    return (plan.share_out(memory, step.frozen, config.num_devices) if config.shard_frozen else memory).peak


def measure(case: Case) -> int:
    """Peak growth of this process' resident memory, per device, from before there is any array until an update is done."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax.traverse_util import flatten_dict, unflatten_dict

    from eosjax.training import plan
    from eosjax.training.initial import BaseWeights
    from eosjax.training.parallel import DataParallel
    from eosjax.training.state import init_state, make_learner

    config, vla_config = policy(case)
    step = plan.trace_step(config, vla_config, TEXT_LENGTH, config.batch_size)
    learner = make_learner(config, vla_config)
    parallel = DataParallel(learner, jax.devices())
    base = BaseWeights(config, vla_config, parallel)

    def filled(shapes: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)

    def begin() -> Any:
        trainable = filled(step.state.trainable)
        return init_state(learner, trainable, jax.random.key(0))

    begin_on_device = jax.jit(begin, out_shardings=parallel.replicated)

    def full(leaf: Any, count: int = 1) -> Any:
        return np.full((count * leaf.shape[0], *leaf.shape[1:]), 0.01, leaf.dtype)

    def update() -> None:
        leaves: dict[Any, Any] = dict(flatten_dict(step.frozen))
        frozen = base.place(unflatten_dict({path: base.put(path[1:], full(leaf)) for path, leaf in leaves.items()}))
        batch = jax.tree.map(lambda leaf: full(leaf, len(jax.devices())), step.batch)
        jax.block_until_ready(parallel.step(begin_on_device(), frozen, parallel.split(batch)))

    update()  # compiles
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    update()
    return (_status("VmHWM") - before) // len(jax.devices())


def policy(case: Case) -> tuple[Any, Any]:
    """Configuration and shape of a case: 68 M parameters, 2 x 64 patches."""
    from eosjax import flags
    from eosjax.data.samples.tokens import demo_tokenizer
    from eosjax.data.specs import DatasetSpec
    from eosjax.models.llama import LlamaConfig
    from eosjax.runs.policy_source import PolicySource

    config = flags.parse((*case.flags, *(("--vla_path=demo",) if "--use_lora=False" in case.flags else ())))
    shape = PolicySource(None, demo_tokenizer(), b"").vla_config(config, DatasetSpec())
    vit = {"image_size": 112, "patch_size": 14, "width": 256, "depth": 5, "heads": 4, "mlp_dim": 1024}
    return config, dataclasses.replace(
        shape,
        dino=dataclasses.replace(shape.dino, **vit),
        siglip=dataclasses.replace(shape.siglip, **vit),
        llama=LlamaConfig(vocab_size=2048, width=768, depth=6, heads=8, kv_heads=8, mlp_dim=2048),
    )


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found, field
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
