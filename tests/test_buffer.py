"""The buffer against `collections.deque`, its draws against the uniform law, its compiled form against O(rows)."""

import collections
import functools
import re
import subprocess
import sys

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.buffer import BalancedBuffer, RingBuffer

ITEM = {"hidden": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "meta": (jax.ShapeDtypeStruct((), jnp.int32),)}
CLASSES = ("positive", "negative")

settings = hypothesis.settings(deadline=None, derandomize=True, max_examples=60)
push = st.sampled_from([0, 3, 8]).flatmap(lambda n: st.lists(st.tuples(st.booleans(), st.booleans()), min_size=n, max_size=n))


@functools.cache
def jitted(buffer, method):
    return jax.jit(getattr(buffer, method))


def small_buffer(capacity, sample_positive=1, sample_negative=1):
    return BalancedBuffer(capacity, sample_positive, sample_negative, sample_positive, sample_negative)


def make_items(ids):
    """Rows that can be told apart: `meta` holds the id, `hidden` numbers that bfloat16 holds exactly."""
    ids = np.asarray(ids, np.int32)
    hidden = (ids % 32)[:, None, None] + np.arange(6).reshape(2, 3) / 4
    return {"hidden": jnp.asarray(hidden, jnp.bfloat16), "meta": (jnp.asarray(ids),)}


def fill(buffer, positives, negatives):
    """A state that holds rows 0 … positives-1 as positives and 100 … 100+negatives-1 as negatives."""
    ids = np.arange(200)
    return jitted(buffer, "add")(buffer.init(ITEM), make_items(ids), ids < 100, ids % 100 < np.where(ids < 100, positives, negatives))


def chi_square(observed, expected):
    return float(np.sum((np.asarray(observed) - expected) ** 2 / expected))


@settings
@hypothesis.given(capacity=st.sampled_from([2, 5]), pushes=st.lists(push, min_size=1, max_size=8))
def test_content_equals_a_deque(capacity, pushes):
    buffer, ids = small_buffer(capacity), iter(range(1000))
    state = buffer.init(ITEM)
    model = {name: collections.deque(maxlen=capacity) for name in CLASSES}
    seen = collections.Counter()
    for clock, push in enumerate(pushes, start=1):
        batch = [(next(ids), positive, valid) for positive, valid in push]
        for row, positive, valid in batch:
            if valid:
                model[CLASSES[not positive]].append((row, clock))
                seen[CLASSES[not positive]] += 1
        labels, valid = (np.array([entry[i] for entry in batch], bool) for i in (1, 2))
        state = jitted(buffer, "add")(state, make_items([entry[0] for entry in batch]), labels, valid)

        contents = buffer.contents(state)
        for name in CLASSES:
            rows, ring = [row for row, _ in model[name]], getattr(state, name)
            chex.assert_trees_all_equal(contents[name], jax.tree.map(np.asarray, make_items(rows)))
            assert buffer.ring.born(ring).tolist() == [born for _, born in model[name]]
            assert (int(ring.count), int(ring.seen)) == (len(rows), seen[name])
            assert int(ring.next) == seen[name] % capacity
        assert int(state.adds) == clock


@settings
@hypothesis.given(capacity=st.sampled_from([1, 4]), pushes=st.lists(st.lists(st.booleans(), max_size=6), max_size=6))
def test_ring_alone_equals_a_deque(capacity, pushes):
    ring, ids, model = RingBuffer(capacity), iter(range(1000)), collections.deque(maxlen=capacity)
    state = ring.init(np.int32(0))
    for push in pushes:
        rows = [next(ids) for _ in push]
        model.extend(row for row, valid in zip(rows, push, strict=True) if valid)
        valid = jnp.array(push, bool)
        slots = ring.slots(state, valid).tolist()
        assert len(set(slots)) == len(slots)
        assert sum(slot < capacity for slot in slots) == min(sum(push), capacity)
        state = jitted(ring, "add")(state, np.array(rows, np.int32), valid)
        assert ring.contents(state).tolist() == list(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float32", "int8", "uint8", "int32", "bool", "complex64"])
def test_every_dtype_comes_back_bit_for_bit(dtype):
    dtype = jnp.dtype(dtype)
    raw = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 256, (5, 8, dtype.itemsize), np.uint8)
    rows = raw.view(dtype)[..., 0]  # whatever the bits say: NaN, infinities, -0.0, subnormals
    buffer = small_buffer(capacity=3)
    state = buffer.add(buffer.init(rows[0]), rows, np.array([1, 0, 1, 1, 1]))
    contents = buffer.contents(state)
    assert contents["positive"].dtype == contents["negative"].dtype == dtype
    assert contents["positive"].tobytes() == rows[2:].tobytes()
    assert contents["negative"].tobytes() == rows[1:2].tobytes()
    taken = buffer.ring.take(state.negative, jnp.array([0]))
    assert taken.dtype == dtype
    assert np.asarray(taken).tobytes() == rows[1:2].tobytes()


