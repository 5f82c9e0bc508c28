"""The comparison's own objectives against obvious models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.bench.compared_objectives import CrossBatchMemory, DetachedLogits, EmptiedBuffer
from eosjax.bench.methods import all_methods
from eosjax.buffer import BalancedBuffer
from eosjax.training.keys import forward_keys
from eosjax.training.objectives import BufferObjective, EosRows

SMALL = BalancedBuffer(8, 2, 3, 2, 3)
ITEM = jax.ShapeDtypeStruct((), jnp.float32)


def rows(values, labels, valid=None):
    """Rows whose hidden state is one number."""
    valid = np.ones(len(values), bool) if valid is None else np.asarray(valid, bool)
    labels = jnp.asarray(labels, jnp.float32)
    return EosRows(jnp.asarray(values, jnp.float32), labels, jnp.asarray(valid), jnp.float32(1 / max(valid.sum(), 1)))


@functools.cache  # compiled once an objective
def jitted_step(objective):
    def step(weight, state, batch, key):
        def loss(weight):
            term = objective.loss(lambda x: weight * x, state, batch, forward_keys(key))
            return term.loss, term

        (value, term), gradient = jax.value_and_grad(loss, has_aux=True)(weight)
        return value, gradient, term.sums, term.state

    return jax.jit(step)


def run(objective, batches):
    """(loss, gradient, sums, state) of every batch; the head is a multiplication with 1.5."""
    state, steps = objective.init(ITEM), []
    for number, batch in enumerate(batches):
        value, gradient, sums, state = jitted_step(objective)(jnp.float32(1.5), state, batch, jax.random.key(number))
        steps.append((float(value), float(gradient), {name: float(each) for name, each in sums.items()}, state))
    return steps


def bce(logits, labels):
    return np.mean(np.logaddexp(0, np.where(np.asarray(labels) > 0.5, -1, 1) * np.asarray(logits)))


def test_detached_logits_have_a_loss_but_never_a_gradient():
    batches = [rows([1.0, 2.0, -1.0, 0.5, 3.0], [1, 0, 0, 1, 0]) for _ in range(4)]
    for value, gradient, sums, _ in run(DetachedLogits(0.5, SMALL), batches):
        # two ends with logits 1.5 and 0.75, three others with 3, -1.5 and 4.5: all drawn at first, copies of them later
        assert value > 0
        assert gradient == 0
        assert sums["eos_updates"] == 0
        assert sums["true_positive"] == 2
    assert run(DetachedLogits(0.5, SMALL), batches[:1])[0][0] == pytest.approx(bce([1.5, 3, -1.5, 0.75, 4.5], [1, 0, 0, 1, 0]), rel=1e-6)
    assert abs(run(BufferObjective(0.5, SMALL), batches[:1])[0][1]) > 0.1


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=4), min_size=1, max_size=12))
def test_emptied_buffer_is_a_pair_of_lists_that_are_cleared_at_use(batches):
    model = {True: 0, False: 0}
    steps = run(EmptiedBuffer(0.5, SMALL), [rows(np.ones(4), [label for label, _ in batch], [v for _, v in batch]) for batch in batches])
    for batch, (_, gradient, sums, state) in zip(batches, steps, strict=True):
        for label, valid in batch:
            model[label] = min(model[label] + valid, SMALL.capacity)
        ready = model[True] >= SMALL.min_positive and model[False] >= SMALL.min_negative
        assert sums["eos_updates"] == ready
        assert (gradient != 0) == ready
        if ready:
            model = {True: 0, False: 0}
        assert (int(state.positive.count), int(state.negative.count)) == (model[True], model[False])


def test_nothing_from_before_comes_out_of_an_emptied_buffer():
    steps = run(EmptiedBuffer(0.5, SMALL), [rows([100.0] * 5, [1, 1, 0, 0, 0]), rows([0.0] * 5, [1, 1, 0, 0, 0])])
    assert steps[1][0] == pytest.approx(np.log(2))


def test_memory_and_fresh_rows_add_up_behind_the_warm_up():
    batch = rows([1.0, 2.0, -1.0, 0.5, 3.0, 9.0], [1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 1, 0])
    fresh = bce([1.5, 3, -1.5, 0.75, 4.5], [1, 0, 0, 1, 0])
    objective = CrossBatchMemory(0.5, BufferObjective(0.5, SMALL), fresh_weight=0.5, warmup=2)
    memory = [value for value, *_ in run(objective.buffered, [batch] * 4)]
    found = run(objective, [batch] * 4)
    assert [value for value, *_ in found] == pytest.approx(
        [0.5 * fresh, 0.5 * fresh, 0.5 * fresh + memory[2], 0.5 * fresh + memory[3]], rel=1e-5
    )
    assert [sums["eos_loss"] for _, _, sums, _ in found] == pytest.approx([value for value, *_ in found])
    assert [sums["eos_updates"] for _, _, sums, _ in found] == [1] * 4
    counts = [sums["true_positive"] + sums["false_negative"] for _, _, sums, _ in found]
    assert counts == [2, 2, 4, 4]


def test_prior_of_memory_and_fresh_rows_is_where_the_mixed_loss_has_its_minimum():
    share, objective = 0.03, CrossBatchMemory(0.5, BufferObjective(0.5, SMALL), fresh_weight=0.7)
    logits = np.linspace(-6, 6, 100_001)  # one answer for all rows: its best value is the log-odds of the prior

    def loss(prior):
        return prior * np.logaddexp(0, -logits) + (1 - prior) * np.logaddexp(0, logits)

    best = logits[np.argmin(loss(2 / 5) + 0.7 * loss(share))]
    assert 1 / (1 + np.exp(-best)) == pytest.approx(objective.prior(share), abs=1e-4)


def test_methods_answer_in_the_same_world():
    """A logistic fit of a constant to what each method shows its head must come out as the share of ends, once calibrated."""
    share = 0.03
    for method in all_methods(share).values():
        trained = {"emptied": 5 / 15, "draw_10": 10 / 30, "draw_20": 20 / 40, "pos_weight": 0.5, "logit_adjust": 0.5}.get(
            method.name, 15 / 35
        )
        if method.name in ("bce", "focal", "xbm"):
            continue  # without a shift, with another formula, and above
        assert method.calibration.probabilities(np.log(trained / (1 - trained))) == pytest.approx(share), method.name
