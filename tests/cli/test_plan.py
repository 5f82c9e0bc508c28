import functools
import json
import re

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from eosjax.cli import plan
from eosjax.config import TrainConfig
from eosjax.data.samples.tokens import demo_tokenizer
from eosjax.data.specs import DatasetSpec
from eosjax.models.hf.config import PUBLISHED
from eosjax.models.parts import init_params, split_params
from eosjax.training.plan import (
    Memory,
    Step,
    abstract_batch,
    choose_remat,
    count,
    count_flops,
    largest_batch,
    measure,
    size_in_bytes,
    trace_step,
)
from eosjax.training.state import init_state, make_learner
from eosjax.training.traffic import Traffic
from eosjax.types import UserError
from tests.checkpoints import HEADS, write_checkpoint
from tests.training.conftest import CONFIG, TINY

# The number of parameters on the model's page, and those in it that are never run: output projection, last block and final norm of
# both encoders, and SigLIP's pooling.
OPENVLA_7B, NOT_RUN = 7_541_237_184, 131_334_144 + 12_598_272 + 2_048 + 15_239_376 + 2_304 + 15_238_480


def traced(function, *shapes):
    return Step(None, None, None, jax.jit(function).trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


def layers(x, weights):
    """Five layers [4 8] -> [4 8]."""

    def layer(x, weight):
        return jnp.tanh(x @ weight), None

    return lax.scan(jax.checkpoint(layer), x, weights)[0].sum()


def test_flops_of_loops_and_of_what_is_recomputed():
    product = 2 * 4 * 8 * 8
    assert count_flops(traced(lambda x, w: x @ w, (4, 8), (8, 8))) == product
    assert count_flops(traced(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (3, 4, 8), (3, 8, 8))) == 3 * product
    assert count_flops(traced(layers, (4, 8), (5, 8, 8))) == 5 * product
    # forward, recomputed, and one product for the gradient of x or two for that of the weights as well
    assert count_flops(traced(jax.grad(layers), (4, 8), (5, 8, 8))) == 5 * product * 3
    assert count_flops(traced(jax.grad(layers, argnums=(0, 1)), (4, 8), (5, 8, 8))) == 5 * product * 4
    branches = traced(lambda x, w: lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w), (4, 8), (8, 8))
    assert count_flops(branches) == 2 * product


@pytest.fixture(scope="module")
def step():
    """The step of the tiny learner, traced for 3 samples."""
    return trace_step(CONFIG, TINY, 18, 3)


def test_memory_has_everything_that_the_step_is_given(step, monkeypatch):
    analyses, analyse = [], jax.stages.Compiled.memory_analysis
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: analyses.append(analyse(self)) or analyses[0])
    memory = measure(step)
    scalars = 512  # step, key, sums of the metrics
    assert 0 <= analyses[0].argument_size_in_bytes - (memory.peak - memory.temporaries) < scalars
    assert memory.temporaries == analyses[0].temp_size_in_bytes > memory.trained  # the gradients, at the least


def test_sizes_are_those_of_real_arrays(step):
    learner = make_learner(CONFIG, TINY)
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), step.batch)
    trainable, frozen = split_params(init_params(learner.policy, learner.eos_head, batch, jax.random.key(0)))
    state = init_state(learner, trainable, jax.random.key(0))
    for real, shapes in ((state, step.state), (frozen, step.frozen), (batch, step.batch)):
        found = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes)]
        assert found == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(real)]
    assert size_in_bytes(state.trainable) == sum(leaf.nbytes for leaf in jax.tree.leaves(trainable))
    assert size_in_bytes(jax.random.key(0)) == 8


def test_accumulation_takes_its_samples_at_once():
    config = TrainConfig(grad_accumulation_steps=3)
    assert {len(leaf.shape) and leaf.shape[0] for leaf in abstract_batch(config, TINY, 18, 4)} == {12}


def test_largest_batch_lies_on_the_line():
    def memory(batch):
        return Memory(100, 20, 40, 5, 1 * batch, 30 + 9 * batch)

    few, many = (2, memory(2)), (8, memory(8))
    assert largest_batch(few, many, memory(5).peak) == 5
    assert largest_batch(few, many, memory(5).peak - 1) == 4
    assert largest_batch(few, many, memory(100).peak) == 100
    assert largest_batch(few, many, 150) == 0