@pytest.mark.parametrize("labels", [[True, False, True], [1, 0, 1], [0.9, 0.5, 0.51]])
def test_labels_of_any_kind(labels):
    buffer = small_buffer(4)
    contents = buffer.contents(buffer.add(buffer.init(ITEM), make_items([0, 1, 2]), jnp.asarray(labels)))
    assert contents["positive"]["meta"][0].tolist() == [0, 2]
    assert contents["negative"]["meta"][0].tolist() == [1]


@settings
@hypothesis.given(positives=st.integers(0, 9), negatives=st.integers(0, 9), seed=st.integers(0, 2**31))
def test_sample_draws_valid_rows_once(positives, negatives, seed):
    buffer = BalancedBuffer(6, sample_positive=2, sample_negative=3, min_positive=4, min_negative=3)
    state = fill(buffer, positives, negatives)
    sample = jitted(buffer, "sample")(state, jax.random.key(seed))
    chex.assert_shape([sample.labels, sample.weights, sample.ages], (5,))
    chex.assert_shape(sample.items["hidden"], (5, 2, 3))
    chex.assert_type([*sample[1:], sample.items["hidden"]], [jnp.float32, jnp.float32, jnp.int32, jnp.bfloat16])

    ready = positives >= 4 and negatives >= 3
    assert bool(buffer.can_sample(state)) == ready
    assert sample.weights.tolist() == [float(ready)] * 5
    assert sorted(sample.labels.tolist()) == [0, 0, 0, 1, 1]
    if ready:
        ids = sample.items["meta"][0].tolist()
        assert len(set(ids)) == 5
        held = {*range(max(0, positives - 6), positives), *range(100 + max(0, negatives - 6), 100 + negatives)}
        assert set(ids) <= held
        assert [float(row < 100) for row in ids] == sample.labels.tolist()
        chex.assert_trees_all_equal(sample.items, make_items(ids))


def test_ring_draw_marks_what_is_not_there():
    ring = RingBuffer(8)
    state = ring.add(ring.init(np.int32(0)), np.arange(3, dtype=np.int32), np.ones(3, bool))
    for seed in range(20):
        slots, real = ring.draw(state, jax.random.key(seed), 5)
        assert real.tolist() == [True] * 3 + [False] * 2
        assert sorted(slots[:3].tolist()) == [0, 1, 2]
        assert len(set(slots.tolist())) == 5
        assert max(slots.tolist()) < 8
    assert not ring.draw(ring.init(np.int32(0)), jax.random.key(0), 5)[1].any()
    with pytest.raises(ValueError, match=r"n: expected at most the capacity \(8\), got 9"):
        ring.draw(state, jax.random.key(0), 9)


def test_draws_are_uniform_and_shuffled():
    """Chi-square at the 99.9 % quantile, fixed seed: no row held and no place in the sample is favoured."""
    draws, held, drawn = 6000, 9, 3
    buffer = small_buffer(12, sample_positive=drawn, sample_negative=2)
    state = fill(buffer, held, 4)
    keys = jax.random.split(jax.random.key(7), draws)
    sample = jax.jit(jax.vmap(buffer.sample, in_axes=(None, 0)))(state, keys)
    ids, labels = np.asarray(sample.items["meta"][0]), np.asarray(sample.labels)

    counts = np.bincount(ids[labels == 1], minlength=held)
    assert len(counts) == held
    # Rows drawn without replacement vary less than independent ones, by (held - drawn) / (held - 1).
    assert chi_square(counts, draws * drawn / held) * (held - 1) / (held - drawn) < 26.12  # 8 degrees of freedom
    places = labels.sum(axis=0)
    assert chi_square(places, draws * 3 / 5) * (5 - 1) / (5 - 3) < 18.47  # 4
    # The first positive in the order of the sample is any of the rows: order within a class is random as well.
    first = np.bincount(ids[np.arange(draws), labels.argmax(axis=1)], minlength=held)
    assert chi_square(first, draws / held) < 26.12


