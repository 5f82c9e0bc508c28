"""Correctness on the device: against NumPy, against the CPU, against the other program for the same, and against itself."""

from __future__ import annotations

import collections
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.on_gpu.rows import Row, check, differing
from benchmarks.on_gpu.shapes import (
    Begun,
    begin,
    begin_from,
    config_of,
    fused,
    large_policy,
    params_on_host,
    small_config,
    small_policy,
    synthetic_batch,
)
from eosjax.buffer import BalancedBuffer
from eosjax.config import TrainConfig
from eosjax.data.samples.tokens import PromptForm
from eosjax.models.attention import attend
from eosjax.models.openvla import demo_config
from eosjax.models.policies import Observation
from eosjax.runs.checkpoint import Checkpoints, fetch_fingerprints
from eosjax.runs.record import CheckpointRecord, RunRecord, Software
from eosjax.training.keys import evaluation_keys, sample_keys
from eosjax.training.state import TrainState, make_learner

CPU = "cpu"
# Largest errors that pass. Of float32: rounding of another order of the same sums is some 1e-6; TF32, with its 10 bits, would be 1e-3.
FLOAT32 = {"hidden": 3e-5, "actions": 3e-5, "loss": 3e-5, "gradients": 3e-4}
ATTENTION = 0.02  # relative norm of the difference, in bfloat16, whose step is 0.008
# Of the losses, relative to the largest. A change of the weights by one bit grows to 1e-5 in 5 updates of the demo, and to 5e-4 (action)
# and 4e-3 (EOS) in 20; one by 1e-3, as TF32 would make, to 5e-3 in 5 and to 2e-2 in 20.
EARLY = 5  # updates
# Channels of a head and tokens: those of DINOv2, SigLIP and Llama in openvla-7b, each with an odd and an even number of tokens.
SHAPES = ((64, 261), (64, 262), (72, 256), (72, 257), (128, 614), (128, 615))
TINY_SHAPES = ((64, 41),)
UPDATES = {"action loss, early": 3e-4, "EOS loss, early": 3e-4, "action loss": 5e-3, "EOS loss": 4e-2}
FLAT = 1 << 20  # bytes


def all_checks(tiny: bool) -> list[functools.partial[Row]]:
    """The checks, each to be called for its row."""
    device = jax.devices()[0]
    shapes, updates, repeats = (TINY_SHAPES, 4, 10) if tiny else (SHAPES, 20, 100)
    return [
        functools.partial(buffer_against_deque, "float32"),
        functools.partial(buffer_against_deque, "bfloat16"),
        functools.partial(policy_against_cpu, device),
        *(functools.partial(attention_against_xla, *shape) for shape in shapes),
        functools.partial(updates_against_cpu, device, updates, small=tiny),
        functools.partial(donation, device, repeats),
        functools.partial(checkpoint, device),
    ]


def buffer_against_deque(dtype: str) -> Row:
    """Contents, draws and ages of `BalancedBuffer` are those of two deques, for pushes of fewer and of more rows than it holds."""
    buffer = BalancedBuffer(capacity=20, sample_positive=5, sample_negative=7, min_positive=5, min_negative=7)
    state = buffer.init(jax.ShapeDtypeStruct((7, 128), dtype))
    add, draw = jax.jit(buffer.add, donate_argnums=0), jax.jit(buffer.sample)
    deques: dict[bool, collections.deque[tuple[bytes, int]]] = {label: collections.deque(maxlen=20) for label in (True, False)}
    rng = np.random.default_rng(0)
    contents = draws = 0
    for number, size in enumerate((8, 64, 8, 3, 64, 64, 8, 3, 64, 3), start=1):
        rows = np.asarray(jnp.asarray(rng.normal(size=(size, 7, 128)), dtype))
        labels, valid = rng.random(size) < 0.3, rng.random(size) < 0.9
        state = add(state, rows, labels, valid)
        for row, label, real in zip(rows, labels, valid, strict=True):
            if real:
                deques[bool(label)].append((row.tobytes(), number))
        for label, name in ((True, "positive"), (False, "negative")):
            contents += [row.tobytes() for row in buffer.contents(state)[name]] != [row for row, _ in deques[label]]
        sample = jax.device_get(draw(state, jax.random.key(number)))
        ready = len(deques[True]) >= 5 and len(deques[False]) >= 7
        drawn = [(bool(label), row.tobytes(), number - age) for row, label, age in zip(*_columns(sample), strict=True)]
        right = len(set(drawn)) == len(drawn) and all((row, born) in deques[label] for label, row, born in drawn)
        draws += not (right and sample.weights.all() and sample.labels.sum() == 5) if ready else bool(sample.weights.any())
    figures = {"contents that differ": contents, "wrong draws": draws}
    return check(f"buffer against deques, {dtype}", figures, 0)


