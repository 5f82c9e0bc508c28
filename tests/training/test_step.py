"""The update: who gets a gradient, what enters the buffer, and that neither devices nor micro-batches change the result."""

import dataclasses
from collections import deque

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from eosjax import losses
from eosjax.models.policies import Observation
from eosjax.training.metrics import to_row
from eosjax.training.parallel import DataParallel
from eosjax.training.state import make_learner
from eosjax.training.step import predict, train_step
from tests.training.conftest import CONFIG, TINY, build, build_stub, jitted_step, random_batch


def run(learner, state, frozen, batches):
    step = jitted_step(learner)
    for batch in batches:
        state, metrics = step(state, frozen, batch)
    return state, metrics


def hidden_states(learner, state, frozen, batch):
    seen = Observation(batch.images, batch.input_ids, batch.attn_mask, batch.proprio)
    return learner.policy.act({**frozen, **state.trainable}, seen, None).hidden


def is_zero(tree):
    return all(not np.any(leaf) for leaf in jax.tree.leaves(tree))


def never_ready():
    return {"eos_buffer_capacity": 400, "eos_min_positive": 400, "eos_min_negative": 400}


class TestGradientStory:
    """Why hidden states are stored, and not logits."""

    def head_gradient(self, learner, state, store, evaluate):
        """Gradient of the head from rows that `store` makes of the hidden states and `evaluate` turns into logits."""
        batch = random_batch(np.random.default_rng(5), 16)
        hidden = hidden_states(learner, state, {}, batch).reshape(-1, TINY.action_dim, TINY.llama.width)

        def loss(head):
            rows = store(head, hidden)
            buffer = learner.objective.buffer.init(jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype))
            buffer = learner.objective.buffer.add(buffer, rows, batch.eos.reshape(-1), batch.valid.reshape(-1))
            sample = learner.objective.buffer.sample(buffer, jax.random.key(0))
            return losses.balanced_bce(evaluate(head, sample.items), sample.labels, sample.weights)

        value, gradient = jax.value_and_grad(loss)(state.trainable["eos_head"])
        assert value > 0
        return gradient

    def test_stored_logits_give_the_head_no_gradient(self):
        learner, state, _ = build_stub()
        apply = lambda head, rows: learner.eos_head.apply({"params": head}, rows)
        assert is_zero(self.head_gradient(learner, state, store=apply, evaluate=lambda head, rows: rows))

    def test_stored_hidden_states_give_every_layer_of_the_head_a_gradient(self):
        learner, state, _ = build_stub()
        apply = lambda head, rows: learner.eos_head.apply({"params": head}, rows)
        gradient = self.head_gradient(learner, state, store=lambda head, rows: rows, evaluate=apply)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))

    def test_the_eos_loss_moves_the_head_and_nothing_else(self, batches):
        results = []
        for weight in (1e-6, 50.0):
            learner, state, frozen = build_stub(lambda_eos=weight)
            state, metrics = run(learner, state, frozen, batches[:3])
            assert metrics.last["eos_updates"] == 1
            results.append(dict(state.trainable))
        heads = [parts.pop("eos_head") for parts in results]
        chex.assert_trees_all_equal(*results)
        assert not np.array_equal(heads[0]["fc1"]["kernel"], heads[1]["fc1"]["kernel"])


def parts_after(batches, **flags):
    learner, state, frozen = build_stub(**flags)
    state, metrics = run(learner, state, frozen, batches[:3])
    assert metrics.last["eos_head_grad_norm"] > 0
    return dict(state.trainable)


@pytest.mark.parametrize("reaches_policy", [False, True])
def test_a_loss_on_fresh_rows_reaches_the_policy_only_if_asked(batches, reaches_policy):
    flags = {"eos_loss": "pos_weight", "eos_backbone_grad": reaches_policy}
    light, heavy = (parts_after(batches, lambda_eos=weight, **flags) for weight in (1e-6, 50.0))
    assert not np.array_equal(light.pop("eos_head")["fc1"]["kernel"], heavy.pop("eos_head")["fc1"]["kernel"])
    changed = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(light["vla"]), jax.tree.leaves(heavy["vla"]), strict=True)]
    assert any(changed) == reaches_policy