def test_openvla_7b_is_known_without_weights_and_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    vla_config, source = plan.policy_shape(TrainConfig(), DatasetSpec())
    assert "as published" in source
    assert vla_config.param_dtype == "bfloat16"
    learner = make_learner(TrainConfig(), vla_config)
    batch = abstract_batch(TrainConfig(), vla_config, 99, 1)
    params = jax.eval_shape(lambda batch, key: init_params(learner.policy, learner.eos_head, batch, key), batch, jax.random.key(0))
    assert count(params["vla"]) == OPENVLA_7B - NOT_RUN


def test_shape_from_a_checkpoint_or_from_config_json_alone(tmp_path):
    write_checkpoint(tmp_path / "base")
    config = TrainConfig(vla_path=str(tmp_path / "base"), vision_heads=HEADS)
    measured, source = plan.policy_shape(config, DatasetSpec())
    assert source == "shapes from its tensors"
    content = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(content | {"image_sizes": [28, 28]}))
    published, source = plan.policy_shape(TrainConfig(vla_path=str(tmp_path / "bare")), DatasetSpec())
    assert source == "shapes from its config.json"
    assert published.llama == measured.llama
    assert (published.dino.width, published.dino.image_size) == (1024, 28)


def test_config_json_from_the_hub(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["openvla/openvla-7b"] | {"text_config": {"vocab_size": 99_008}}))
    asked = []

    def download(name, file, *, revision):
        asked.append((name, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for name, revision in (("somebody/policy", None), ("openvla/openvla-7b", "v1")):
        vla_config, source = plan.policy_shape(TrainConfig(vla_path=name, vla_revision=revision), DatasetSpec())
        assert (vla_config.llama.vocab_size, source) == (99_008, "shapes from its config.json on the hub")
    assert asked == [("somebody/policy", None), ("openvla/openvla-7b", "v1")]
    with pytest.raises(UserError, match="only the hub has revisions"):
        plan.policy_shape(TrainConfig(vla_path=str(tmp_path), vla_revision="v1"), DatasetSpec())

    def unreachable(name, file, **_):
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(UserError, match=r"somebody/policy: no such folder, and no config.json from the hub \(no network\)"):
        plan.policy_shape(TrainConfig(vla_path="somebody/policy"), DatasetSpec())


def test_the_command(run, monkeypatch):
    monkeypatch.setattr("eosjax.cli.COMMANDS", {"plan": "…"})
    asked = []

    @functools.cache
    def traced(*args):
        asked.append(args)
        return trace_step(*args)

    def made_up(step):
        rows = len(step.batch.key)
        return Memory(1_000_000_000, 200_000_000, 400_000_000, 0, rows * 1_000_000, 300_000_000 + rows * 99_000_000)

    monkeypatch.setattr("eosjax.training.plan.USABLE", 1.0)
    monkeypatch.setattr("eosjax.training.plan.trace_step", traced)
    monkeypatch.setattr("eosjax.training.plan.measure", made_up)
    flags = ["--vla_path", "demo", "--use_lora=False", "--batch-size", 2, "--use_proprio", "--num_images_in_input", 2, "--remat", "dots"]
    status, out, err = run("plan", "--memory_gb", "4.05", "--mfu", "50", *flags)
    assert (status, err) == (0, "")
    config, vla_config, text_length, _ = asked[1]
    assert (vla_config.attention, vla_config.remat) == ("xla", "dots")
    assert (config.use_proprio, config.use_lora, vla_config.proprio_dim, text_length) == (True, False, 8, 42 + 56 + 3)
    assert [args[-1] for args in asked] == [2, 2, 16]
    numbers = [int(found.replace(",", "")) for found in re.findall(r"^\w[\w ]*?  +([\d,]+)  +\d\.\d{3}  trained, float32$", out, re.M)]
    assert len(numbers) == 6
    assert sum(numbers) == int(re.search(r"^all +([\d,]+)", out, re.M)[1].replace(",", ""))
    assert re.search(r"^GB on a device, at --batch_size +2 +16$", out, re.M)
    assert re.search(r"^activations, gradients +0\.498 +1\.884$", out, re.M)
    assert re.search(r"^peak +2\.100 +3\.500$", out, re.M)
    assert re.search(r"^dots +1\.\d\d +2\.100 +21$", out, re.M)
    flops = float(re.search(r"^a sample: ([\d.e-]+) TFLOP", out, re.M)[1])
    assert float(re.search(r"^H100 SXM +([\d.e+]+)$", out, re.M)[1]) == pytest.approx(0.5 * 989 / flops, rel=0.01)
    assert "--remat dots: dots, in 4.05 GB" in out
    assert "--remat auto: dots, in 80 GB" in run("plan", *flags[:-2])[1]  # none fits, too, and is slower
    assert "assumed: prompts of up to 42 tokens" in out
    assert re.search(r"^dots +1\.\d\d +2\.100 +none$", run("plan", "--memory_gb", "1.9", *flags)[1], re.M)
    assert "assumed: prompts of up to 40 tokens" in run("plan", "--rephrase", "False", *flags)[1]


def test_what_several_devices_move_and_how_fast_they_are(run, monkeypatch):
    monkeypatch.setattr("eosjax.cli.COMMANDS", {"plan": "…"})
    monkeypatch.setattr("eosjax.training.plan.measure", lambda step: Memory(0, 0, 0, 0, 0, len(step.batch.key)))
    monkeypatch.setattr("eosjax.cli.plan.count_traffic", lambda config, *_: Traffic(3_000_000_000, 1_000_000_000, 0))
    monkeypatch.setattr("eosjax.training.plan.count_flops", lambda step: 10**12 * len(step.batch.key))
    flags = ["plan", "--vla_path", "demo", "--use_lora=False", "--remat", "dots", "--batch_size", 4, "--num_devices", 4]
    status, out, _ = run(*flags)
    assert status == 0
    assert re.search(r"^a device sends and receives, 4 devices +GB an update\ngradients +3.000\nfrozen layers +1.000$", out, re.M)
    alone = 0.4 * 989
    assert re.search(rf"^H100 SXM +396 +{16 / (4 / alone + 4 / 20):.3g} +5%$", out, re.M)
    assert "20 GB/s each way, 0.20 s an update" in out
    assert "4 devices of 2 processes" in run(*flags, "--num_processes", 2)[1]
    assert "8 GB/s each way, 0.50 s an update" in run(*flags, "--num_processes", 2, "--network_gb_s", 8)[1]
    assert "16 GB/s each way" in run(*flags, "--link_gb_s", 16)[1]


def test_remat_is_the_fastest_that_fits(monkeypatch):
    peaks = {"dots": 50, "full": 20}
    monkeypatch.setattr("eosjax.training.plan.trace_step", lambda config, vla_config, length, size: vla_config)
    monkeypatch.setattr("eosjax.training.plan.measure", lambda step: Memory(peaks[step.remat] * 10**9, 0, 0, 0, 0, 0))
    chosen = {gb: choose_remat(TrainConfig(), TINY, 18, gb * 10**9) for gb in (60, 40)}
    assert chosen[60] == ("dots", "--remat auto: dots (dots takes 50.0 GB of 60.0 GB)")
    assert chosen[40] == ("full", "--remat auto: full (dots takes 50.0 GB of 40.0 GB)")
    assert choose_remat(TrainConfig(), TINY, 18, None) == ("none", None)


def test_the_room_that_is_planned_for_rewording_is_enough():
    plain, reworded = (demo_tokenizer().required_length(["pick up the bowl"], 0, rephrase) for rephrase in (False, True))
    assert 0 < reworded - plain <= plan.REWORDING_TOKENS


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mfu", "0"], "--mfu: expected more than 0, up to 100 %, got 0.0"),
        (["--memory_gb", "0"], "--memory_gb: expected more than 0, got 0.0"),
        (["--batch_size", "0"], "--batch_size must be greater than 0, got 0"),
        (["--link_gb_s", "0"], "--link_gb_s: expected more than 0, got 0.0"),
        (["--num_devices", "3", "--num_processes", "2"], "--num_devices 3: expected a multiple of the number of processes, 2"),
        (["--shard_frozen"], "--shard_frozen True: give --num_devices"),
        (["--vla_path", "nothing"], "--vla_path nothing: no such folder, and no name of the form owner/name"),
        (["--vla_pat", "demo"], "unrecognized arguments: --vla_pat"),
        (["--dataset_name", "nothing"], "no description of dataset 'nothing'"),
    ],
)
def test_what_the_command_refuses(refused, monkeypatch, flags, message):
    monkeypatch.setattr("eosjax.cli.COMMANDS", {"plan": "…"})
    assert message in refused("plan", *flags)
