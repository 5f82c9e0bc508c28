"""Low-rank branches against PEFT: the same tensors in its layout, the same outputs, in both directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.models.hf import weights
from eosjax.models.hf.adapter import export_adapter, import_adapter, target_modules
from eosjax.models.hf.adapter_config import AdapterConfig
from eosjax.models.lora import LinearConfig, LoRADense
from eosjax.models.openvla import OpenVLA
from tests.parity.conftest import FORWARD, POLICY, QUICK, check_forward, check_gradients, random_params

torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
peft = pytest.importorskip("peft", reason="peft is not installed (extra `parity`)")
pytest.importorskip("transformers", reason="transformers is not installed (extra `parity`)")

from benchmarks.torch_policy import TorchOpenVLA, load  # noqa: E402

SETTINGS = AdapterConfig.from_json({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ".*"})


def randomise(model, rng):
    """Fills the branches of a PEFT model; a fresh one changes nothing."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.tensor(0.2 * rng.standard_normal(parameter.shape), dtype=torch.float32)


@pytest.mark.parametrize(("rank", "rank_stabilised"), [(4, False), (32, True)])
def test_a_linear_layer(rank, rank_stabilised, rng):
    linear = torch.nn.Sequential(torch.nn.Linear(6, 5))
    settings = peft.LoraConfig(r=rank, lora_alpha=7, use_rslora=rank_stabilised, target_modules=["0"])
    model = peft.get_peft_model(linear, settings)
    scaling = AdapterConfig.from_json(settings.to_dict() | {"peft_type": "LORA", "target_modules": ["0"]}).scaling
    randomise(model, rng)
    branch = {name: array.numpy() for name, array in peft.get_peft_model_state_dict(model).items()}
    x = rng.standard_normal((3, 6)).astype(np.float32)
    base = linear[0].base_layer
    variables = {
        "params": {"kernel": base.weight.detach().numpy().T, "bias": base.bias.detach().numpy()},
        "lora": {"a": branch["base_model.model.0.lora_A.weight"].T, "b": branch["base_model.model.0.lora_B.weight"].T},
    }
    theirs = model(torch.tensor(x))
    check_forward(LoRADense(5, LinearConfig(lora_rank=rank, lora_scaling=scaling)).apply(variables, x), theirs)
    plain = LoRADense(5, LinearConfig()).apply({"params": variables["params"]}, x)
    assert np.abs(plain - theirs.detach().numpy()).max() > 1000 * FORWARD


@pytest.fixture
def config():
    return dataclasses.replace(POLICY, lora_rank=4, llama=dataclasses.replace(POLICY.llama, kv_heads=2))


@pytest.fixture
def inputs(config, rng):
    size = config.dino.image_size
    images = rng.integers(0, 256, (2, 2, size, size, 3), dtype=np.uint8)
    return images, rng.integers(0, 40, (2, 5 + config.action_tokens), dtype=np.int32)


@pytest.fixture
def model(config, rng):
    """(our base weights, the torch policy on the same ones with random branches)."""
    params = random_params(config)
    policy = TorchOpenVLA(config)
    lm_head = np.zeros((config.llama.vocab_size, config.llama.width), np.float32)
    assert not load(policy, dict(weights.export_weights(params, config)) | {"language_model.lm_head.weight": lm_head})
    settings = peft.LoraConfig(r=4, lora_alpha=4, target_modules=target_modules(config), lora_dropout=0.0)
    model = peft.get_peft_model(policy, settings)
    randomise(model, rng)
    return params, model


def forward(config, params, lora, images, ids):
    nothing = np.zeros((len(ids), 0), np.float32)
    return OpenVLA(config).apply({"params": params, "lora": lora}, images, ids, np.ones(ids.shape, bool), nothing)


run = jax.jit(forward, static_argnums=0, compiler_options=QUICK)


def run_torch(model, images, ids):
    return model(torch.tensor(images), torch.tensor(ids).long())


def adapter(model):
    return {name: array.detach().numpy() for name, array in peft.get_peft_model_state_dict(model).items()}


def test_an_adapter_of_peft(config, model, inputs):
    params, model = model
    lora = import_adapter(adapter(model), config, SETTINGS).lora
    check_forward(run(config, params, lora, *inputs), run_torch(model, *inputs))
    without = run(config, params, jax.tree.map(jnp.zeros_like, lora), *inputs)
    with model.disable_adapter():
        check_forward(without, run_torch(model, *inputs))
    assert np.abs(without - run(config, params, lora, *inputs)).max() > 1000 * FORWARD


def test_an_adapter_for_peft(config, model, inputs, rng):
    params, model = model
    lora = jax.tree.map(lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), weights.abstract_variables(config)["lora"])
    tensors = {name: torch.tensor(array) for name, array in export_adapter(lora, config)}
    assert tensors.keys() == adapter(model).keys()
    assert not peft.set_peft_model_state_dict(model, tensors).unexpected_keys
    check_forward(run(config, params, lora, *inputs), run_torch(model, *inputs))


def test_gradients(config, model, inputs):
    params, model = model
    lora = import_adapter(adapter(model), config, SETTINGS).lora
    run_torch(model, *inputs).sin().sum().backward()
    theirs = {name.replace(".default.", "."): leaf.grad.numpy() for name, leaf in model.named_parameters() if leaf.requires_grad}
    gradient = jax.jit(jax.grad(lambda lora: jnp.sin(forward(config, params, lora, *inputs)).sum()), compiler_options=QUICK)
    check_gradients(dict(export_adapter(gradient(lora), config)), theirs)
