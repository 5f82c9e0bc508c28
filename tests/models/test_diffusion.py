"""The diffusion policy: schedule and sampler against NumPy and torch, its parts against OpenVLA-OFT's, and its place in the text."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax import losses
from eosjax.models.diffusion import DDIM, embed_steps
from eosjax.models.heads import ActionHead
from eosjax.models.hf import weights
from eosjax.models.openvla import NoisyActions, OpenVLA

STEP = 10  # place of the diffusion-step token in the text of `inputs`, behind BOS, 8 patches and the proprio token
PLACEHOLDERS = slice(16, 20)
RNG = np.random.default_rng(0)
ACTIONS = RNG.uniform(-1, 1, (2, 3, 4)).astype(np.float32)
NOISE = RNG.standard_normal((2, 3, 4)).astype(np.float32)


def ddim_in_numpy(predict, noise, train_steps, steps):
    """Deterministic DDIM in float64, from the closed form of the schedule."""
    edges = np.cos((np.arange(train_steps + 1) / train_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    signal = edges[1:] / edges[0]
    signal[-1] = signal[-2] * 0.001 if train_steps > 1 else 0.001
    stride = train_steps // steps
    x, visited = noise.astype(np.float64), [i * stride for i in reversed(range(steps))]
    for t in visited:
        before = signal[t - stride] if t >= stride else 1.0
        eps = predict(x, t)
        clean = np.clip((x - np.sqrt(1 - signal[t]) * eps) / np.sqrt(signal[t]), -1, 1)
        x = np.sqrt(before) * clean + np.sqrt(1 - before) * eps
    return x


@pytest.mark.parametrize(("train_steps", "steps"), [(50, None), (50, 10), (50, 7), (20, 20), (50, 1)])
def test_sampler_against_numpy(train_steps, steps):
    def predict(x, t):
        return 0.6 * x + 0.01 * t - 0.1

    actions, last = DDIM(train_steps).sample(lambda x, t: (predict(x, t[:, None, None]), t), NOISE, steps)
    np.testing.assert_allclose(actions, ddim_in_numpy(predict, NOISE, train_steps, steps or train_steps), atol=2e-5)
    np.testing.assert_array_equal(last, [0, 0])


def test_perfect_knowledge_of_the_noise_gives_the_actions_back():
    ddim = DDIM()

    def oracle(noisy, steps):
        signal = jnp.asarray(ddim.signal)[steps][:, None, None]
        return (noisy - jnp.sqrt(signal) * ACTIONS) / jnp.sqrt(1 - signal), None

    np.testing.assert_allclose(ddim.sample(oracle, NOISE)[0], ACTIONS, atol=1e-5)
    np.testing.assert_allclose(oracle(ddim.add_noise(ACTIONS, NOISE, jnp.array([0, 40])), jnp.array([0, 40]))[0], NOISE, atol=1e-4)


def test_draws_cover_the_schedule_and_are_standard_normal():
    actions = jnp.zeros((4000, 1, 2))
    noisy, steps, noise = DDIM(5).draw(jax.random.key(0), actions)
    np.testing.assert_allclose(np.bincount(steps, minlength=5) / 4000, [0.2] * 5, atol=0.03)
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.03
    chex.assert_trees_all_equal(noisy, DDIM(5).add_noise(actions, noise, steps))
    assert abs(np.corrcoef(steps, noise[:, 0, 0])[0, 1]) < 0.05


def test_embedding_of_a_step_against_numpy():
    frequencies = 10_000.0 ** (-np.arange(3) / 2)
    angles = np.array([[0.0], [7.0], [49.0]]) * frequencies
    np.testing.assert_allclose(embed_steps(jnp.array([0, 7, 49]), 6), np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=2e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DDIM(0), "train_steps"),
        (lambda: DDIM().sample(lambda x, t: (x, t), NOISE, 51), "steps: expected 1 to 50"),
        (lambda: embed_steps(jnp.zeros(1), 5), "width: expected an even"),
    ],
)
def test_refuses_impossible_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def policy(tiny, inputs, draw):
    """A diffusion policy, its variables, and noisy actions for `inputs`."""
    model = OpenVLA(dataclasses.replace(tiny, diffusion=True))
    noisy = NoisyActions(RNG.standard_normal((2, 2, 2)).astype(np.float32), np.array([3, 49]))
    return model, draw(model, inputs), noisy


@pytest.fixture(scope="module")
def run(policy, inputs):
    """Function of noisy actions: (embeddings, mask, hidden states, hidden states of `act` on what was observed)."""
    model, variables, _ = policy

    @jax.jit
    def compiled(noisy):
        embeds, mask = model.apply(variables, *inputs, noisy, method="embed")
        observed = model.apply(variables, *inputs, method="observe")
        again = model.apply(variables, observed, *inputs[1:3], noisy, method="act")
        return embeds, mask, model.apply(variables, *inputs, noisy), again

    return lambda noisy: jax.device_get(compiled(noisy))


def test_noisy_actions_and_their_step_stand_in_the_text(tiny, inputs, policy, run):
    _, variables, noisy = policy
    embeds, mask, hidden, again = run(noisy)
    chex.assert_shape([embeds, hidden], [(2, 21, 16), (2, 2, 2, 16)])
    base = {name: tree for name, tree in variables["params"].items() if name != "noisy_action_projector"}
    plain, plain_mask = OpenVLA(tiny).apply({"params": base}, *inputs, method="embed")
    text = np.delete(embeds, STEP, axis=1)
    np.testing.assert_allclose(np.delete(text, np.r_[15:19], axis=1), np.delete(plain, np.r_[15:19], axis=1), atol=1e-5)
    np.testing.assert_array_equal(np.delete(mask, STEP, axis=1), plain_mask)
    assert mask[:, STEP].all()
    np.testing.assert_allclose(embeds[:, STEP], embed_steps(noisy.steps, 16), atol=1e-6)
    np.testing.assert_allclose(hidden, again, atol=1e-5)


def test_each_noisy_number_stands_at_its_own_placeholder(policy, run):
    _, _, noisy = policy
    embeds, _, hidden, _ = run(noisy)
    actions = noisy.actions.copy()
    actions[1, 1, 0] += 1  # the third number of the second row
    other, _, other_hidden, _ = run(noisy._replace(actions=actions))
    changed = np.abs(other - embeds).max(-1) > 1e-6
    assert np.argwhere(changed).tolist() == [[1, PLACEHOLDERS.start + 2]]
    assert (np.abs(other_hidden - hidden)[1].max(-1) > 1e-4).all()
    np.testing.assert_allclose(other_hidden[0], hidden[0], atol=1e-6)


def test_noisy_actions_are_refused_where_they_do_not_belong(tiny, inputs, policy):
    model, variables, noisy = policy

    def shapes(model, *arguments):
        return jax.eval_shape(model.apply, variables, *inputs, *arguments)

    with pytest.raises(ValueError, match="noisy: expected NoisyActions"):
        shapes(model)
    with pytest.raises(ValueError, match="noisy: expected None"):
        shapes(OpenVLA(tiny), noisy)
    with pytest.raises(ValueError, match=r"noisy: expected actions \[b \(2, 2\)\]"):
        shapes(model, noisy._replace(actions=noisy.actions[:, :1]))


def test_projector_and_head_round_trip(policy):
    _, variables, _ = policy
    projector = variables["params"]["noisy_action_projector"]
    head = head_params()
    for part, params in (("noisy_action_projector", projector), ("diffusion_action_head", head)):
        chex.assert_trees_all_equal(weights.import_part(part, weights.export_part(part, params)), params)
    names = set(weights.export_part("diffusion_action_head", head))
    assert "noise_predictor.mlp_resnet.mlp_resnet_blocks.1.ffn.0.weight" in names
    assert len(names) == 16


def head_params():
    shapes = jax.eval_shape(ActionHead(6, action_dim=4).init, jax.random.key(0), jnp.ones((4, 5)))["params"]
    return jax.tree.map(lambda leaf: np.random.default_rng(1).standard_normal(leaf.shape).astype(np.float32), shapes)


def torch_module(torch, part, params):
    """The module that a part's tensors belong to, with them in it."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    class ResNet(nn.Module):
        def __init__(self, inputs, width, outputs):
            super().__init__()
            self.layer_norm1, self.fc1 = nn.LayerNorm(inputs), nn.Linear(inputs, width)
            self.mlp_resnet_blocks = nn.ModuleList([Block(width), Block(width)])
            self.layer_norm2, self.fc2 = nn.LayerNorm(width), nn.Linear(width, outputs)

        def forward(self, x):
            x = self.fc1(self.layer_norm1(x)).relu()
            for block in self.mlp_resnet_blocks:
                x = x + block.ffn(x)
            return self.fc2(self.layer_norm2(x))

    class Projector(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(1, width), nn.Linear(width, width)

        def forward(self, x):
            return self.fc2(nn.functional.gelu(self.fc1(x)))

    tensors = {name: torch.tensor(array) for name, array in weights.export_part(part, params).items()}
    if part == "noisy_action_projector":
        module = Projector(len(tensors["fc2.bias"]))
    else:
        module = ResNet(20, 6, 4)
        tensors = {name.removeprefix("noise_predictor.mlp_resnet."): tensor for name, tensor in tensors.items()}
    module.load_state_dict(tensors)
    return module


def torch_schedule(torch):
    """diffusers' cumulated alphas of a `squaredcos_cap_v2` schedule of 50 steps."""

    def remaining(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = torch.tensor([min(1 - remaining((i + 1) / 50) / remaining(i / 50), 0.999) for i in range(50)])
    return torch.cumprod(1.0 - betas, dim=0)


def test_loss_is_that_of_the_original():
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    signal, steps = torch_schedule(torch), np.array([1, 49])
    np.testing.assert_allclose(DDIM().signal, signal, rtol=1e-6)
    a, actions, noise = signal[torch.tensor(steps)].reshape(2, 1, 1), torch.from_numpy(ACTIONS), torch.from_numpy(NOISE)
    noisy = a**0.5 * actions + (1 - a) ** 0.5 * noise
    np.testing.assert_allclose(DDIM().add_noise(ACTIONS, NOISE, steps), noisy, atol=1e-6)

    hidden = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    params = head_params()
    with torch.no_grad():
        predicted = torch_module(torch, "diffusion_action_head", params)(torch.from_numpy(hidden).reshape(2, 3, 20))
    ours = ActionHead(6, action_dim=4).apply({"params": params}, hidden)
    np.testing.assert_allclose(ours, predicted, atol=2e-5)
    total, count = losses.masked_mse(ours, NOISE, np.ones((2, 3), bool))
    np.testing.assert_allclose(total / count, torch.nn.functional.mse_loss(predicted, noise), rtol=1e-5)


def test_what_the_text_shows_of_the_actions_is_that_of_the_original(policy, run):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    _, variables, noisy = policy
    embeds = run(noisy)[0]
    exponent = torch.arange(8) * -math.log(10000) / 7
    angles = torch.tensor(noisy.steps)[:, None] * torch.exp(exponent)[None]
    np.testing.assert_allclose(embeds[:, STEP], torch.cat([angles.sin(), angles.cos()], dim=-1), atol=5e-6)
    projector = torch_module(torch, "noisy_action_projector", variables["params"]["noisy_action_projector"])
    with torch.no_grad():
        tokens = projector(torch.from_numpy(noisy.actions).reshape(2, -1).unsqueeze(-1))
    np.testing.assert_allclose(embeds[:, PLACEHOLDERS], tokens, atol=1e-5)


def test_sampling_is_that_of_the_original():
    """50 steps of a head whose hidden states are a fixed function of what it is shown."""
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `parity`)")
    params, mixing = head_params(), RNG.standard_normal((4, 20)).astype(np.float32)
    module, signal = torch_module(torch, "diffusion_action_head", params), torch_schedule(torch)
    x = torch.from_numpy(NOISE)
    with torch.no_grad():
        for t in reversed(range(50)):
            eps = module(torch.sin(x @ torch.from_numpy(mixing) + t / 50))
            before = signal[t - 1] if t else torch.tensor(1.0)
            clean = ((x - (1 - signal[t]) ** 0.5 * eps) / signal[t] ** 0.5).clamp(-1, 1)
            x = before**0.5 * clean + (1 - before) ** 0.5 * eps

    def predict(noisy, steps):
        hidden = jnp.sin(noisy @ mixing + steps[:, None, None] / 50).reshape(2, 3, 4, 5)
        return ActionHead(6, action_dim=4).apply({"params": params}, hidden), None

    np.testing.assert_allclose(DDIM().sample(predict, NOISE)[0], x, atol=1e-4)
