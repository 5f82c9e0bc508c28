"""The parameters of a policy as a dict of *parts*, the units of optimizer, metrics, checkpoints and exports:

vla                     base weights of the policy: trained with `use_lora=False`, otherwise frozen
vision_backbone         the encoders, frozen, with `freeze_vision=True` and `use_lora=False`; otherwise in `vla`
lora                    adapters of the policy, with `use_lora=True`
film                    layers that modulate the encoders, with `use_film=True`; always trained
proprio_projector       with `use_proprio=True`; always trained
noisy_action_projector  with `use_diffusion=True`; always trained
action_head             always trained; a policy whose actions are tokens has none
eos_head                with `use_eos_classification=True`; trained by the EOS loss alone
sharded                 with `shard_frozen=True`, the kernels of frozen layers, of which each device holds a share (`models.shards`)
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from eosjax.config import TrainConfig
from eosjax.models.film import split_film
from eosjax.models.heads import EosHead
from eosjax.models.openvla import VLAConfig
from eosjax.models.policies import MODULES, Params, Policy, make_policy
from eosjax.types import Batch


def make_eos_head(config: TrainConfig) -> EosHead | None:
    """The EOS head that the flags ask for; None with `use_eos_classification=False`."""
    return EosHead(hidden_dim=config.eos_hidden_dim, dropout=config.eos_dropout) if config.use_eos_classification else None


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="with_base")
def init_params(policy: Policy, eos_head: EosHead | None, batch: Batch, rng: jax.Array, *, with_base: bool = True) -> Params:
    """Random parameters of all parts, in the dtypes of the modules; those of `base_parts` only with `with_base`.

    Jitted, so that parameters that are not returned are not computed.

    Args:
      policy, eos_head: the modules.
      batch: a batch of the right shapes; its values do not matter.
      rng: key.
    """
    vla_key, action_key, eos_key = jax.random.split(rng, 3)
    vla = policy.vla
    variables = vla.init(vla_key, batch.images, batch.input_ids, batch.attn_mask, batch.proprio)
    base = dict(variables["params"])
    params: Params = {part: base.pop(part) for part in MODULES if part in base and part != "vision_backbone"}
    if vla.config.film:
        base, params["film"] = split_film(base)
    if with_base:
        params |= base_parts(base, vla.config)
    if "lora" in variables:
        params["lora"] = variables["lora"]
    if (head := policy.init_head(action_key)) is not None:
        params["action_head"] = head
    if eos_head is not None:
        hidden = jnp.zeros((vla.config.action_dim, vla.config.llama.width))
        params["eos_head"] = eos_head.init(eos_key, hidden)["params"]
    return params


def base_parts(base: Params, config: VLAConfig) -> Params:
    """The parts with the base weights of `OpenVLA`: `vla`, or `vla` and the frozen `vision_backbone`."""
    if not config.freeze_vision or config.lora_rank:
        return {"vla": base}
    rest = dict(base)
    return {"vision_backbone": rest.pop("vision_backbone"), "vla": rest}


def split_params(params: Params) -> tuple[Params, Params]:
    """Splits the parts into (trainable, frozen): frozen is the base with adapters, else a separate `vision_backbone`."""
    frozen = {"vla"} if "lora" in params else {"vision_backbone"}
    return (
        {part: tree for part, tree in params.items() if part not in frozen},
        {part: tree for part, tree in params.items() if part in frozen},
    )


def abstract_params(config: TrainConfig, vla_config: VLAConfig) -> Params:
    """The parts of the policy that a configuration describes, as `jax.ShapeDtypeStruct`s; computes nothing."""
    size, text, chunk = vla_config.dino.image_size, vla_config.action_tokens + 3, (1, vla_config.chunk)
    batch = Batch(
        images=jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.uint8),
        input_ids=jax.ShapeDtypeStruct((1, text), jnp.int32),
        attn_mask=jax.ShapeDtypeStruct((1, text), jnp.bool_),
        proprio=jax.ShapeDtypeStruct((1, vla_config.proprio_dim), jnp.float32),
        actions=jax.ShapeDtypeStruct((*chunk, vla_config.action_dim), jnp.float32),
        eos=jax.ShapeDtypeStruct(chunk, jnp.float32),
        valid=jax.ShapeDtypeStruct(chunk, jnp.bool_),
        key=jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    policy, eos_head = make_policy(vla_config), make_eos_head(config)
    return jax.eval_shape(lambda batch, rng: init_params(policy, eos_head, batch, rng), batch, jax.random.key(0))
