"""Speed of the class-balanced buffer: time of add + sample, compared with other implementations.

    python benchmarks/buffer.py
    python benchmarks/buffer.py --dtypes bfloat16 --capacities 50 1000 --repeats 50

The work: 64 rows of [7, 4096] enter, 16 of them positive, and 15 + 20 rows are drawn as one batch. The contenders
(those whose package is missing are skipped):

* eosjax: `BalancedBuffer`, one jitted step, state donated; sorts the rows by label on the device.
* flashbax: two item buffers, one jitted step, states donated. They cannot skip rows, so each gets the rows of its
  class already sorted, which saves work; they draw with replacement.
* torch: two `collections.deque`s of cloned row tensors, `random.sample` and `torch.stack`; labels are host integers.

The second table times `add` alone over the capacities: its cost must depend on the rows, not on the capacity. The third
table times the choice of the 15 + 20 slots alone: with `jax.random.choice`, as the buffer does it, and as the highest of
one uniform number a slot.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import random
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from eosjax.buffer import BalancedBuffer

ROWS, POSITIVES, ITEM = 64, 16, (7, 4096)
SAMPLE_POSITIVE, SAMPLE_NEGATIVE = 15, 20
LABELS = [int(row < POSITIVES) for row in range(ROWS)]

Step = Callable[[], object]  # one timed unit of work, finished when it returns


def _eosjax_full(capacity: int, dtype: str):
    """A buffer, its state with both rings full, and the rows to add."""
    buffer = BalancedBuffer(capacity, SAMPLE_POSITIVE, SAMPLE_NEGATIVE, SAMPLE_POSITIVE, SAMPLE_NEGATIVE)
    rows = jax.random.normal(jax.random.key(0), (ROWS, *ITEM), dtype)
    state = buffer.init(rows[0])
    add = jax.jit(buffer.add, donate_argnums=0)
    for label in (True, False):
        for _ in range(-(-capacity // ROWS)):
            state = add(state, rows, jnp.full(ROWS, label))
    return buffer, jax.block_until_ready(state), rows


def eosjax_step(capacity: int, dtype: str) -> Step:
    """add + sample with `BalancedBuffer`, both rings full."""
    buffer, state, rows = _eosjax_full(capacity, dtype)
    labels, key = jnp.asarray(LABELS), jax.random.key(1)

    def add_and_sample(state, rows, labels, key):
        state = buffer.add(state, rows, labels)
        key, draw = jax.random.split(key)
        return state, key, buffer.sample(state, draw)

    run = jax.jit(add_and_sample, donate_argnums=0)

    def step():
        nonlocal state, key
        state, key, sample = jax.block_until_ready(run(state, rows, labels, key))
        return sample

    return step


def eosjax_add(capacity: int, dtype: str) -> Step:
    """`BalancedBuffer.add` alone, both rings full."""
    buffer, state, rows = _eosjax_full(capacity, dtype)
    labels, add = jnp.asarray(LABELS), jax.jit(buffer.add, donate_argnums=0)

    def step():
        nonlocal state
        state = jax.block_until_ready(add(state, rows, labels))

    return step


def choice_of_slots(key: jax.Array, held: jax.Array, n: int) -> jax.Array:
    """n of the slots that are held (bool [capacity]), as `RingBuffer.draw` chooses them."""
    return jax.random.choice(key, held.size, (n,), replace=False, p=held.astype(jnp.float32))


def highest_uniforms(key: jax.Array, held: jax.Array, n: int) -> jax.Array:
    """The same by one uniform number a slot."""
    return jax.lax.top_k(jnp.where(held, jax.random.uniform(key, held.shape), -1.0), n)[1]


def draw_step(draw: Callable[[jax.Array, jax.Array, int], jax.Array], capacity: int) -> Step:
    """The choice of slots of both classes, both rings full."""
    held, number = jnp.ones(capacity, bool), 0

    @jax.jit
    def run(seed, held):
        positives, negatives = jax.random.split(jax.random.key(seed))
        return draw(positives, held, SAMPLE_POSITIVE), draw(negatives, held, SAMPLE_NEGATIVE)

    def step():
        nonlocal number
        number += 1
        return jax.block_until_ready(run(number, held))

    return step


def flashbax_step(capacity: int, dtype: str) -> Step:
    """add + sample with an item buffer for each class."""
    import flashbax  # pyright: ignore[reportMissingImports]

    counts = (SAMPLE_POSITIVE, SAMPLE_NEGATIVE)
    buffers = [flashbax.make_item_buffer(capacity, count, count, add_batches=True) for count in counts]
    rows = jax.random.normal(jax.random.key(0), (ROWS, *ITEM), dtype)
    classes, key = (rows[:POSITIVES], rows[POSITIVES:]), jax.random.key(1)
    states = [buffer.init(rows[0]) for buffer in buffers]

    def add_and_sample(states, classes, key):
        states = [buffer.add(state, new) for buffer, state, new in zip(buffers, states, classes, strict=True)]
        key, *draws = jax.random.split(key, 3)
        drawn = [buffer.sample(state, k).experience for buffer, state, k in zip(buffers, states, draws, strict=True)]
        return states, key, jnp.concatenate(drawn)

    run = jax.jit(add_and_sample, donate_argnums=0)

    def step():
        nonlocal states, key
        states, key, sample = jax.block_until_ready(run(states, classes, key))
        return sample

    return step


def torch_step(capacity: int, dtype: str, device: str = "cpu") -> Step:
    """add + sample with a deque of tensors for each class, both full; `device` as PyTorch names it."""
    import torch  # pyright: ignore[reportMissingImports]

    rows = torch.randn(ROWS, *ITEM, generator=torch.Generator().manual_seed(0)).to(device, getattr(torch, dtype))
    draw = random.Random(1)
    rings = [collections.deque((rows[i % ROWS].clone() for i in range(capacity)), capacity) for _ in range(2)]

    def step():
        for row, label in zip(rows, LABELS, strict=True):
            rings[label].append(row.detach().clone())  # a view would keep its whole batch alive
        sample = torch.stack(draw.sample(rings[1], SAMPLE_POSITIVE) + draw.sample(rings[0], SAMPLE_NEGATIVE))
        if device != "cpu":
            torch.cuda.synchronize()
        return sample

    return step


CONTENDERS = {"eosjax": eosjax_step, "flashbax": flashbax_step, "torch": torch_step}


def median_ms(step: Step, repeats: int) -> float:
    """The median time of a step in milliseconds, after warm-up."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacities", type=int, nargs="+", default=[50, 1000, 10000], help="rows held of each class")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=20, help="timed steps a cell; the table shows their median")
    args = parser.parse_args()

    contenders = {}
    for name, make in CONTENDERS.items():
        if name == "eosjax" or importlib.util.find_spec(name):
            contenders[name] = make
        else:
            print(f"{name}: skipped, package `{name}` is not installed")
    print(f"jax {jax.__version__} on {jax.devices()[0].platform}; medians of {args.repeats} in ms")

    print(f"\nadd {ROWS} rows of {list(ITEM)} + sample {SAMPLE_POSITIVE + SAMPLE_NEGATIVE}; (x) = times eosjax")
    print(f"{'dtype':10}{'capacity':>10}" + "".join(f"{name:>22}" for name in contenders))
    for dtype in args.dtypes:
        for capacity in args.capacities:
            cells = [median_ms(make(capacity, dtype), args.repeats) for make in contenders.values()]
            shown = "".join(f"{cell:>12.2f} ({cell / cells[0]:>6.1f}x)" for cell in cells)
            print(f"{dtype:10}{capacity:>10}{shown}", flush=True)

    print(f"\nadd alone, bfloat16; (x) = times capacity {args.capacities[0]}")
    cells = [median_ms(eosjax_add(capacity, "bfloat16"), args.repeats) for capacity in args.capacities]
    for capacity, cell in zip(args.capacities, cells, strict=True):
        print(f"{capacity:>10}{cell:>12.2f} ({cell / cells[0]:.2f}x)")

    print(f"\nchoice of {SAMPLE_POSITIVE} + {SAMPLE_NEGATIVE} slots alone\n{'capacity':>10}{'choice':>12}{'uniforms':>12}")
    for capacity in args.capacities:
        cells = [median_ms(draw_step(draw, capacity), args.repeats) for draw in (choice_of_slots, highest_uniforms)]
        print(f"{capacity:>10}" + "".join(f"{cell:>12.3f}" for cell in cells))


if __name__ == "__main__":
    main()
