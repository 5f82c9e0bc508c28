"""Compares eosjax with arrays recorded from the PyTorch original, and says how far apart they are.

    python benchmarks/parity.py GOLDEN_DIR

GOLDEN_DIR holds one or more folders, each with a tiny `checkpoint/` in the Hugging Face layout, the parts, and `fwd_*.npz` cases (see
docs/weights.md); it may also be one such folder. All sizes are read from it. The exit status is 1 if any error is beyond its tolerance.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eosjax.config import TrainConfig
from eosjax.losses import balanced_bce
from eosjax.models.heads import ActionHead, EosHead
from eosjax.models.hf import files, weights
from eosjax.models.hf.adapter import export_adapter, load_adapter
from eosjax.models.hf.adapter_config import AdapterConfig
from eosjax.models.hf.config import vla_config_from_hf
from eosjax.models.hf.part_files import find_parts, read_part
from eosjax.models.openvla import OpenVLA, VLAConfig, all_hidden_states
from eosjax.training.optim import learning_rate_schedule, make_optimizer

ABSOLUTE, RELATIVE, BFLOAT16 = 2e-5, 1e-4, 1.5
PADDING = 7  # masked tokens put into every prompt: they must change nothing
LAMBDA_EOS = 2.0


class Row(NamedTuple):
    """One comparison."""

    case: str
    quantity: str
    error: float
    tolerance: float
    kind: str  # of the error: absolute, relative to the largest recorded value, or a ratio of errors

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


class Model(NamedTuple):
    """The recorded model: base weights, parts, and what its files say of it."""

    folder: Path
    config: VLAConfig
    params: dict[str, Any]
    parts: dict[str, Any]
    pad_id: int


class Inputs(NamedTuple):
    """Arguments of `OpenVLA`, and the text in the layout of the recording."""

    images: np.ndarray
    input_ids: np.ndarray
    attn_mask: np.ndarray
    proprio: np.ndarray


def main() -> None:
    """Prints the table of every variant below the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("golden_dir", type=Path, help="folder with the recorded arrays")
    parser.add_argument("--all", action="store_true", help="list every comparison, not the worst of each case and quantity")
    arguments = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    folders = variants(arguments.golden_dir)
    if not folders:
        sys.exit(f"parity.py: {arguments.golden_dir}: no folder with checkpoint/config.json in it")
    failed = 0
    for folder in folders:
        rows = list(compare(folder))
        failed += sum(not row.passed for row in rows)
        print(f"## {folder.name}\n\n{table(rows if arguments.all else worst(rows))}\n")
    print(f"{failed} comparison(s) beyond the tolerance" if failed else "all within the tolerance")
    sys.exit(1 if failed else 0)


def variants(golden: Path) -> list[Path]:
    """The folder itself, or those in it, that hold a recorded checkpoint."""
    return [folder for folder in (golden, *sorted(golden.glob("*"))) if (folder / "checkpoint" / "config.json").is_file()]


def compare(folder: Path) -> Iterator[Row]:
    """All comparisons of one recorded model."""
    model = load(folder)
    for path in sorted(folder.glob("fwd_*.npz")):
        golden = dict(np.load(path))
        yield from compare_forward(path.stem.removeprefix("fwd_"), model, golden)
        yield from compare_gradients(path.stem.removeprefix("fwd_"), model, golden)
    if (folder / "lora.npz").is_file():
        yield from compare_lora(model, dict(np.load(folder / "lora.npz")))
    if (folder / "adamw_eos_head.npz").is_file():
        yield from compare_optimizer(model, dict(np.load(folder / "adamw_eos_head.npz")))
    for path in sorted(folder.glob("bf16_*.npz")):
        name = path.stem.removeprefix("bf16_")
        yield from compare_bfloat16(name, model, dict(np.load(path)), dict(np.load(folder / f"fwd_{name}.npz")))


