"""The training step as shapes: its memory, as XLA lays it out, and its arithmetic. Nothing of the size of the model is allocated."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eosjax.config import TrainConfig
from eosjax.models.attention import SIXTEEN_BITS
from eosjax.models.openvla import VLAConfig
from eosjax.models.parts import init_params, split_params
from eosjax.models.policies import Params
from eosjax.models.shards import STACKS, shared_kernels
from eosjax.training.state import TrainState, init_state, make_learner
from eosjax.training.step import train_step
from eosjax.types import Batch

# What XLA does for CPUs alone and would make the plan of a GPU wrong: it keeps float32 copies of all frozen bfloat16 weights (computed
# once, before the loop over the layers), and trades memory for parallel branches. The machine code is thrown away, so it need not be good.
COMPILER_OPTIONS = {
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_backend_optimization_level": 0,
}


CARDS = {  # dense bfloat16 products a second as the makers state them, in 10^12 operations; memory in 10^9 bytes
    "A100 80GB": (312, 80),
    "H100 SXM": (989, 80),
    "H200": (989, 141),
    "L40S": (362, 48),
    "RTX 4090": (165, 24),
    "B200": (2250, 180),
}
# What `--remat auto` chooses from, fastest first. `none` is slower on a GPU: what it keeps takes longer to write and read (docs/gpu.md).
AUTO_REMAT = ("dots", "full")
USABLE = 0.95  # share of a device's memory that a step may take: the rest is for fragmentation


class Step(NamedTuple):
    """A traced step and the shapes it works on, per device."""

    state: TrainState
    frozen: Params
    batch: Batch
    traced: Any  # what `jax.jit(...).trace` returns


class Memory(NamedTuple):
    """Bytes on one device during a step."""

    frozen: int
    trained: int
    optimizer: int
    buffer: int
    batch: int
    temporaries: int  # gradients, activations and workspace at the moment when they take most

    @property
    def peak(self) -> int:
        """All of it: the new state is written over the old one."""
        return sum(self)


def trace_step(config: TrainConfig, vla_config: VLAConfig, text_length: int, batch_size: int) -> Step:
    """The step of a run on one device, traced.

    Args:
        config: the run; its `batch_size` is not looked at.
        vla_config: the policy.
        text_length: l, token ids in a row.
        batch_size: samples in a forward pass.
    """
    learner = make_learner(config, vla_config, share_of_ends=0.05)  # any share: it changes numbers, not memory
    batch = abstract_batch(config, vla_config, text_length, batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    trainable, frozen = split_params(jax.eval_shape(functools.partial(init_params, learner.policy, learner.eos_head), batch, key))
    state = jax.eval_shape(functools.partial(init_state, learner), trainable, key)
    traced = jax.jit(functools.partial(train_step, learner), donate_argnums=0).trace(state, frozen, batch)
    return Step(state, frozen, batch, traced)


def without_kernels(config: TrainConfig, vla_config: VLAConfig) -> VLAConfig:
    """The policy as a plan compiles it: a loop over layers, and what needs as much memory as fused attention, which a CPU lacks."""
    fused = config.attention == "cudnn" or (config.attention == "auto" and vla_config.dtype in SIXTEEN_BITS)
    return dataclasses.replace(vla_config, attention="blockwise" if fused else "xla", unroll=False)


def choose_remat(
    config: TrainConfig, vla_config: VLAConfig, text_length: int, limit: int | None, devices: int = 1
) -> tuple[str, str | None]:
    """What `--remat auto` means, and a line that says why.

    Args:
      config: the run.
      vla_config: the policy.
      text_length: l, token ids in a row.
      limit: bytes of a device; None where nobody knows (on a CPU), which counts as enough.
      devices: how many share out the frozen kernels, with `shard_frozen`.
    """
    fast, small = AUTO_REMAT
    if limit is None:
        return fast if config.shard_frozen else "none", None
    shape = dataclasses.replace(without_kernels(config, vla_config), remat=fast)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        step = trace_step(config, shape, text_length, config.batch_size)
        memory = measure(step)
    peak = (share_out(memory, step.frozen, devices) if config.shard_frozen else memory).peak
    remat = fast if peak <= USABLE * limit else small
    return remat, f"--remat auto: {remat} ({fast} takes {peak / 1e9:.1f} GB of {limit / 1e9:.1f} GB)"


def abstract_batch(config: TrainConfig, vla_config: VLAConfig, text_length: int, batch_size: int) -> Batch:
    """Shapes and dtypes of what one device gets for an update: `grad_accumulation_steps` forward passes of `batch_size` samples."""
    rows, size, chunk = batch_size * config.grad_accumulation_steps, vla_config.dino.image_size, vla_config.chunk

    def rows_of(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    return Batch(
        images=rows_of(jnp.uint8, config.num_images_in_input, size, size, 3),
        input_ids=rows_of(jnp.int32, text_length),
        attn_mask=rows_of(jnp.bool_, text_length),
        proprio=rows_of(jnp.float32, vla_config.proprio_dim),
        actions=rows_of(jnp.float32, chunk, vla_config.action_dim),
        eos=rows_of(jnp.float32, chunk),
        valid=rows_of(jnp.bool_, chunk),
        key=rows_of(jnp.int32),
    )


def measure(step: Step) -> Memory:
    """Compiles a step for the CPU and reads off what it takes.

    Weights, optimizer, buffer and batch are the sizes of their arrays. Temporaries are those of the compiled step: the CPU computes
    bfloat16 products on float32 copies of one layer at a time, so that they are rather too large than too small for a GPU.
    """
    compiled = step.traced.lower().compile(compiler_options=COMPILER_OPTIONS)
    return Memory(
        frozen=size_in_bytes(step.frozen),
        trained=size_in_bytes(step.state.trainable),
        optimizer=size_in_bytes(step.state.opt_state),
        buffer=size_in_bytes(step.state.buffer),
        batch=size_in_bytes(step.batch),
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
    )


def share_out(memory: Memory, frozen: Params, devices: int) -> Memory:
    """The memory of one of several devices that share out frozen kernels: its share of them, and those of one layer whole.

    Args:
      memory: of a device that holds all of them.
      frozen: parts that are not trained, as arrays or shapes.
      devices: how many hold a share.
    """
    kernels = shared_kernels(frozen, devices)
    of_stacks: dict[tuple[str, ...], int] = {}
    for path, leaf in kernels.items():
        stack = path[: next(i for i, name in enumerate(path) if name in STACKS)]
        of_stacks[stack] = of_stacks.get(stack, 0) + size_in_bytes(leaf) // leaf.shape[0]
    size = size_in_bytes(list(kernels.values()))
    return memory._replace(
        frozen=memory.frozen - size + size // devices, temporaries=memory.temporaries + max(of_stacks.values(), default=0)
    )


def largest_batch(few: tuple[int, Memory], many: tuple[int, Memory], limit: float) -> int:
    """The most samples in a forward pass whose peak stays within `limit` bytes; 0 if not even one does.

    Along the line through two (batch size, memory); between them and beyond.
    """
    (low, less), (high, more) = few, many
    each = (more.peak - less.peak) / (high - low)
    return max(0, math.floor(low + (limit - less.peak) / each))


def count_flops(step: Step) -> int:
    """Floating-point operations of the matrix products of an update, with what the backward pass recomputes: nothing with `remat` none.

    Counted in the traced program, where the number of rounds of each loop is known: the cost analysis of XLA counts a loop's body once.
    """
    return _flops(step.traced.jaxpr)


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = [_flops(each) for each in inner_programs(equation.params)]
        # One branch of a conditional is taken: the longest counts.
        total += rounds * (max(inner) if equation.primitive.name == "cond" else sum(inner))
    return total


def inner_programs(params: dict[str, Any]) -> list[Any]:
    """The programs within an equation."""
    values = [each for value in params.values() for each in (value if isinstance(value, tuple | list) else [value])]
    return [value for value in values if hasattr(getattr(value, "jaxpr", value), "eqns")]


def size_in_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, or of their shapes."""

    def size(leaf: Any) -> int:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return size(jax.eval_shape(jax.random.key_data, leaf))
        return leaf.size * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def count(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