def _columns(sample: Any) -> tuple[Any, Any, Any]:
    return sample.items, sample.labels, sample.ages


def policy_against_cpu(device: Any) -> Row:
    """Hidden states, actions, losses and gradients of a small policy in float32."""
    config, policy = small_config(), small_policy()
    params, batch = params_on_host(config, policy), synthetic_batch(policy, 2, 8)
    compute = jax.jit(functools.partial(_outputs, make_learner(config, policy)))

    def on(device: Any) -> Any:
        return jax.device_get(compute(*jax.device_put((params, batch), device)))

    got, expected = on(device), on(jax.devices(CPU)[0])
    errors = {what: relative_error(got[what], expected[what]) for what in FLOAT32}
    return check("small policy against the CPU, float32", errors, FLOAT32, "products in full float32, as the modules ask for: no TF32")


def _outputs(learner: Any, params: Any, batch: Any) -> dict[str, Any]:
    seen = Observation(batch.images, batch.input_ids, batch.attn_mask, batch.proprio)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        noise = sample_keys(jax.random.key(1), batch.key)
        hidden, sums = learner.policy.loss(params, seen, batch.actions, batch.valid, noise, jax.random.key(2))
        logits = learner.eos_head.apply({"params": params["eos_head"]}, hidden)
        return sums["action_sum"] / sums["action_count"] + jnp.mean(jnp.logaddexp(0.0, logits) - batch.eos * logits), hidden

    (value, hidden), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    actions = learner.policy.act(params, seen, evaluation_keys(batch.key)).actions
    return {"hidden": hidden, "actions": actions, "loss": value, "gradients": gradients}


def relative_error(got: Any, expected: Any) -> float:
    """The largest difference in a tree, relative to the largest number of its array, or to a thousandth of the largest of the tree.

    The gradients of some arrays are zero but for rounding, such as that of the bias of keys.
    """
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True))
    sizes = [float(np.max(np.abs(b))) for _, b in pairs]
    least = 1e-3 * max(sizes)
    return max(float(np.max(np.abs(a - b))) / max(size, least) for (a, b), size in zip(pairs, sizes, strict=True))


def attention_against_xla(head: int, tokens: int) -> Row:
    """The fused kernel, forward and backward, for rows of all lengths and for rows without padding."""
    fast, errors = fused(), {}
    rng = np.random.default_rng(head + tokens)
    q, k, v, weight = (jnp.asarray(rng.normal(size=(4, tokens, 2, head)), jnp.bfloat16) for _ in range(4))
    some = jnp.asarray([1, tokens // 3, tokens - 1, tokens], jnp.int32)

    def outputs(q: Any, k: Any, v: Any, lengths: Any, implementation: str) -> tuple[Any, ...]:
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, lengths, implementation), q, k, v)
        return out, *back(weight)

    compute = jax.jit(outputs, static_argnames="implementation")
    for what, lengths in (("ragged", some), ("full", None)):
        pair = (compute(q, k, v, lengths, implementation=implementation) for implementation in (fast, "xla"))
        for name, a, b in zip(("out", "dq", "dk", "dv"), *pair, strict=True):
            a, b = (np.asarray(x, np.float32) for x in (a, b))
            errors[f"{what} {name}"] = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    return check(f"attention: {fast} against xla, head {head}, {tokens} tokens", errors, ATTENTION, "bfloat16")