def test_the_classes_are_drawn_independently():
    draws, held = 4000, 4
    buffer = small_buffer(4)
    keys = jax.random.split(jax.random.key(3), draws)
    sample = jax.jit(jax.vmap(buffer.sample, in_axes=(None, 0)))(fill(buffer, held, held), keys)
    ids = np.sort(np.asarray(sample.items["meta"][0]), axis=1)
    pairs = np.zeros((held, held))
    np.add.at(pairs, (ids[:, 0], ids[:, 1] - 100), 1)
    assert chi_square(pairs, draws / held**2) < 37.70  # 15 degrees of freedom


def test_ages_count_additions():
    buffer = small_buffer(4, sample_positive=3, sample_negative=1)
    state = buffer.init(ITEM)
    for clock in range(6):  # one positive an addition; the only negative enters with the second
        ids, labels = np.array([clock, 100]), np.array([True, False])
        state = jitted(buffer, "add")(state, make_items(ids), labels, np.array([True, clock == 1]))
    sample = buffer.sample(state, jax.random.key(0))
    born = {2: 2, 3: 3, 4: 4, 5: 5, 100: 1}
    assert sample.ages.tolist() == [5 - born[row] for row in sample.items["meta"][0].tolist()]
    assert buffer.sample(buffer.init(ITEM), jax.random.key(0)).ages.tolist() == [0] * 4


def test_updates_count_only_while_ready():
    buffer = small_buffer(3)
    assert int(buffer.count_update(fill(buffer, 1, 0)).updates) == 0
    assert int(buffer.count_update(buffer.count_update(fill(buffer, 1, 1))).updates) == 2


def random_stream(steps, n, seed=0):
    rng = np.random.default_rng(seed)
    items = [make_items(rng.integers(0, 1000, n)) for _ in range(steps)]
    return jax.tree.map(lambda *x: jnp.stack(x), *items), rng.random((steps, n)) < 0.3, rng.random((steps, n)) < 0.8


def add_in_turn(buffer, items, labels, valid):
    state = buffer.init(ITEM)
    for t in range(len(labels)):
        state = jitted(buffer, "add")(state, jax.tree.map(lambda x, t=t: x[t], items), labels[t], valid[t])
    return state


def test_jit_traces_once_and_scan_equals_a_loop():
    buffer, stream = small_buffer(5), random_stream(steps=6, n=4)
    expected = add_in_turn(buffer, *stream)
    add = jax.jit(chex.assert_max_traces(buffer.add, n=1))
    state = buffer.init(ITEM)
    for t in range(6):
        state = add(state, *jax.tree.map(lambda x, t=t: x[t], stream))
    chex.assert_trees_all_equal(state, expected)
    scanned, _ = jax.lax.scan(lambda state, xs: (buffer.add(state, *xs), None), buffer.init(ITEM), stream)
    chex.assert_trees_all_equal(scanned, expected)


