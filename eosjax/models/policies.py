"""The whole policy: the vision-language-action model and the part that turns its hidden states into actions.

Three kinds with one interface, chosen by the configuration of the model: `loss` for training, `act` for actions.

  RegressionPolicy  an L1 regression head: OpenVLA-OFT's own, and the default
  DiffusionPolicy   a head that predicts the noise in noisy actions
  TokenPolicy       the language model's output layer: each number of an action is a token

Parameters come as a dict of *parts* (see `eosjax.models.parts`); a policy uses those that it needs.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from eosjax import losses
from eosjax.models import action_tokens
from eosjax.models.diffusion import DDIM
from eosjax.models.film import join_film
from eosjax.models.heads import ActionHead
from eosjax.models.lora import LORA
from eosjax.models.openvla import NoisyActions, OpenVLA, VLAConfig
from eosjax.models.shards import SHARDED
from eosjax.models.stacks import put_together

Params = dict[str, Any]
# Parts that are modules of `OpenVLA` but separate from its base weights, because they are trained, frozen or stored separately.
MODULES = ("vision_backbone", "proprio_projector", "noisy_action_projector")


class Observation(NamedTuple):
    """The input of a policy: the arguments of `OpenVLA`, with the same shapes."""

    images: jax.Array  # u8 [b v h w 3]
    input_ids: jax.Array  # i32 [b l]
    attn_mask: jax.Array  # bool [b l]
    proprio: jax.Array  # f32 [b p]


class ActionLoss(NamedTuple):
    """The loss of a batch, and the values that it was computed from."""

    hidden: jax.Array  # [b k a d], hidden states of the actions
    sums: dict[str, jax.Array]  # f32 [] each: `action_sum` and `action_count`, whose quotient is the loss, and those of `extra_sums`


class Actions(NamedTuple):
    """The output of a policy."""

    hidden: jax.Array  # [b k a d], hidden states of the actions
    actions: jax.Array  # f32 [b k a], normalised


def make_policy(config: VLAConfig) -> Policy:
    """The policy that a configuration describes; allocates nothing."""
    vla = OpenVLA(config)
    if config.action_vocab:
        return TokenPolicy(vla)
    head = ActionHead(hidden_dim=config.llama.width, action_dim=config.action_dim, dtype=config.dtype)
    return DiffusionPolicy(vla, head) if config.diffusion else RegressionPolicy(vla, head)


def vla_variables(params: Params) -> Params:
    """The Flax variables of `OpenVLA` from the parts, whose stacks may be in layers."""
    params = put_together(params)
    base = {**params["vla"], **{part: params[part] for part in MODULES if part in params}}
    if "film" in params:
        base = join_film(base, params["film"])
    return {"params": base, **{collection: params[collection] for collection in (LORA, SHARDED) if collection in params}}


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
    """Common base of the policies. Hashable, so that a jitted function can close over it."""

    vla: OpenVLA

    extra_sums: ClassVar[tuple[str, ...]] = ()  # further sums that `loss` reports

    @abc.abstractmethod
    def init_head(self, key: jax.Array) -> Params | None:
        """Random parameters of the part `action_head`; None for a policy without one."""

    def count(self, valid: jax.Array) -> jax.Array:
        """f32 []: the number of values in the mean of a batch's loss; `valid` bool [b k], False past the end of the episode."""
        return jnp.sum(valid, dtype=jnp.float32) * self.vla.config.action_dim

    @abc.abstractmethod
    def loss(
        self, params: Params, seen: Observation, actions: jax.Array, valid: jax.Array, noise_keys: jax.Array, dropout_key: jax.Array
    ) -> ActionLoss:
        """The loss on demonstrated actions, with dropout.

        Args:
          params: by part.
          seen: the observations.
          actions: f32 [b k a], normalised.
          valid: bool [b k], False past the end of the episode, where `actions` repeats the last one.
          noise_keys: [b], keys of the samples.
          dropout_key: [], of the adapters.
        """

    @abc.abstractmethod
    def act(self, params: Params, seen: Observation, noise_keys: jax.Array) -> Actions:
        """The actions, without dropout. Arguments as in `loss`."""

    def _call(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return self.vla.apply(vla_variables(params), *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class RegressionPolicy(Policy):
    """Actions from an L1 regression head on the hidden states, in one pass (Kim, Finn, Liang 2025, arXiv:2502.19645)."""

    head: ActionHead

    def init_head(self, key: jax.Array) -> Params | None:
        """As in `Policy`."""
        return _init_head(self.head, self.vla.config, key)

    def loss(self, params, seen, actions, valid, noise_keys, dropout_key) -> ActionLoss:
        """The L1 loss over the valid slots."""
        hidden = self._call(params, *seen, deterministic=False, rngs={"dropout": dropout_key})
        total, count = losses.masked_l1(_apply(self.head, params["action_head"], hidden), actions, valid)
        return ActionLoss(hidden, {"action_sum": total, "action_count": count})

    def act(self, params, seen, noise_keys) -> Actions:
        """The actions of the head, in one pass."""
        hidden = self._call(params, *seen)
        return Actions(hidden, _apply(self.head, params["action_head"], hidden).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class DiffusionPolicy(Policy):
    """Actions by denoising (`eosjax.models.diffusion`). The hidden states are those of the last, nearly clean denoising step.

    All slots of a chunk count, including those past the end of the episode. The sampler denoises a chunk as a whole, so the policy
    needs an action there; it learns to repeat the last one.
    """

    head: ActionHead

    def init_head(self, key: jax.Array) -> Params | None:
        """As in `Policy`."""
        return _init_head(self.head, self.vla.config, key)

    def count(self, valid: jax.Array) -> jax.Array:
        """As in `Policy`, over whole chunks."""
        return super().count(_whole_chunks(valid))

    def loss(self, params, seen, actions, valid, noise_keys, dropout_key) -> ActionLoss:
        """The squared error of the predicted noise, at a random noise level for each sample."""
        # One key per sample: the noise then does not depend on how the batch is split over devices.
        drawn = jax.vmap(self._ddim.draw)(noise_keys, actions[:, None])
        noisy, steps, noise = jax.tree.map(lambda x: jnp.squeeze(x, 1), drawn)
        hidden = self._call(params, *seen, NoisyActions(noisy, steps), deterministic=False, rngs={"dropout": dropout_key})
        predicted = _apply(self.head, params["action_head"], hidden)
        total, count = losses.masked_mse(predicted, noise, _whole_chunks(valid))
        return ActionLoss(hidden, {"action_sum": total, "action_count": count})

    def act(self, params, seen, noise_keys) -> Actions:
        """Denoises from the noise of the keys; the observation is read once."""
        config = self.vla.config
        observed = self._call(params, *seen, method="observe")

        def predict(noisy: jax.Array, steps: jax.Array) -> tuple[jax.Array, jax.Array]:
            hidden = self._call(params, observed, seen.input_ids, seen.attn_mask, NoisyActions(noisy, steps), method="act")
            return _apply(self.head, params["action_head"], hidden), hidden

        noise = jax.vmap(lambda key: jax.random.normal(key, (config.chunk, config.action_dim)))(noise_keys)
        actions, hidden = self._ddim.sample(predict, noise, config.diffusion_steps)
        return Actions(hidden, actions)

    @property
    def _ddim(self) -> DDIM:
        return DDIM(self.vla.config.diffusion_train_steps)


@dataclasses.dataclass(frozen=True)
class TokenPolicy(Policy):
    """Actions as tokens that the language model predicts, all at once (`eosjax.models.action_tokens`); trained by cross-entropy."""

    extra_sums: ClassVar[tuple[str, ...]] = tuple(
        f"{which}_{what}" for which in ("curr_action", "next_actions") for what in ("correct", "l1", "tokens")
    )

    def init_head(self, key: jax.Array) -> Params | None:
        """None: the output layer belongs to the language model."""
        return None

    def count(self, valid: jax.Array) -> jax.Array:
        """As in `Policy`, in tokens; with one stop token for each row."""
        return super().count(valid) + jnp.sum(valid.any(axis=1), dtype=jnp.float32)

    def loss(self, params, seen, actions, valid, noise_keys, dropout_key) -> ActionLoss:
        """The cross-entropy of the tokens of the valid slots and of the stop token."""
        hidden, logits = self._call(params, *seen, deterministic=False, rngs={"dropout": dropout_key}, method="token_logits")
        vocab = self.vla.config.action_vocab
        stop_ids = seen[1][:, -1]
        total, count = losses.token_cross_entropy(logits, *action_tokens.make_targets(actions, valid, stop_ids, vocab))
        errors = action_tokens.token_errors(logits, actions, valid, vocab)
        values = [part(errors_of) for part in (lambda x: x[0], lambda x: jnp.sum(x[1:])) for errors_of in errors]
        return ActionLoss(hidden, {"action_sum": total, "action_count": count, **dict(zip(self.extra_sums, values, strict=True))})

    def act(self, params, seen, noise_keys) -> Actions:
        """The likeliest tokens, decoded."""
        config = self.vla.config
        hidden, logits = self._call(params, *seen, method="token_logits")
        return Actions(hidden, action_tokens.predict_actions(logits, (config.chunk, config.action_dim), config.action_vocab))


def _whole_chunks(valid: jax.Array) -> jax.Array:
    """True in all slots of the rows that hold a sample."""
    return jnp.broadcast_to(valid.any(axis=1, keepdims=True), valid.shape)


def _init_head(head: nn.Module, config: VLAConfig, key: jax.Array) -> Params:
    return dict(head.init(key, jnp.zeros((1, config.chunk, config.action_dim, config.llama.width)))["params"])


def _apply(head: nn.Module, params: Params, hidden: jax.Array) -> jax.Array:
    return head.apply({"params": params}, hidden)  # pyright: ignore[reportReturnType]  # a tuple only with `mutable`
