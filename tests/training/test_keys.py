"""All random numbers of training are independent: how every key is used, observed while real updates run."""

import collections
import dataclasses
import functools

import jax
import numpy as np

from eosjax.training import keys
from eosjax.training.parallel import DataParallel
from eosjax.training.state import init_state, make_learner
from eosjax.training.step import train_step
from tests.training.conftest import CONFIG, KINDS, build, random_batch

STEPS, MICRO_BATCHES, SAMPLES = 3, 2, 3
DRAWS = ("bernoulli", "choice", "normal", "permutation", "randint", "uniform")
FLAGS = {"eos_dropout": 0.5, "eos_age_match": True, "grad_accumulation_steps": MICRO_BATCHES}


def with_adapter_dropout(**flags):
    """(learner, state, frozen) of a diffusion policy with dropout before its adapters, whose B is not zero."""
    _, state, frozen = build(lora_rank=2, kind="diffusion")
    learner = make_learner(dataclasses.replace(CONFIG, **flags), dataclasses.replace(KINDS["diffusion"], lora_rank=2, lora_dropout=0.5))
    rng = np.random.default_rng(0)
    trainable = {**state.trainable, "lora": jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), state.trainable["lora"])}
    return learner, init_state(learner, trainable, keys.run_keys(0)[1]), frozen


def repeated(entries):
    return {entry: times for entry, times in collections.Counter(entries).items() if times > 1}


class Spy:
    """What becomes of every key that `jax.random` is given: all as bytes, one entry a use."""

    def __init__(self):
        self.drawn = collections.defaultdict(list)  # by function
        self.derived_from, self.split, self.folded = [], [], []

    def on_draw(self, name, original):
        @functools.wraps(original)
        def draw(key, *args, **kwargs):
            jax.debug.callback(lambda data: self.drawn[name].append(data.tobytes()), jax.random.key_data(key))
            return original(key, *args, **kwargs)

        return draw

    def on_derive(self, made, original):
        def record(key, keys):
            self.derived_from.append(key.tobytes())
            made.extend(each.tobytes() for each in keys)

        @functools.wraps(original)
        def derive(key, *args, **kwargs):
            keys = original(key, *args, **kwargs)
            jax.debug.callback(record, jax.random.key_data(key), jax.random.key_data(keys).reshape(-1, 2))
            return keys

        return derive


def test_every_random_number_of_an_update_has_a_key_of_its_own(monkeypatch):
    """No key is drawn from twice, none that is drawn from has others made of it, and none comes out of both `split` and `fold_in`."""
    learner, state, frozen = with_adapter_dropout(**FLAGS)
    spy = Spy()
    for name in DRAWS:
        monkeypatch.setattr(jax.random, name, spy.on_draw(name, getattr(jax.random, name)))
    for name, made in (("split", spy.split), ("fold_in", spy.folded)):
        monkeypatch.setattr(jax.random, name, spy.on_derive(made, getattr(jax.random, name)))
    step = jax.jit(functools.partial(train_step, learner))
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        state, _ = step(state, frozen, random_batch(rng, MICRO_BATCHES * SAMPLES))
    jax.effects_barrier()

    drawn = [key for each in spy.drawn.values() for key in each]
    assert repeated(drawn) == {}
    assert set(drawn).isdisjoint(spy.derived_from)
    assert set(spy.split).isdisjoint(spy.folded)

    passes = STEPS * MICRO_BATCHES
    times = {name: len(each) for name, each in spy.drawn.items()}
    assert times["normal"] == times["randint"] == passes * SAMPLES  # noise, and its level, of each sample
    assert times["uniform"] == times["permutation"] == passes  # intake, order of the draw
    assert times["choice"] == 2 * passes  # positives, negatives
    assert times["bernoulli"] > 2 * passes  # two layers of the head, and the adapters


def test_a_run_its_initial_weights_and_its_evaluation_share_no_key():
    """For the seed 0, too, from whose key that of the evaluation comes."""
    samples = np.arange(6, dtype=np.int32)
    init, run = keys.run_keys(0)
    steps = [keys.step_keys(run, step, MICRO_BATCHES) for step in range(STEPS)]
    noise = [keys.sample_keys(key, samples) for step in steps for key in step.noise]
    every = [jax.random.key(0), init, run, *jax.random.split(init, 3), *keys.evaluation_keys(samples)]
    every += [key for step in steps for use in step for key in use] + [key for each in noise for key in each]
    data = [jax.random.key_data(key).tobytes() for key in every]
    assert len(set(data)) == len(data)


def test_every_device_has_its_own_adapter_dropout():
    """Both devices see the same samples, whose hidden states differ by the dropout alone."""
    learner, state, frozen = with_adapter_dropout(eos_buffer_capacity=100)
    half = random_batch(np.random.default_rng(1), SAMPLES)
    batch = jax.tree.map(lambda x: np.concatenate([x, x]), half)
    parallel = DataParallel(learner, jax.devices()[:2])
    state, _ = parallel.step(parallel.replicate(state), frozen, parallel.split(batch))
    rows = learner.objective.buffer.contents(jax.device_get(state.buffer))["negative"]
    first, second = np.split(rows, 2)
    assert len(first) > SAMPLES
    assert not np.isclose(first, second).all(axis=(1, 2)).any()