@functools.cache
def load(folder: Path) -> Model:
    """The recorded checkpoint and its parts, in float32 and with the output projection."""
    checkpoint = folder / "checkpoint"
    config_json = files.read_json(checkpoint, "config.json")
    preprocessor = files.read_json(checkpoint, "preprocessor_config.json")
    tensors = files.Tensors.of_folder(checkpoint)
    case = dict(np.load(sorted(folder.glob("fwd_*.npz"))[0]))
    chunk, action_dim = case["actions"].shape[1:]
    make = functools.partial(vla_config_from_hf, config_json, preprocessor, tensors.shapes, chunk=chunk, action_dim=action_dim)
    config = make(vision_heads=_vision_heads(tensors, make, case))
    config = dataclasses.replace(config, llama=dataclasses.replace(config.llama, lm_head=True))
    found = find_parts(folder, ("action_head", "eos_head", "proprio_projector"))
    parts = {part: weights.import_part(part, read_part(path)) for part, path in found.items()}
    return Model(folder, config, weights.import_weights(tensors, config), parts, config_json["pad_token_id"])


def _vision_heads(tensors: files.Tensors, make: Any, case: dict[str, np.ndarray]) -> tuple[int, int]:
    """The head counts, which no file holds: for each encoder the one that gives the recorded features best."""
    images = case["raw_images"][:, None, ..., :3]
    config = make(vision_heads=(1, 1))
    params = weights.import_weights(tensors, config)
    widths = (config.dino.width, config.siglip.width)
    candidates = [[heads for heads in range(1, width + 1) if width % heads == 0 and width // heads >= 8] for width in widths]
    errors: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for i in range(max(map(len, candidates))):
        pair = tuple(heads[min(i, len(heads) - 1)] for heads in candidates)
        features = _apply(OpenVLA(make(vision_heads=pair)), params, images, method="vision_features")
        parts = (features[..., : widths[0]], features[..., widths[0] :])
        for heads, part, name, found in zip(pair, parts, ("dino", "siglip"), errors, strict=True):
            found[heads] = _distance(part, case[f"{name}_features_image0"])
    dino, siglip = (min(found, key=found.__getitem__) for found in errors)
    return dino, siglip


def compare_forward(case: str, model: Model, golden: dict[str, np.ndarray]) -> Iterator[Row]:
    """Every recorded quantity of a forward pass."""
    policy, variables, inputs = _prepare(model, golden)
    targets = {name: golden[name] for name in ("actions", "eos_labels", "eos_balanced_hidden", "eos_balanced_labels")}
    ours = jax.device_get(_forward(policy, variables, model.parts, inputs, targets))
    seen, states, embeds, tokens = (ours.pop(key) for key in ("seen", "states", "embeds", "token_ids"))
    real = golden["mm_attention_mask"].astype(bool)
    yield _absolute(case, "mm_embeds", embeds[seen], golden["mm_embeds"][real])
    for i, state in enumerate(states):
        expected = golden[f"hidden_states_{i}" if i else "mm_embeds"]  # the first ones are the embeddings
        yield _absolute(case, f"hidden_states_{i}", state[seen], expected[real])
    mismatches = float((tokens[seen] != golden["lm_logits_argmax"][real]).sum())
    yield Row(case, "lm_logits_argmax (tokens that differ)", mismatches, 0.0, "count")
    for quantity, value in ours.items():
        yield _absolute(case, quantity, value, golden[quantity])


def compare_gradients(case: str, model: Model, golden: dict[str, np.ndarray]) -> Iterator[Row]:
    """d total / d every recorded tensor: the EOS term reaches its head alone, as behind the buffer."""
    policy, variables, inputs = _prepare(model, golden)

    def total(params: Any, action_head: Any, eos_head: Any) -> jax.Array:
        hidden = _call(policy, {"params": params}, *inputs)
        l1 = jnp.abs(_call(_action_head(action_head), {"params": action_head}, hidden) - golden["actions"]).mean()
        rows = jnp.asarray(golden["eos_balanced_hidden"]).reshape(-1, policy.config.action_dim, hidden.shape[-1])
        logits = _call(_eos_head(eos_head), {"params": eos_head}, rows)
        return l1 + LAMBDA_EOS * balanced_bce(logits, jnp.asarray(golden["eos_balanced_labels"]), jnp.ones(len(rows)))

    arguments = (variables["params"], model.parts["action_head"], model.parts["eos_head"])
    base, action_head, eos_head = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*arguments)
    ours = {f"vla/{name}": grad for name, grad in weights.export_weights(base, policy.config)}
    parts = {"action_head": action_head, "eos_head": eos_head}
    if policy.config.proprio_dim:
        parts["proprio_projector"] = base["proprio_projector"]
    for part, tree in parts.items():
        ours |= {f"{part}/{name}": grad for name, grad in weights.export_part(part, tree).items()}
    for name, grad in _recorded(golden, "grad/").items():
        yield _relative(case, f"grad/{name}", ours[name], grad)


def compare_lora(model: Model, golden: dict[str, np.ndarray]) -> Iterator[Row]:
    """The adapter of PEFT: hidden states, gradients, and three steps of AdamW over adapter and heads."""
    batch = dict(np.load(model.folder / "fwd_img1_proprio0.npz"))
    adapter = model.folder / "lora_adapter"
    settings = AdapterConfig.read(adapter)
    config = dataclasses.replace(model.config, lora_rank=settings.rank, lora_scaling=settings.scaling)
    base = files.Tensors.of_folder(model.folder / "checkpoint")
    policy, variables, inputs = _prepare(model._replace(config=config), batch)
    trained = {"lora": load_adapter(adapter, config, base).lora, **{p: model.parts[p] for p in ("action_head", "eos_head")}}

    def losses(trained: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        hidden = _call(policy, {**variables, "lora": trained["lora"]}, *inputs)
        predicted = _call(_action_head(trained["action_head"]), {"params": trained["action_head"]}, hidden)
        l1 = jnp.abs(predicted - batch["actions"]).mean()
        logits = _call(_eos_head(trained["eos_head"]), {"params": trained["eos_head"]}, jax.lax.stop_gradient(hidden))
        labels = jnp.asarray(batch["eos_labels"])[..., 0]
        bce = balanced_bce(logits.ravel(), labels.ravel(), jnp.ones(labels.size))
        return l1 + LAMBDA_EOS * bce, (l1, bce, l1 + LAMBDA_EOS * bce, hidden)

    optimizer = make_optimizer(learning_rate_schedule(TrainConfig(learning_rate=5e-4)))
    opt_state = jax.jit(optimizer.init)(trained)

    @jax.jit
    def step(trained: Any, opt_state: Any) -> Any:
        grads, aux = jax.grad(losses, has_aux=True)(trained)
        updates, opt_state = optimizer.update(grads, opt_state, trained, eos_ready=jnp.array(True))
        return grads, aux, optax.apply_updates(trained, updates), opt_state

    for i in range(3):
        grads, (*values, hidden), trained, opt_state = step(trained, opt_state)
        if i == 0:
            yield _absolute("lora", "actions_hidden_states", hidden, golden["actions_hidden_states"])
            named = _named(grads, config)
            for name, grad in _recorded(golden, "grad/").items():
                yield _relative("lora", f"grad/{name}", named[name], grad)
        yield _absolute("lora", f"losses_{i}", np.asarray(values), golden[f"losses_{i}"])
    named = _named(trained, config)
    for name, value in _recorded(golden, "after3/").items():
        yield _absolute("lora", f"after3/{name}", named[name], value)


def compare_optimizer(model: Model, golden: dict[str, np.ndarray]) -> Iterator[Row]:
    """The EOS head alone under AdamW, step by step."""
    rows = jnp.asarray(golden["x"]).reshape(len(golden["x"]), model.config.action_dim, -1)
    labels = jnp.asarray(golden["y"])

    def loss(head: Any) -> jax.Array:
        return balanced_bce(_call(_eos_head(head), {"params": head}, rows), labels, jnp.ones(len(rows)))

    optimizer = make_optimizer(learning_rate_schedule(TrainConfig(learning_rate=float(golden["lr"]))))
    trained: Any = {"eos_head": model.parts["eos_head"]}
    opt_state = jax.jit(optimizer.init)(trained)

    @jax.jit
    def step(trained: Any, opt_state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(trained["eos_head"])
        updates, opt_state = optimizer.update({"eos_head": grads}, opt_state, trained, eos_ready=jnp.array(True))
        return value, optax.apply_updates(trained, updates), opt_state

    for i in range(sum(name.startswith("loss_") for name in golden)):
        value, trained, opt_state = step(trained, opt_state)
        yield _absolute("adamw_eos_head", f"loss_{i}", value, golden[f"loss_{i}"])
        ours = weights.export_part("eos_head", trained["eos_head"])
        for name, value in _recorded(golden, f"step{i}/").items():
            yield _absolute("adamw_eos_head", f"step{i}/{name}", ours[name], value)


def compare_bfloat16(case: str, model: Model, recorded: dict[str, np.ndarray], golden: dict[str, np.ndarray]) -> Iterator[Row]:
    """The error of our bfloat16 pass against the recorded float32 one, as a multiple of the original's own."""
    config = dataclasses.replace(model.config, dtype="bfloat16", param_dtype="bfloat16")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), model.params)
    policy, variables, inputs = _prepare(model._replace(config=config, params=params), golden)
    hidden = _apply(policy, variables["params"], *inputs)
    head = dataclasses.replace(_action_head(model.parts["action_head"]), dtype="bfloat16")
    ours = {
        "actions_hidden_states": np.asarray(hidden, np.float32),
        "predicted_actions": np.asarray(_call(head, {"params": model.parts["action_head"]}, hidden), np.float32),
    }
    for quantity, value in ours.items():
        exact = golden[quantity]
        theirs = np.sqrt(np.mean((recorded[quantity] - exact) ** 2))
        mine = np.sqrt(np.mean((value.reshape(exact.shape) - exact) ** 2))
        yield Row(f"bf16_{case}", f"{quantity} (rms error / the original's)", float(mine / theirs), BFLOAT16, "ratio")


def worst(rows: list[Row]) -> list[Row]:
    """The worst comparison of each case and kind of quantity: one for all gradients of a part, one for all hidden states."""
    groups: dict[tuple[str, str], Row] = {}
    for row in rows:
        quantity = row.quantity
        for prefix in ("grad/vla", "grad/base_model", "grad/action_head", "grad/eos_head", "grad/proprio_projector", "after3", "losses"):
            quantity = prefix if quantity.startswith(prefix) else quantity
        quantity = "hidden_states" if quantity.startswith("hidden_states_") else quantity.rstrip("0123456789").split("/model.")[0]
        quantity = "step*" if row.quantity.startswith("step") else quantity
        before = groups.get((row.case, quantity))
        if before is None or not row.error <= before.error:
            groups[row.case, quantity] = row
    return [row._replace(quantity=quantity) for (_, quantity), row in groups.items()]


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| case | quantity | max error | tolerance | |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        lines.append(f"| {row.case} | {row.quantity} | {row.error:.2g} | {row.tolerance:g} {row.kind} | {'' if row.passed else 'FAILED'} |")
    return "\n".join(lines)


def static_layout(ids: np.ndarray, mask: np.ndarray, action_tokens: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded text in the layout of eosjax: padded between the prompt and the empty token, `PADDING` more than needed.

    Raises:
        ValueError: a row does not end with the action tokens and one stop token: it was recorded with the label in its input.
    """
    length = int(mask.sum(axis=1).max()) + PADDING
    tails = {tuple(row[seen][[-action_tokens - 2, -1]]) for row, seen in zip(ids, mask, strict=True)}
    if len(tails) != 1:
        raise ValueError(f"expected the same empty token and stop token in every row, got {sorted(tails)}")
    out, seen_out = np.full((len(ids), length), pad_id, np.int32), np.ones((len(ids), length), bool)
    for row, seen, target, target_mask in zip(ids, mask, out, seen_out, strict=True):
        prompt, tail = np.split(row[seen], [int(seen.sum()) - action_tokens - 2])
        target[: len(prompt)], target[-len(tail) :] = prompt, tail
        target_mask[len(prompt) : -len(tail)] = False
    return out, seen_out


def _prepare(model: Model, golden: dict[str, np.ndarray]) -> tuple[OpenVLA, dict[str, Any], Inputs]:
    """The policy, its variables and its inputs for one recorded case."""
    config, params, proprio = model.config, model.params, golden.get("proprio")
    if proprio is not None:
        config = dataclasses.replace(config, proprio_dim=proprio.shape[-1])
        params = params | {"proprio_projector": model.parts["proprio_projector"]}
    views = golden["vision_patches"].shape[1] // config.dino.num_patches
    images = np.stack([golden["raw_images"][..., 3 * view : 3 * view + 3] for view in range(views)], axis=1)
    text = static_layout(golden["input_ids"], golden["attention_mask"].astype(bool), config.action_tokens, model.pad_id)
    return (
        OpenVLA(config),
        {"params": params},
        Inputs(images, *text, np.zeros((len(images), 0), np.float32) if proprio is None else proprio),
    )


@functools.partial(jax.jit, static_argnums=0)
def _forward(policy: OpenVLA, variables: Any, parts: Any, inputs: Inputs, golden: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Every quantity that is recorded for the real tokens; `seen`: which tokens these are."""
    config, width = policy.config, policy.config.dino.width
    features = _call(policy, variables, inputs.images, method="vision_features")
    states = all_hidden_states(policy, variables, *inputs)
    embeds, seen = policy.apply(variables, *inputs, method="embed")
    hidden = _call(policy, variables, *inputs)
    predicted = _call(_action_head(parts["action_head"]), {"params": parts["action_head"]}, hidden)
    error = jnp.abs(predicted - golden["actions"])
    head = _eos_head(parts["eos_head"])
    eos_logits = _call(head, {"params": parts["eos_head"]}, hidden)
    balanced = golden["eos_balanced_hidden"].reshape(-1, config.action_dim, hidden.shape[-1])
    balanced_logits = _call(head, {"params": parts["eos_head"]}, balanced)
    balanced_loss = balanced_bce(balanced_logits, golden["eos_balanced_labels"], jnp.ones(len(balanced)))
    quantities = {
        "seen": seen,
        "states": states,
        "embeds": embeds,
        "token_ids": jnp.argmax(_call(policy, variables, states[-1], method="logits"), -1),
        "vision_patches": features,
        "dino_features_image0": features[:, : config.dino.num_patches, :width],
        "siglip_features_image0": features[:, : config.dino.num_patches, width:],
        "projected_patches": _call(policy, variables, features, method="project"),
        "actions_hidden_states": hidden.reshape(len(hidden), -1, hidden.shape[-1]),
        "predicted_actions": predicted,
        "l1_loss": error.mean(),
        "curr_action_l1_loss": error[:, 0].mean(),
        "next_actions_l1_loss": error[:, 1:].mean(),
        "eos_logits_all": eos_logits[..., None],
        "eos_bce_all": balanced_bce(eos_logits.ravel(), golden["eos_labels"].ravel(), jnp.ones(eos_logits.size)),
        "eos_balanced_logits": balanced_logits,
        "eos_bce_balanced": balanced_loss,
        "total_loss": error.mean() + LAMBDA_EOS * balanced_loss,
    }
    if config.proprio_dim:
        quantities["proprio_features"] = _call(policy, variables, inputs.proprio, method="embed_proprio")
    return quantities


def _named(trained: Any, config: VLAConfig) -> dict[str, np.ndarray]:
    """Arrays of the trained parts under the names of the recording."""
    adapter = {name.removesuffix("weight") + "default.weight": x for name, x in export_adapter(trained["lora"], config)}
    heads = {f"{part}/{n}": x for part in ("action_head", "eos_head") for n, x in weights.export_part(part, trained[part]).items()}
    return adapter | heads


def _recorded(golden: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def _action_head(params: Any) -> ActionHead:
    return ActionHead(hidden_dim=params["fc1"]["bias"].shape[0], action_dim=params["fc2"]["bias"].shape[0])


def _eos_head(params: Any) -> EosHead:
    return EosHead(hidden_dim=params["fc1"]["bias"].shape[0])


def _call(module: Any, variables: Any, *args: Any, **kwargs: Any) -> Any:
    return module.apply(variables, *args, **kwargs)


def _apply(module: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
    return jax.jit(lambda params: module.apply({"params": params}, *args, **kwargs))(params)


def _distance(ours: Any, recorded: np.ndarray) -> float:
    if np.size(ours) != recorded.size:
        raise ValueError(f"recorded with the shape {recorded.shape}, computed with {np.shape(ours)}")
    return float(np.abs(np.reshape(ours, recorded.shape).astype(np.float64) - recorded).max())


def _absolute(case: str, quantity: str, ours: Any, recorded: np.ndarray) -> Row:
    return Row(case, quantity, _distance(ours, recorded), ABSOLUTE, "absolute")


def _relative(case: str, quantity: str, ours: Any, recorded: np.ndarray) -> Row:
    return Row(case, quantity, _distance(ours, recorded) / max(float(np.abs(recorded).max()), 1e-12), RELATIVE, "relative")


if __name__ == "__main__":
    main()