def test_vmap_equals_separate_buffers():
    buffer = small_buffer(5, sample_positive=2, sample_negative=2)
    streams = [random_stream(steps=4, n=6, seed=seed) for seed in range(3)]
    separate = [add_in_turn(buffer, *stream) for stream in streams]
    state, add = jax.vmap(lambda _: buffer.init(ITEM))(jnp.arange(3)), jax.jit(jax.vmap(buffer.add))
    for t in range(4):
        batch = [jax.tree.map(lambda x, t=t: x[t], stream) for stream in streams]
        state = add(state, *jax.tree.map(lambda *x: jnp.stack(x), *batch))
    chex.assert_trees_all_equal(state, jax.tree.map(lambda *x: jnp.stack(x), *separate))
    keys = jax.random.split(jax.random.key(0), 3)
    samples = [jitted(buffer, "sample")(one, key) for one, key in zip(separate, keys, strict=True)]
    drawn = jax.jit(jax.vmap(buffer.sample))(state, keys)
    chex.assert_trees_all_equal(drawn, jax.tree.map(lambda *x: jnp.stack(x), *samples))


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices: --xla_force_host_platform_device_count=4")
def test_four_devices_hold_one_buffer():
    """Rows gathered from 4 devices and a replicated, donated state give the buffer and the draw of one device."""
    buffer = small_buffer(5, sample_positive=2, sample_negative=2)
    stream, key = random_stream(steps=6, n=8), jax.random.key(0)
    expected = add_in_turn(buffer, *stream)

    def step(state, rows, key):
        state = buffer.add(state, *jax.lax.all_gather(rows, "device", tiled=True))
        return state, buffer.sample(state, key)

    axes = {"in_axes": (None, 0, None), "out_axes": None}
    run = jax.pmap(step, "device", **axes, donate_argnums=0, devices=jax.devices()[:4])
    state, sample = buffer.init(ITEM), None
    for t in range(6):
        rows = jax.tree.map(lambda x, t=t: x[t].reshape(4, 2, *x.shape[2:]), stream)
        state, sample = run(state, rows, key)
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(expected))
    chex.assert_trees_all_equal(jax.device_get(sample), jax.device_get(buffer.sample(expected, key)))
    chex.assert_trees_all_equal(buffer.contents(state), buffer.contents(expected))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradient_stops_on_the_way_in_and_reaches_the_head(dtype):
    buffer = small_buffer(4, sample_positive=2, sample_negative=2)
    rows = jnp.arange(1, 25, dtype=jnp.dtype(dtype)).reshape(8, 3) / 8
    labels = jnp.arange(8) % 2 == 0

    def loss(backbone, head):
        state = buffer.add(buffer.init(rows[0]), rows * backbone, labels)
        sample = buffer.sample(state, jax.random.key(0))
        return jnp.sum(sample.weights * (sample.items.astype(jnp.float32) @ head)), sample

    (backbone, head), sample = jax.grad(loss, argnums=(0, 1), has_aux=True)(jnp.ones((), dtype), jnp.ones(3))
    assert float(backbone) == 0
    np.testing.assert_allclose(head, np.asarray(sample.items, np.float32).sum(axis=0))
    assert np.all(np.asarray(head) > 0)


def compiled(method, capacity, dtype, rows=64):
    """For items [7, 4096], from shapes alone: the optimised program's text and memory, and the bytes of one ring."""
    buffer = BalancedBuffer(capacity)
    item = jax.ShapeDtypeStruct((7, 4096), dtype)
    state = jax.eval_shape(lambda: buffer.init(item))
    if method == "add":
        args = jax.ShapeDtypeStruct((rows, *item.shape), dtype), jax.ShapeDtypeStruct((rows,), bool)
        lowered = jax.jit(buffer.add, donate_argnums=0).lower(state, *args)
    else:
        lowered = jax.jit(buffer.sample).lower(state, jax.random.key(0))
    program = lowered.compile({"xla_cpu_use_fusion_emitters": True})  # as for users
    text, memory = program.as_text(), program.memory_analysis()
    assert text
    assert memory
    return text, memory, capacity * 7 * 4096 * jnp.dtype(dtype).itemsize


def whole_ring_ops(text, capacity):
    """The opcodes of all instructions, in all computations, whose result is as large as a ring."""
    return set(re.findall(rf"= \w+\[{capacity},7,4096\]\S* ([\w-]+)\(", text))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_add_costs_what_its_rows_cost(dtype):
    """At capacity 10,000 the rings are written in place, and nothing else touches more than the rows."""
    _, small, _ = compiled("add", 50, dtype)
    text, large, ring_bytes = compiled("add", 10_000, dtype)
    ops = whole_ring_ops(text, 10_000)
    assert "scatter" in ops
    assert ops <= {"parameter", "scatter", "fusion", "bitcast", "get-tuple-element"}
    assert "input_output_alias" in text
    assert large.alias_size_in_bytes >= 2 * ring_bytes
    assert large.temp_size_in_bytes == small.temp_size_in_bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_sample_does_not_copy_the_rings(dtype):
    text, memory, ring_bytes = compiled("sample", 10_000, dtype)
    assert whole_ring_ops(text, 10_000) == {"parameter"}
    assert memory.temp_size_in_bytes < ring_bytes / 500


