"""Cuts the recorded arrays in this folder from the complete recording, and brings them back to the layout of that recording.

    python tests/golden/cut.py RECORDING [OUT]

RECORDING is the folder with `tiny32k` and `data`; OUT is this folder by default. The README here says what each file is.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

SMALL = Path(__file__).parent
MODEL = "tiny32k"
DATA = (
    "action_tokenizer_V512.npz",
    "action_tokenizer_V32000.npz",
    "chunk_act_obs.npz",
    "digitize_f32.npz",
    "episode_id_bug.json",
    "norm_stats.json",
    "normalize_tf.npz",
    "substep_lookup.json",
    "unnormalize.npz",
)
WHOLE = (  # of the model, kept as they are
    "checkpoint/config.json",
    "checkpoint/preprocessor_config.json",
    "lora_adapter/adapter_config.json",
    "action_head.safetensors",
    "eos_head.safetensors",
    "proprio_projector.safetensors",
    "bf16_img2_proprio1.npz",
    "lora.npz",
)
FORWARD = ("fwd_img1_proprio0", "fwd_img2_proprio1")
WITH_GRADIENTS = "fwd_img2_proprio1"
LARGEST_GRADIENT = 60_000  # bytes: those of larger tensors are left out
# Of a recorded pass: `pixel_values` and what only the loss of the language model needs are left out, and arrays that repeat another one.
NOT_OF_A_PASS = {"pixel_values", "hidden_states_0", "last_hidden_state", "mm_labels", "labels", "lm_loss", "e2e_total"}
NOT_OF_A_PREDICTION = {"pixel_values", "mm_embeds", "mm_attention_mask", "layer_actions"}
PLACEHOLDER = 1  # the id that stands for an action in our text
EMBEDDING, OUTPUT = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
# Tensors that the model leaves aside: the last block and norm of both encoders, the attention pool, what an adapter stands on.
UNUSED = ("blocks.2.", "featurizer.norm.", "attn_pool.", "base_layer.")


class Rows(NamedTuple):
    """Which rows of a tensor are kept, and what the others are filled with."""

    kept: np.ndarray
    fill: float


def cut(recording: Path, out: Path) -> None:
    """Writes the small form of a recording to a folder; files that are there already are replaced."""
    model, small = recording / MODEL, out / MODEL
    for folder in ("checkpoint", "lora_adapter"):
        (small / folder).mkdir(parents=True, exist_ok=True)
    (out / "data").mkdir(exist_ok=True)
    for name in DATA:
        shutil.copyfile(recording / "data" / name, out / "data" / name)
    for name in WHOLE:
        shutil.copyfile(model / name, small / name)
    seen, answered = {PLACEHOLDER, json.loads((model / "checkpoint" / "config.json").read_text())["pad_token_id"]}, set[int]()
    for name in (*FORWARD, "predict_action"):
        arrays = np.load(model / f"{name}.npz")
        seen |= set(arrays["input_ids"].ravel().tolist())
        answered |= set(arrays["lm_logits_argmax"].ravel().tolist()) if name in FORWARD else set()
        np.savez_compressed(small / f"{name}.npz", **{key: arrays[key] for key in arrays.files if _is_kept(name, arrays[key], key)})
    steps = np.load(model / "adamw_eos_head.npz")
    kept = [key for key in steps.files if not key.endswith("model.0.weight") or key.startswith("step4/")]
    np.savez_compressed(small / "adamw_eos_head.npz", **{key: steps[key] for key in kept})

    def rows(name: str, tensor: np.ndarray) -> Rows | None:
        if any(part in name for part in UNUSED):
            return Rows(np.zeros(0, int), np.nan)
        if name == EMBEDDING:
            return Rows(np.array(sorted(seen)), np.nan)
        if name == OUTPUT:
            return Rows(np.array(sorted(answered)), 0.0)
        if name.endswith("lm_head.lora_B.weight"):
            return Rows(np.zeros(0, int), 0.0)
        return None

    _cut_tensors(model / "checkpoint" / "model.safetensors", small / "checkpoint" / "model.npz", rows)
    _cut_tensors(model / "lora_adapter" / "adapter_model.safetensors", small / "lora_adapter" / "adapter_model.npz", rows)
    tokenizer = json.loads((model / "checkpoint" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: number for token, number in vocabulary.items() if token != _filler(number)}
    text = json.dumps(tokenizer, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n"
    (small / "checkpoint" / "tokenizer.json").write_text(text, encoding="utf-8")


def expand(small: Path, out: Path) -> None:
    """Writes a small form in the layout of a recording to a new folder: with files of safetensors, and a vocabulary of full size."""
    shutil.copytree(small / "data", out / "data")
    shutil.copytree(small / MODEL, out / MODEL)
    base, adapter = out / MODEL / "checkpoint" / "model.npz", out / MODEL / "lora_adapter" / "adapter_model.npz"
    tensors = {path: _whole_tensors(path) for path in (base, adapter)}
    # PEFT stored the output layer of the base beside its branch; a reader must find the same in both files.
    tensors[adapter]["base_model.model.language_model.lm_head.base_layer.weight"] = tensors[base][OUTPUT]
    for path, arrays in tensors.items():
        save_file(arrays, path.with_suffix(".safetensors"), metadata={"format": "pt"})
        path.unlink()
    path = out / MODEL / "checkpoint" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    token_of = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    whole = {token_of.get(number, _filler(number)): number for number in range(max(token_of) + 1)}
    tokenizer["model"]["vocab"] = whole
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _is_kept(case: str, array: np.ndarray, key: str) -> bool:
    """Whether an array of a recorded pass, or of the recorded predictions, is kept."""
    if case not in FORWARD:
        return key.split("/")[-1] not in NOT_OF_A_PREDICTION
    if key.startswith("grad/"):
        return case == WITH_GRADIENTS and array.nbytes <= LARGEST_GRADIENT
    return key not in NOT_OF_A_PASS and not key.startswith("grad_e2e/")


def _cut_tensors(path: Path, out: Path, rows: Callable[[str, np.ndarray], Rows | None]) -> None:
    """A cut tensor is stored as `<name>:kept`, `:values`, `:shape` and `:fill`, any other one under its name."""
    arrays = {}
    for name, tensor in load_file(path).items():
        chosen = rows(name, tensor)
        if chosen is None:
            arrays[name] = tensor
        else:
            kept = chosen.kept.astype(np.int32)
            arrays |= {f"{name}:kept": kept, f"{name}:values": tensor[kept], f"{name}:shape": np.array(tensor.shape, np.int32)}
            arrays[f"{name}:fill"] = np.float32(chosen.fill)
    np.savez_compressed(out, **arrays)


def _whole_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that `_cut_tensors` wrote, with the rows that are not kept filled in."""
    arrays = dict(np.load(path))
    tensors = {name: array for name, array in arrays.items() if ":" not in name}
    for name in [key.removesuffix(":kept") for key in arrays if key.endswith(":kept")]:
        tensors[name] = np.full(arrays[f"{name}:shape"], arrays[f"{name}:fill"], np.float32)
        tensors[name][arrays[f"{name}:kept"]] = arrays[f"{name}:values"]
    return tensors


def _filler(number: int) -> str:
    """The token of an id to which the recorded vocabulary gives no text of its own."""
    return f"<filler{number}>"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python tests/golden/cut.py RECORDING [OUT]")
    cut(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else SMALL)