def test_beside_draws_fresh_rows_reach_the_policy_with_a_weight_of_their_own(batches):
    """Adam hides the size of a gradient, so it is the gradients that are compared: of the first update that has one of the ends."""
    moments = []
    for draws, fresh in ((2.0, 0.2), (4.0, 0.2), (2.0, 0.4), (2.0, 1e-9)):
        learner, start, frozen = build_stub(eos_loss="buffer_fresh", lambda_eos=draws, lambda_eos_policy=fresh)
        state, metrics = run(learner, start, frozen, batches[:1])
        assert metrics.last["eos_updates"] == 1
        assert metrics.window["eos_fresh_loss"] > 0
        moments.append(first_moments(state))
    usual, other_draws, twice, without = moments
    chex.assert_trees_all_close(other_draws["vla"], usual["vla"], rtol=1e-4, atol=1e-8)
    assert not np.allclose(other_draws["eos_head"]["fc3"]["kernel"], usual["eos_head"]["fc3"]["kernel"], rtol=1e-3)
    for part in ("vla", "eos_head"):
        rise, rise_of_twice = (jax.tree.map(lambda a, b: a - b, each[part], without[part]) for each in (usual, twice))
        assert not is_zero(rise)
        chex.assert_trees_all_close(jax.tree.map(lambda x: 2 * x, rise), rise_of_twice, rtol=1e-2, atol=1e-6)
    chex.assert_trees_all_equal(usual["action_head"], without["action_head"])


def test_fresh_rows_reach_the_adapters(batches):
    """The loss of the actions knows no labels: what the adapters learn of other labels comes from the rows of the batch."""
    learner, start, frozen = build(lora_rank=4, eos_loss="buffer_fresh")
    flipped = batches[0]._replace(eos=np.where(batches[0].valid, 1 - batches[0].eos, 0).astype(np.float32))
    one, other = (first_moments(run(learner, start, frozen, [batch])[0]) for batch in (batches[0], flipped))
    assert not all(np.allclose(a, b) for a, b in zip(*(jax.tree.leaves(each["lora"]) for each in (one, other)), strict=True))
    chex.assert_trees_all_equal(one["action_head"], other["action_head"])


def first_moments(state):
    """Adam's averages of the gradients, by part: a tenth of the gradients themselves after the first update."""
    moments = [leaf.mu for leaf in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu")]
    return {part: tree for each in moments for part, tree in each.items() if jax.tree.leaves(tree)}


class TestWaitingHead:
    def test_nothing_of_the_head_moves_before_the_buffer_is_ready(self, batches):
        learner, start, frozen = build_stub(**never_ready())
        state, metrics = run(learner, start, frozen, batches[:4])
        row = to_row(jax.device_get(metrics), lambda_eos=2.0, lambda_eos_policy=0.2, micro_batches=1)
        assert row["train/eos_loss"] == 0.0
        assert row["train/eos_updated"] == 0.0
        assert row["train/eos_grad_norm"] == 0.0
        chex.assert_trees_all_equal(state.trainable["eos_head"], start.trainable["eos_head"])
        assert not np.array_equal(state.trainable["action_head"]["kernel"], start.trainable["action_head"]["kernel"])

    def test_its_first_update_is_that_of_a_fresh_adam(self, batches):
        # lr / (1 - beta1) / ... : Adam's first update has size lr wherever the gradient is not tiny, whenever it comes.
        learner, state, frozen = build_stub()
        empty = [batch._replace(eos=np.zeros_like(batch.eos)) for batch in batches[:5]]
        waited, _ = run(learner, state, frozen, empty)
        moved, metrics = run(learner, waited, frozen, batches[5:6])
        assert metrics.last["eos_updates"] == 1
        before, after = (s.trainable["eos_head"]["fc3"]["bias"] for s in (waited, moved))
        np.testing.assert_allclose(np.abs(after - before), 1e-3, rtol=1e-3)

    def test_without_the_head_there_is_no_trace_of_it(self, batches):
        learner, state, frozen = build_stub(use_eos_classification=False)
        state, metrics = run(learner, state, frozen, batches[:2])
        assert state.buffer is None
        assert "eos_head" not in state.trainable
        assert not [name for name in {**metrics.window, **metrics.last} if "eos" in name]


def test_the_buffer_holds_the_hidden_states_of_valid_slots_in_order(batches):
    learner, state, frozen = build_stub()
    model = {True: deque(maxlen=12), False: deque(maxlen=12)}
    for batch in batches[:3]:
        hidden = np.asarray(hidden_states(learner, state, frozen, batch)).reshape(-1, TINY.action_dim, TINY.llama.width)
        for row, label, valid in zip(hidden, batch.eos.reshape(-1), batch.valid.reshape(-1), strict=True):
            if valid:
                model[bool(label)].append(row)
        state, _ = run(learner, state, frozen, [batch])
    contents = learner.objective.buffer.contents(state.buffer)
    for name, label in (("positive", True), ("negative", False)):
        np.testing.assert_allclose(contents[name], np.stack(model[label]), rtol=1e-4, atol=1e-5)


def test_slots_past_the_end_of_the_episode_change_nothing(batches):
    learner, state, frozen = build_stub()
    other = [
        batch._replace(
            actions=np.where(batch.valid[..., None], batch.actions, 9.0).astype(np.float32),
            eos=np.where(batch.valid, batch.eos, 1.0).astype(np.float32),
        )
        for batch in batches[:3]
    ]
    chex.assert_trees_all_equal(run(learner, state, frozen, batches[:3]), run(learner, state, frozen, other))


def test_labels_do_not_reach_the_policy(batches):
    learner, state, frozen = build_stub()
    flipped = batches[0]._replace(eos=1 - batches[0].eos)
    chex.assert_trees_all_equal(*(predict(learner, state.trainable, frozen, batch) for batch in (batches[0], flipped)))


def without_key_biases(trainable):
    """A bias of the keys shifts all scores of a query alike: its gradient is rounding noise, which Adam blows up to full steps."""
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if "['qkv']['bias']" not in jax.tree_util.keystr(path)}