def test_donated_state_is_written_in_place():
    buffer = BalancedBuffer(capacity=100)
    state = buffer.init(jax.ShapeDtypeStruct((7, 64), jnp.bfloat16))
    before, address = state, state.positive.data.unsafe_buffer_pointer()
    add = jax.jit(buffer.add, donate_argnums=0)
    state = add(state, jnp.ones((4, 7, 64), jnp.bfloat16), jnp.ones(4))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert state.positive.data.unsafe_buffer_pointer() == address
    assert int(state.positive.count) == 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"capacity": 0}, "capacity: expected a positive integer, got 0"),
        ({"sample_positive": 0}, "sample_positive: expected a positive integer, got 0"),
        ({"min_negative": -1}, "min_negative: expected a positive integer, got -1"),
        ({"min_positive": 14}, r"min_positive: expected at least sample_positive \(15\), got 14"),
        ({"min_negative": 19}, r"min_negative: expected at least sample_negative \(20\), got 19"),
        ({"capacity": 19}, r"capacity: expected at least min_negative \(20\), got 19"),
    ],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        BalancedBuffer(**sizes)


def test_ring_checks_its_arguments():
    with pytest.raises(ValueError, match="capacity: expected a positive integer, got 0"):
        RingBuffer(0)
    with pytest.raises(ValueError, match="item: expected a pytree with at least one array"):
        RingBuffer(1).init({})
    state = RingBuffer(1).init(np.int32(0))
    with pytest.raises(ValueError, match=r"valid: expected bool \[n\], got int32 \[2\]"):
        RingBuffer(1).add(state, np.zeros(2, np.int32), np.ones(2, np.int32))


def changed(**leaves):
    return {"items": {**make_items([0, 1]), **leaves}}


HIDDEN, META = (
    r"items\['hidden'\]: expected bfloat16 \[2, 2, 3\], got ",
    r"items\['meta'\]\[0\]: expected int32 \[2\], got ",
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed(hidden=jnp.zeros((2, 2, 4), jnp.bfloat16)), HIDDEN + r"bfloat16 \[2, 2, 4\]"),
        (changed(hidden=jnp.zeros((2, 2, 3))), HIDDEN + r"float32 \[2, 2, 3\]"),
        (changed(hidden=jnp.zeros((2, 2, 3), jnp.uint16)), HIDDEN + "uint16"),
        (changed(meta=(jnp.zeros(3, jnp.int32),)), META + r"int32 \[3\]"),
        (changed(meta=()), META + r"no such leaf \(there are: \['hidden'\]\)"),
        (changed(extra=jnp.zeros(2)), r"items\['extra'\]: the buffer has no such leaf"),
        ({"labels": jnp.zeros(3)}, r"items\['hidden'\]: expected bfloat16 \[3, 2, 3\]"),
        ({"labels": jnp.zeros((2, 1))}, r"labels: expected shape \[n\], got \[2, 1\]"),
        ({"valid": jnp.ones(3, bool)}, r"valid: expected bool \[2\], got bool \[3\]"),
        ({"valid": jnp.ones(2)}, r"valid: expected bool \[2\], got float32 \[2\]"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    buffer = small_buffer(3)
    with pytest.raises(ValueError, match=message):
        jax.jit(buffer.add)(buffer.init(ITEM), **{**changed(), "labels": jnp.array([0, 1]), **arguments})


def test_import_is_light():
    """The buffer is useful alone: it imports no data pipeline, no checkpointing and no other part of eosjax."""
    code = "import eosjax.buffer, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "jax" in loaded
    assert not {"tensorflow", "tensorflow_datasets", "orbax", "grain", "optax"} & set(loaded)
