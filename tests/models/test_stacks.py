import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.models.lora import LinearConfig, LoRADense
from eosjax.models.stacks import REMAT, put_together, stack_layers, take_apart, unrolls
from tests.models.test_lora import X, randomised


class Residual(nn.Module):
    """A layer with one LoRA-able projection, in the form `stack_layers` scans."""

    linear: LinearConfig

    @nn.compact
    def __call__(self, x, deterministic, shift):
        return x + jnp.tanh(LoRADense(x.shape[-1], self.linear, name="fc")(x, deterministic) + shift), None


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", REMAT)
def test_stack_equals_a_loop_over_its_layers(remat, unroll):
    linear, shift = LinearConfig(lora_rank=2), 0.1
    stack = stack_layers(Residual, 3, remat, unroll)(linear)
    fresh = stack.init(jax.random.key(0), X, True, shift)
    for kind, leaf in (("params", "kernel"), ("lora", "a")):
        layers = fresh[kind]["fc"][leaf]
        assert len(layers) == 3
        assert not np.allclose(layers[0], layers[1])
    variables = randomised(fresh)

    @jax.jit
    def stacked(variables):
        return stack.apply(variables, X, True, shift)[0]

    @jax.jit
    def looped(variables):
        x = X
        for i in range(3):
            x, _ = Residual(linear).apply(jax.tree.map(lambda leaf, i=i: leaf[i], variables), x, True, shift)
        return x

    chex.assert_trees_all_close(stacked(variables), looped(variables), rtol=1e-5)
    gradients = (jax.jit(jax.grad(lambda v, f=f: jnp.sum(f(v) ** 2)))(variables) for f in (stacked, looped))
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unroll", [False, True])
def test_dropout_in_a_stack_with_remat_follows_its_key(unroll):
    stack = stack_layers(Residual, 2, "full", unroll)(LinearConfig(lora_rank=2, lora_dropout=0.5))
    variables = randomised(jax.eval_shape(lambda: stack.init(jax.random.key(0), X, True, 0.0)))
    run = jax.jit(lambda seed: stack.apply(variables, X, False, 0.0, rngs={"dropout": jax.random.key(seed)}))
    first, again, other = (run(seed)[0] for seed in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    assert not np.allclose(first, other)


def test_weights_of_unrolled_layers_are_never_put_together_for_real():
    """The compiled gradient, in a loop over micro-batches as in training, has no array of the weights of all layers."""
    stack = stack_layers(Residual, 3, "dots", True)(LinearConfig())
    whole = {"layers": randomised(stack.init(jax.random.key(0), X, True, 0.0)["params"])}
    micro_batches = jnp.stack([X, 2 * X])

    def gradient(x, weights):
        def of_one(x):
            return jnp.sum(stack.apply({"params": put_together(weights)["layers"]}, x, True, 0.0)[0] ** 2)

        return jax.lax.map(jax.grad(of_one), x)

    compiled = {name: jax.jit(gradient).lower(micro_batches, weights).compile() for name, weights in forms(whole).items()}
    programs = {name: str(each.as_text()) for name, each in compiled.items()}
    assert "f32[3,6,6]" in programs["whole"]
    assert "f32[3,6,6]" not in programs["apart"]
    results = [compiled[name](micro_batches, weights) for name, weights in forms(whole).items()]
    chex.assert_trees_all_close(*results, rtol=1e-6)


def forms(whole):
    return {"whole": whole, "apart": take_apart(whole)}


def test_only_stacks_are_taken_apart_and_come_together_again():
    whole = {"vla": {"layers": {"kernel": np.arange(12.0).reshape(3, 2, 2)}, "embed": np.ones((3, 2))}, "eos_head": {"bias": np.zeros(3)}}
    apart = take_apart(whole)
    assert [layer.base is not None for layer in apart["vla"]["layers"]["kernel"]] == [True] * 3  # views
    assert jax.tree.structure(apart["vla"]["embed"]) == jax.tree.structure(whole["vla"]["embed"])
    chex.assert_trees_all_equal(take_apart(apart), apart)
    chex.assert_trees_all_equal(put_together(apart), whole)
    chex.assert_trees_all_equal(put_together(whole), whole)


def test_layers_are_unrolled_on_a_gpu_but_where_devices_share_them_out(monkeypatch):
    assert (unrolls(), unrolls("scan"), unrolls("unroll")) == (False, False, True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert (unrolls(), unrolls("scan"), unrolls(sharded=True)) == (True, False, False)