def run_on(devices, batches, learner, state, frozen):
    """(state, metrics) on the host after an update for each batch, split between this many devices."""
    parallel = DataParallel(learner, jax.devices()[:devices])
    state = parallel.replicate(jax.tree.map(jnp.copy, state))  # the step donates it
    for batch in batches:
        state, metrics = parallel.step(state, frozen, parallel.split(batch))
    return jax.device_get((state, metrics))


def assert_same_draws(one, many, one_metrics, many_metrics):
    """What is an integer, or computed of integers, is the same: rows in the rings, their ages, what was drawn of them."""
    rings = [(buffer.positive.replace(data=None), buffer.negative.replace(data=None)) for buffer in (one.buffer, many.buffer)]
    chex.assert_trees_all_equal(*rings)
    assert (one.buffer.adds, one.buffer.updates) == (many.buffer.adds, many.buffer.updates)
    for name in ("age_positive", "age_negative", "eos_updates", "action_count"):
        assert one_metrics.window[name] == many_metrics.window[name], name


# Where the parameters stand still, both runs compute the same sums in another order. A float32 sum of n numbers is off by n·6e-8 of their
# size at most; the tiny policies add up less than 1,000 numbers in a row. Moments of Adam are sums of gradients, and of their squares.
ROUNDING = 1e-4


@pytest.mark.parametrize(("devices", "kind"), [(4, "regression"), (2, "diffusion"), (2, "tokens")])
def test_devices_do_not_change_draws_rows_and_gradients(batches, devices, kind):
    learner, state, frozen = build(kind=kind, learning_rate=1e-30, eos_dropout=0.5)  # the head drops the same everywhere
    (one, one_metrics), (many, many_metrics) = (run_on(count, batches[:4], learner, state, frozen) for count in (1, devices))
    chex.assert_trees_all_close(one.trainable, many.trainable, jax.device_get(state.trainable), rtol=0, atol=1e-28)
    assert_same_draws(one, many, one_metrics, many_metrics)
    assert one.buffer.updates == 4
    contents = [learner.objective.buffer.contents(state.buffer) for state in (one, many)]
    chex.assert_trees_all_close(*contents, rtol=ROUNDING, atol=1e-5)
    alone, together = (without_key_biases(state.opt_state) for state in (one, many))
    for name, moment in alone.items():
        np.testing.assert_allclose(together[name], moment, rtol=0, atol=ROUNDING * np.abs(moment).max(), err_msg=name)
    chex.assert_trees_all_close(one_metrics, many_metrics, rtol=ROUNDING, atol=1e-6)


def test_devices_do_not_change_the_run(batches):
    """The stub has no gradient near 0, where Adam makes steps of rounding: parameters part by less than a thousandth of their way."""
    learner, start, frozen = build_stub()
    (one, one_metrics), (many, many_metrics) = (run_on(count, batches[:6], learner, start, frozen) for count in (1, 4))
    assert_same_draws(one, many, one_metrics, many_metrics)
    before, alone, together = (ravel_pytree(each.trainable)[0] for each in (start, one, many))
    assert np.linalg.norm(together - alone) < 1e-3 * np.linalg.norm(alone - before)


def test_micro_batches_add_up_to_the_whole_batch(batches):
    trained = []
    for micro_batches in (1, 4):
        learner, state, frozen = build_stub(grad_accumulation_steps=micro_batches, use_eos_classification=False)
        state, metrics = run(learner, state, frozen, batches[:5])
        trained.append((without_key_biases(state.trainable), metrics))
    chex.assert_trees_all_close(*trained, rtol=1e-3, atol=1e-4)


