"""Speed and memory: of an update, of the EOS part of an update, of inference, and of the buffer alone."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import buffer as buffers
from benchmarks.on_gpu.cases import Case, Expected
from benchmarks.on_gpu.rows import Figure, Row
from benchmarks.on_gpu.shapes import Begun, begin, config_of, fused, large_policy, synthetic_batch
from eosjax.models.policies import Observation
from eosjax.training.keys import evaluation_keys
from eosjax.training.plan import CARDS

# What JAX calls a card -> its name in `CARDS`.
DEVICE_KINDS = {
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA A100 80GB PCIe": "A100 80GB",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H200": "H200",
    "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA B200": "B200",
}
CAPACITIES = (50, 500, 5_000, 10_000)
WARM_UP = 2
GB = 1e9


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 operations a second as the maker states them; None for a card that is not listed."""
    return CARDS[DEVICE_KINDS[device_kind]][0] * 1e12 if device_kind in DEVICE_KINDS else None


def case_row(case: Case, expected: Expected, *, again: bool, steps: int, tiny: bool) -> Row:
    """Measures updates of a case in a process that does nothing else on the device, so that its peak memory is that of the case.

    Args:
      case: what to measure; with a batch.
      expected: what the plan says.
      again: also measure how long the compiled program takes to load from the cache.
      steps: timed updates.
      tiny: see `shapes.large_policy`.
    """
    device = jax.devices()[0]
    begun = _begin(case, tiny, device)
    before = _peak(device)
    batch = begun.parallel.split(synthetic_batch(begun.learner.policy.vla.config, case.images, case.batch))
    update = _Update(begun, batch)
    first = _seconds(update)
    for _ in range(WARM_UP - 1):
        update()
    seconds = statistics.median(_seconds(update) for _ in range(steps))
    peak = _peak(device)
    cached = None
    if again:
        jax.clear_caches()
        cached = _seconds(update) - seconds
    speed, card = case.batch / seconds, peak_flops(device.device_kind)

    def tera(flops: float | None) -> float | None:
        return speed * flops / 1e12 if flops else None

    model = tera(expected.model_flops)
    notes = []
    if peak is not None and before is not None and peak <= before:
        notes.append("the peak is that of making the weights")
    figures: dict[str, Figure] = {
        **case._asdict(),
        "samples/s": speed,
        "ms": 1e3 * seconds,
        "model TFLOP/s": model,
        "MFU %": 100 * model * 1e12 / card if model and card else None,
        "hardware TFLOP/s": tera(expected.hardware_flops),
        "peak GB": peak / GB if peak else None,
        "plan GB": expected.peak / GB if expected.peak else None,
        "peak / plan": peak / expected.peak if peak and expected.peak and not notes else None,
        "compile s": first - seconds,
        "compile s, cached": cached,
    }
    return Row("speed", case.name, figures, note="; ".join(notes))


def _begin(case: Case, tiny: bool, device: Any, **changes: Any) -> Begun:
    attention = fused() if case.attention == "fused" else case.attention
    return begin(config_of(case.images, case.batch, **changes), large_policy(attention, case.remat, tiny=tiny), device)


class _Update:
    """An update; calling it waits until it is done."""

    def __init__(self, begun: Begun, batch: Any) -> None:
        self.state, self._step, self._frozen, self._batch = begun.state, begun.parallel.step, begun.frozen, batch

    def __call__(self) -> None:
        self.state, _ = jax.block_until_ready(self._step(self.state, self._frozen, self._batch))


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _peak(device: Any) -> int | None:
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def eos_rows(case: Case, *, rounds: int, tiny: bool) -> list[Row]:
    """The share of the EOS part (buffer and head) in an update, and the time of an inference.

    Updates with and without the EOS part take turns, so that both see the same clock rate.
    """
    device = jax.devices()[0]
    begun = _begin(case, tiny, device)
    without = _begin(case, tiny, device, use_eos_classification=False)
    batch = begun.parallel.split(synthetic_batch(begun.learner.policy.vla.config, case.images, case.batch))
    frozen = begun.frozen  # the same for both: of the second, the state alone is kept
    updates = [_Update(each, batch) for each in (begun, without._replace(frozen=frozen))]
    del without
    gc.collect()
    for update in updates * WARM_UP:
        update()
    times = [[_seconds(update) for update in updates] for _ in range(rounds)]
    whole, rest = (statistics.median(column) for column in zip(*times, strict=True))
    share: dict[str, Figure] = {"ms": 1e3 * whole, "ms without": 1e3 * rest, "share %": 100 * (whole - rest) / whole}
    params = {**frozen, **updates[0].state.trainable}
    return [Row("eos", f"update: {case.name}", share), _inference_row(begun.learner.policy, params, case.images, rounds)]


def _inference_row(policy: Any, params: Any, images: int, rounds: int) -> Row:
    batch = synthetic_batch(policy.vla.config, images, 1)
    seen = jax.device_put(Observation(batch.images, batch.input_ids, batch.attn_mask, batch.proprio))
    keys = evaluation_keys(batch.key)
    act = jax.jit(policy.act)

    def infer() -> None:
        jax.block_until_ready(act(params, seen, keys))

    for _ in range(WARM_UP):
        infer()
    return Row("eos", f"inference: {images} image(s), batch 1", {"ms": 1e3 * statistics.median(_seconds(infer) for _ in range(rounds))})


def buffer_rows(capacities: tuple[int, ...], repeats: int) -> list[Row]:
    """`add` and `sample` beside two deques of PyTorch tensors on the same device, where PyTorch can use it."""
    torch_device, problem = _torch_device()
    rows = []
    for capacity in capacities:
        figures: dict[str, Figure] = {"ms": buffers.median_ms(buffers.eosjax_step(capacity, "bfloat16"), repeats)}
        if torch_device:
            figures["torch deques ms"] = buffers.median_ms(buffers.torch_step(capacity, "bfloat16", torch_device), repeats)
        rows.append(Row("buffer", f"add 64 and sample 35 of {list(buffers.ITEM)}, capacity {capacity}", figures, note=problem))
        gc.collect()
    return rows


def _torch_device() -> tuple[str | None, str]:
    """PyTorch's name of the device, or None and why there is none."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None, "no PyTorch here"
    if jax.default_backend() != "gpu":
        return "cpu", ""
    return ("cuda", "") if torch.cuda.is_available() else (None, "PyTorch sees no CUDA device")