def train(begun: Begun, updates: int) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Some updates on synthetic batches, and the losses f32 [updates] of each."""
    policy, state, losses = begun.learner.policy.vla.config, begun.state, []
    for number in range(updates):
        batch = begun.parallel.split(synthetic_batch(policy, 2, 8, seed=number))
        state, metrics = begun.parallel.step(state, begun.frozen, batch)
        sums = jax.device_get(metrics.window)
        losses.append((sums["action_sum"] / sums["action_count"], sums["eos_loss"]))
    return state, dict(zip(("action loss", "EOS loss"), np.asarray(losses).T, strict=True))


def updates_against_cpu(device: Any, updates: int, *, small: bool) -> Row:
    """The losses of the first updates of the policy of the demo, all weights trained, in float32."""
    config = small_config()
    policy = small_policy() if small else demo_config(vocab_size=512)
    params = params_on_host(config, policy)
    got, expected = (train(begin_from(params, config, policy, place), updates)[1] for place in (device, jax.devices(CPU)[0]))
    errors = {what: relative_error(got[what], expected[what]) for what in got}
    errors |= {f"{what}, early": relative_error(got[what][:EARLY], expected[what][:EARLY]) for what in got}
    return check(f"{updates} updates against the CPU, float32", errors, UPDATES)


def donation(device: Any, updates: int) -> Row:
    """A step writes over the state that it gets: the old one is gone, and memory does not grow."""
    begun = begin(small_config(), small_policy(), device)
    batch = begun.parallel.split(synthetic_batch(small_policy(), 2, 8))
    state, kept, sizes = begun.state, 0, []
    for _ in range(updates):
        old = jax.tree.leaves(state)
        state, metrics = jax.block_until_ready(begun.parallel.step(state, begun.frozen, batch))
        kept += sum(not leaf.is_deleted() for leaf in old)
        sizes.append(bytes_in_use(device))
        del metrics
    growth = max(sizes[2:]) - sizes[2]
    source = "memory_stats()" if device.memory_stats() else "live_arrays()"
    figures = {"arrays of old states that live on": kept, "growth in bytes": growth}
    return check(f"memory over {updates} updates", figures, {**dict.fromkeys(figures, 0), "growth in bytes": FLAT}, f"by {source}")


def bytes_in_use(device: Any) -> int:
    """Bytes of all arrays on the device."""
    if stats := device.memory_stats():
        return stats["bytes_in_use"]
    return sum(array.nbytes for array in jax.live_arrays())


def checkpoint(device: Any) -> Row:
    """A state that is donated as soon as `save` has returned comes back bit for bit, and training goes on from it in the same way."""
    config, policy = small_config(), small_policy()
    begun = begin(config, policy, device)
    state, _ = train(begun, 3)
    before = fetch_fingerprints(state)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=1)
        checkpoints.save(state, CheckpointRecord(_record(config, policy), 3, None, None, before))
        after, _ = train(begun._replace(state=state), 2)
        checkpoints.wait()
        shapes = jax.eval_shape(lambda state: state, after)
        restored, _ = checkpoints.restore(shapes, begun.parallel.replicated, lambda record: None)
        checkpoints.close()
    figures = {"arrays that differ": differing(before, fetch_fingerprints(restored))}
    again, _ = train(begun._replace(state=restored), 2)
    later = differing(fetch_fingerprints(after), fetch_fingerprints(again))
    return check("a checkpoint comes back", figures, 0, f"two updates later {later} arrays differ: 0 where kernels are deterministic")


def _record(config: TrainConfig, policy: Any) -> RunRecord:
    """A record of a run without data."""
    software = Software("", jax.__version__, jax.default_backend(), jax.devices()[0].device_kind, 1)
    return RunRecord(config, (), 0.05, 8, policy, PromptForm.of(True), "", {}, None, software, None)


def deterministic_run(device: Any, *, tiny: bool) -> dict[str, int]:
    """Fingerprints of the state after some updates, as a run in a process of its own ends.

    Of a small policy in bfloat16 with adapters; with `tiny` of one in float32 that compiles in a third of the time.
    """
    if tiny:
        begun = begin(small_config(), small_policy(), device)
    else:
        begun = begin(config_of(2, 8, log_freq=1), large_policy("auto", "dots", tiny=True), device)
    state, _ = train(begun, 3 if tiny else 10)
    return fetch_fingerprints(state)
