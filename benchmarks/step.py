"""Time of a LoRA update beside PyTorch's on this machine's CPU, and of the EOS part of an update alone.

    python benchmarks/step.py

The policy has 87 million parameters: a Llama of 8 layers of width 768, two encoders of 7 blocks of width 384 that see one image of 224
pixels, LoRA 32 in every linear layer, an action head and an EOS head. An update of 8 samples in float32: L1 loss, buffer and EOS head,
AdamW. PyTorch runs transformers' Llama with its fused attention, PEFT's adapters, and two deques of cloned rows. Both start from the same
weights and see the same batch; their first action losses must agree. The EOS part alone is that of openvla-7b, whose states have
7 x 4,096 numbers: 64 new rows, a draw of 35, the head, its gradient and AdamW.

Both sides take turns; the table shows medians and their ratio.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, which need not be installed

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
from torch import nn

from benchmarks.on_gpu.shapes import begin_from, params_on_host, synthetic_batch
from benchmarks.torch_policy import TorchOpenVLA, load
from eosjax.config import TrainConfig
from eosjax.models.hf import weights
from eosjax.models.hf.adapter import export_adapter, target_modules
from eosjax.models.llama import LlamaConfig
from eosjax.models.lora import openvla_scaling
from eosjax.models.openvla import IMAGENET_MEAN, IMAGENET_STD, VLAConfig
from eosjax.models.parts import make_eos_head
from eosjax.models.vit import ViTConfig
from eosjax.training.host_memory import keep_freed_memory
from eosjax.training.keys import step_keys
from eosjax.training.objectives import EosRows
from eosjax.training.optim import make_optimizer
from eosjax.training.state import make_learner

RANK, BATCH, AGREE = 32, 8, 1e-4
LARGE = (7, 4096)  # the hidden states of an action of openvla-7b
SMALL_VIT = ViTConfig(224, 14, 384, 8, 6, 1536, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
POLICY = VLAConfig(
    dino=dataclasses.replace(SMALL_VIT, class_token=True, register_tokens=4, layer_scale=1.0),
    siglip=dataclasses.replace(SMALL_VIT, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5)),
    llama=LlamaConfig(vocab_size=512, width=768, depth=8, heads=12, kv_heads=12, mlp_dim=2048),
    lora_rank=RANK,
    lora_scaling=openvla_scaling(RANK),
)
CONFIG = TrainConfig(batch_size=BATCH, model_dtype="float32", lora_rank=RANK, num_images_in_input=1)

Update = Callable[[], float]  # one update; returns a loss


class Head(nn.Sequential):
    """The EOS head: two hidden layers with dropout, one logit."""

    def __init__(self, inputs: int, width: int = CONFIG.eos_hidden_dim, dropout: float = CONFIG.eos_dropout) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in ((inputs, width), (width, width // 2)):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(nn.Flatten(), *layers, nn.Linear(width // 2, 1), nn.Flatten(0))


class ActionHead(nn.Module):
    """OpenVLA-OFT's residual MLP, under the names of its checkpoint."""

    def __init__(self, inputs: int, width: int, actions: int) -> None:
        super().__init__()
        self.layer_norm1, self.fc1 = nn.LayerNorm(inputs), nn.Linear(inputs, width)
        blocks = (nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(2))
        self.mlp_resnet_blocks = nn.ModuleList(blocks)
        self.layer_norm2, self.fc2 = nn.LayerNorm(width), nn.Linear(width, actions)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[... a d] -> [... actions]."""
        x = self.fc1(self.layer_norm1(hidden.flatten(-2))).relu()
        for block in self.mlp_resnet_blocks:
            x = x + block(x)
        return self.fc2(self.layer_norm2(x))


class Rings:
    """The buffer as two deques of cloned rows."""

    def __init__(self) -> None:
        self.rings = [collections.deque(maxlen=CONFIG.eos_buffer_capacity) for _ in range(2)]
        self.draw = random.Random(1)

    def loss(self, head: nn.Module, rows: torch.Tensor, labels: list[bool]) -> torch.Tensor:
        """Adds rows [n ...] and returns the loss of a draw."""
        for row, label in zip(rows.detach(), labels, strict=True):
            self.rings[label].append(row.clone())  # a view would keep its whole batch alive
        counts = (CONFIG.eos_sample_negative, CONFIG.eos_sample_positive)
        drawn = [self.draw.sample(ring, min(n, len(ring))) for ring, n in zip(self.rings, counts, strict=True)]
        targets = torch.tensor([0.0] * len(drawn[0]) + [1.0] * len(drawn[1]))
        return nn.functional.binary_cross_entropy_with_logits(head(torch.stack(drawn[0] + drawn[1])), targets)


def make_batch() -> Any:
    """A batch without padding: transformers then needs no mask of its own."""
    batch = synthetic_batch(POLICY, 1, BATCH)
    return batch._replace(attn_mask=np.ones_like(batch.attn_mask), valid=np.ones_like(batch.valid))


def jax_update(params: Any, batch: Any) -> Update:
    """An update with eosjax, as `train.py` makes it."""
    begun = begin_from(params, CONFIG, POLICY, jax.devices()[0])
    split, state = begun.parallel.split(batch), begun.state

    def update() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(begun.parallel.step(state, begun.frozen, split))
        window = jax.device_get(metrics.window)
        return float(window["action_sum"] / window["action_count"])

    return update


def torch_update(params: Any, batch: Any) -> Update:
    """The same in PyTorch, from the same weights."""
    policy = TorchOpenVLA(POLICY)
    unused = {"language_model.lm_head.weight": np.zeros((POLICY.llama.vocab_size, POLICY.llama.width), np.float32)}
    load(policy, dict(weights.export_weights(params["vla"], POLICY)) | unused)
    settings = peft.LoraConfig(r=RANK, lora_alpha=min(RANK, 16), target_modules=target_modules(POLICY), lora_dropout=0.0)
    policy = peft.get_peft_model(policy, settings)
    adapter = {name: torch.tensor(array) for name, array in export_adapter(params["lora"], POLICY)}
    assert not peft.set_peft_model_state_dict(policy, adapter).unexpected_keys
    inputs = POLICY.action_dim * POLICY.llama.width
    action_head, head, rings = ActionHead(inputs, POLICY.llama.width, POLICY.action_dim), Head(inputs), Rings()
    load(action_head, _head_tensors(params["action_head"]))
    modules = (policy, action_head, head)
    optimizer = torch.optim.AdamW([p for each in modules for p in each.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.01)
    images, ids, actions = torch.tensor(batch.images), torch.tensor(batch.input_ids).long(), torch.tensor(batch.actions)
    labels = [bool(label) for label in batch.eos.flatten()]

    def update() -> float:
        hidden = policy(images, ids)
        action_loss = (action_head(hidden) - actions).abs().mean()
        loss = action_loss + CONFIG.lambda_eos * rings.loss(head, hidden.flatten(0, 1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return action_loss.item()

    return update


def _head_tensors(params: Any) -> dict[str, np.ndarray]:
    return {name.removeprefix("model.").replace(".ffn.", "."): array for name, array in weights.export_part("action_head", params).items()}


def jax_eos_update() -> Update:
    """The EOS part of an update, on states of openvla-7b."""
    learner = make_learner(CONFIG, POLICY)
    head, objective, optimizer = make_eos_head(CONFIG), learner.objective, make_optimizer(learner.schedule)
    assert head is not None
    assert objective is not None
    hidden, labels = _large_rows()
    params = head.init(jax.random.key(0), jnp.asarray(hidden[:1]))["params"]
    carry = ({"eos_head": params}, optimizer.init({"eos_head": params}), objective.init(jax.ShapeDtypeStruct(LARGE, jnp.float32)))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any, number: jax.Array, rows: EosRows) -> Any:
        trained, opt_state, buffer = carry
        keys = jax.tree.map(lambda key: key[0], step_keys(jax.random.key(0), number, 1))

        def loss_of(trained: Any) -> Any:
            apply: Any = functools.partial(head.apply, {"params": trained["eos_head"]}, deterministic=False)
            term = objective.loss(lambda items: apply(items, rngs={"dropout": keys.head_dropout}), buffer, rows, keys)
            return CONFIG.lambda_eos * term.loss, term.state

        (loss, buffer), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
        updates, opt_state = optimizer.update(grads, opt_state, trained, eos_ready=jnp.asarray(True))
        return (jax.tree.map(jnp.add, trained, updates), opt_state, buffer), loss

    rows, number = EosRows(jnp.asarray(hidden), jnp.asarray(labels, jnp.float32), jnp.ones(len(labels), bool), jnp.ones(())), 0

    def update() -> float:
        nonlocal carry, number
        number += 1
        carry, loss = jax.block_until_ready(step(carry, number, rows))
        return float(loss)

    return update


def torch_eos_update() -> Update:
    """The same in PyTorch."""
    hidden, labels = _large_rows()
    head, rings, rows = Head(LARGE[0] * LARGE[1]), Rings(), torch.tensor(hidden)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-4, weight_decay=0.01)
    flags = [bool(label) for label in labels]

    def update() -> float:
        loss = CONFIG.lambda_eos * rings.loss(head, rows, flags)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return update


def _large_rows() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).normal(size=(64, *LARGE)).astype(np.float32), np.arange(64) % 3 == 0


def medians(updates: tuple[Update, Update], repeats: int) -> list[float]:
    """Milliseconds of both, which take turns, after two updates for warm-up."""
    times: list[list[float]] = [[], []]
    for number in range(repeats + 2):
        for side, update in enumerate(updates):
            start = time.perf_counter()
            update()
            if number >= 2:
                times[side].append(1e3 * (time.perf_counter() - start))
    return [statistics.median(each) for each in times]


def main() -> None:
    """Prints the table; exits with a message if both sides do not compute the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=7, help="timed updates of the policy (%(default)s); of the EOS part ten times as many"
    )
    args = parser.parse_args()
    keep_freed_memory()  # as `train.py` does on a CPU
    params, batch = params_on_host(CONFIG, POLICY), make_batch()
    pair = jax_update(params, batch), torch_update(params, batch)
    first = [update() for update in pair]
    if abs(first[0] - first[1]) > AGREE:
        sys.exit(f"the first action losses differ: eosjax {first[0]}, torch {first[1]}")
    print(f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"first action loss: {first[0]:.6f} and {first[1]:.6f}")
    print(f"{'':24}{'eosjax ms':>12}{'torch ms':>12}{'ratio':>8}")
    for name, updates, repeats in (
        ("LoRA update", pair, args.repeats),
        ("EOS part, width 4,096", (jax_eos_update(), torch_eos_update()), 10 * args.repeats),
    ):
        ours, theirs = medians(updates, repeats)
        print(f"{name:24}{ours:>12.0f}{theirs:>12.0f}{ours / theirs:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