def test_every_micro_batch_enters_the_buffer_and_draws(batches):
    learner, state, frozen = build_stub(grad_accumulation_steps=4)
    state, metrics = run(learner, state, frozen, batches[:5])
    assert int(state.buffer.adds) == 20
    assert int(state.buffer.positive.seen) == sum(int(batch.eos.sum()) for batch in batches[:5])
    row = to_row(jax.device_get(metrics), lambda_eos=2.0, lambda_eos_policy=0.2, micro_batches=4)
    assert row["train/eos_updated"] == 1.0
    assert row["train/eos_updates"] <= 20


def test_adapters_learn_and_the_base_stays(batches):
    learner, state, frozen = build(lora_rank=4)
    trained, _ = run(learner, state, frozen, batches[:3])
    assert set(state.trainable) == {"lora", "proprio_projector", "action_head", "eos_head"}
    assert set(frozen) == {"vla"}
    for part in state.trainable:
        assert not all(
            np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(s.trainable[part]) for s in (state, trained)), strict=True)
        ), part


@pytest.mark.parametrize(("kind", "lora_rank"), [("diffusion", 0), ("tokens", 2), ("film", 2), ("frozen vision", 0), ("frozen vision", 2)])
def test_every_kind_of_policy_trains_all_that_is_its_own(batches, kind, lora_rank):
    learner, state, frozen = build(lora_rank=lora_rank, kind=kind)
    trained, metrics = run(learner, state, frozen, batches[:4])
    own = {"film": {"film"}, "diffusion": {"noisy_action_projector"}}.get(kind, set())
    parts = {"proprio_projector", "action_head", "eos_head", "lora" if lora_rank else "vla"} | own
    assert set(state.trainable) == (parts - {"action_head"} if kind == "tokens" else parts)
    assert set(frozen) == ({"vla"} if lora_rank else {"vision_backbone"} if kind == "frozen vision" else set())
    for part in state.trainable:
        assert metrics.last[f"{part}_grad_norm"] > 0, part
        changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.trainable[part], trained.trainable[part])
        assert any(jax.tree.leaves(changed)), part
    assert int(trained.buffer.updates) > 0
    assert ("vision_backbone" in state.trainable.get("lora", {})) == (lora_rank > 0 and kind != "frozen vision")


def test_one_trace_for_the_whole_run(batches):
    learner, state, frozen = build_stub()
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(lambda *arguments: train_step(learner, *arguments), n=1))
    for batch in batches:
        state, _ = step(state, frozen, batch)
    assert int(state.step) == len(batches)


def test_learners_of_equal_flags_share_their_compiled_step():
    one, same, other = (
        DataParallel(make_learner(dataclasses.replace(CONFIG, **flags), TINY, 0.3), jax.devices()[:2]).step
        for flags in ({}, {"seed": 1}, {"learning_rate": 0.5})
    )
    assert one is same
    assert one is not other


def test_the_window_sums_what_happened_since_the_log_line(batches):
    learner, state, frozen = build_stub()
    step = jitted_step(learner)
    losses_seen = []
    for number, batch in enumerate(batches[:7], start=1):
        state, metrics = step(state, frozen, batch)
        single = float(metrics.last["eos_loss"]) * float(metrics.last["eos_updates"])
        losses_seen = losses_seen[-((number - 1) % learner.log_freq) :] if (number - 1) % learner.log_freq else []
        losses_seen.append(single)
        assert int(metrics.window["steps"]) == len(losses_seen)
        np.testing.assert_allclose(metrics.window["eos_loss"], sum(losses_seen), rtol=1e-5)


def test_the_logged_learning_rate_is_that_of_the_update(batches):
    learner, state, frozen = build_stub(lr_warmup_steps=4, use_eos_classification=False)
    start, bias = 1e-4, state.trainable["action_head"]["bias"]  # a tenth of the peak; Adam's first update is of that size
    assert not np.any(bias)
    logged = []
    for batch in batches[:3]:
        state, metrics = jitted_step(learner)(state, frozen, batch)
        logged.append(float(metrics.last["learning_rate"]))
        if len(logged) == 1:
            np.testing.assert_allclose(np.abs(state.trainable["action_head"]["bias"]), start, rtol=1e-3)
    np.testing.assert_allclose(logged, [start, 3.25e-4, 5.5e-4], rtol=1e-5)


def test_predictions_ignore_rows_that_fill_the_batch(batches):
    learner, state, frozen = build_stub()
    batch = batches[0]
    valid = batch.valid.copy()
    valid[5:] = False
    full = predict(learner, state.trainable, frozen, batch._replace(valid=valid))
    part = predict(learner, state.trainable, frozen, jax.tree.map(lambda x: x[:5], batch))
    np.testing.assert_allclose(full.l1_sum, part.l1_sum, rtol=1e-5)
    assert full.l1_count == part.l1_count == jnp.sum(batch.valid[:5]) * TINY.action_dim
