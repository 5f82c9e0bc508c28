"""What `eosjax.training.plan` says of the cases, computed on the CPU in a process of its own while the GPU is checked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.on_gpu.cases import PLANS, Case, CasePlan
from benchmarks.on_gpu.shapes import config_of, large_policy, text_length
from eosjax.training import plan


def write_plans(folder: Path, cases: Iterable[Case], sizes: tuple[int, int], *, tiny: bool) -> None:
    """Plans each kind of case in turn and appends it to a file.

    Args:
      folder: of the file.
      cases: the most wanted first.
      sizes: the two batches to compile.
      tiny: see `shapes.large_policy`.
    """
    kinds = list(dict.fromkeys(case._replace(batch=0) for case in cases))
    with ThreadPoolExecutor(4) as threads, open(folder / PLANS, "a", encoding="utf-8") as file:
        for found in threads.map(lambda kind: _plan(kind, sizes, tiny), kinds):
            print(json.dumps(found), file=file, flush=True)


def _plan(kind: Case, sizes: tuple[int, int], tiny: bool) -> CasePlan:
    attention = "blockwise" if kind.attention == "fused" else "xla"  # a CPU has no fused kernel: see `plan.without_kernels`
    steps = [_trace(kind, attention, kind.remat, size, tiny) for size in sizes]
    few, many = ((size, plan.measure(step).peak) for size, step in zip(sizes, steps, strict=True))
    minimal = _trace(kind, "xla", "none", sizes[1], tiny)
    flops = (plan.count_flops(step) / sizes[1] for step in (minimal, steps[1]))
    return CasePlan(kind.attention, kind.remat, kind.images, few, many, *flops)


def _trace(kind: Case, attention: str, remat: str, size: int, tiny: bool) -> plan.Step:
    policy = large_policy(attention, remat, tiny=tiny)
    return plan.trace_step(config_of(kind.images, size), policy, text_length(policy), size)
