"""Writes the policy of a training run in a form that PyTorch code reads: its heads alone, with a PEFT adapter, or as a whole checkpoint.

Every format has the heads and projectors in files named as in OpenVLA-OFT, dataset_statistics.json, and eos_calibration.json, which
describes how raw EOS logits become probabilities and decisions. "peft" adds the LoRA adapter. "merged" adds the base model with the
adapter (or the trained weights) merged in, with tokenizer and configuration: a folder for --vla_path."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm

from eosjax.cli.common import add_boolean_flag, to_path
from eosjax.cli.trained import add_checkpoint_flags, load
from eosjax.config import DEMO_MODEL
from eosjax.data.stats import STATS_FILE, save_stats
from eosjax.ends.calibration import trained_prior
from eosjax.ends.operating_points import OperatingPoint
from eosjax.models.film import join_film
from eosjax.models.hf import export, film, weights
from eosjax.models.hf.adapter import write_adapter
from eosjax.models.hf.files import write_json
from eosjax.models.hf.part_files import FILM_FILE, PARTS
from eosjax.models.hf.table import layout_of
from eosjax.runs.load import SavedRun, check_base, open_base
from eosjax.types import UserError

CALIBRATION_FILE = "eos_calibration.json"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    add_checkpoint_flags(parser)
    parser.add_argument("--out", type=to_path, required=True, metavar="DIR", help="folder to write; it must not exist, or be empty")
    parser.add_argument("--format", choices=("peft", "merged", "heads"), required=True, help="what to write beside the heads")
    add_boolean_flag(parser, "--torch", "write the heads as .pt files, which OpenVLA-OFT reads; needs torch (else: safetensors)")
    parser.add_argument("--max_shard_gb", type=float, default=5.0, metavar="GB", help="largest file of --format merged (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Writes the folder as a whole or not at all."""
    if args.torch and importlib.util.find_spec("torch") is None:
        raise UserError("--torch: torch is not installed; install it, or leave the flag out to get safetensors files")
    if not args.max_shard_gb > 0:
        raise UserError(f"--max_shard_gb: expected more than 0, got {args.max_shard_gb}")
    with _new_folder(args.out) as folder:
        saved = load(args, with_base=False)
        if args.format == "peft":
            _write_adapter(saved, folder)
        if args.format == "merged":
            _write_merged(saved, args.vla_path, folder, int(args.max_shard_gb * 1e9))
        _write_heads(saved, args.vla_path, folder, as_torch=args.torch)
    print(f"written: {args.out} ({args.format}, step {saved.step})")
    return 0


def _write_heads(run: SavedRun, vla_path: str | None, folder: Path, *, as_torch: bool) -> None:
    for part in PARTS:
        if part in run.params:
            tensors = weights.export_part(layout_of(part, run.vla_config), run.params[part])
            export.write_part(folder, part, tensors.items(), run.step, as_torch=as_torch)
    if "film" in run.params:
        export.write_part(folder, FILM_FILE, _vision_with_film(run, vla_path), run.step, as_torch=as_torch)
    save_stats(folder / STATS_FILE, {each.name: each.statistics for each in run.record.run.datasets})
    if (point := run.operating_point) is not None:
        write_json(folder / CALIBRATION_FILE, _calibration(run, point))


def _calibration(run: SavedRun, point: OperatingPoint) -> dict[str, Any]:
    """Everything between a raw logit and a decision, for code that does not have this package."""
    share = run.record.run.share_of_ends
    return {
        "formula": (
            "logit p = scale * (f + shift) + bias, where f = z, the raw logit, if gamma is 0, and otherwise "
            "f = (1 + gamma) z + log(1 + gamma e^-z log(1 + e^z)) - log(1 + gamma e^z log(1 + e^-z)); "
            "a sub-step ends where q has reached threshold at debounce steps in a row, not before its min_steps and at the latest at its "
            "time_out; q is p, or, if cumulative, 1 less the product of 1 - p over the actions of the chunk up to this one; "
            "where steps are not counted, with the first action whose p reaches plain_threshold"
        ),
        "trained_prior": trained_prior(run.config, share),
        "true_prior": share,
        "eos_loss": run.config.eos_loss,
        **point.to_json()["calibration"],
        **point.to_json()["rule"],
        "plain_threshold": point.plain_threshold,
        "chosen_by": point.chosen_by,
        "held_out_episodes": point.episodes,
        "step": run.step,
        "chosen_at_step": run.record.validation.step if run.record.validation else None,
    }


def _vision_with_film(run: SavedRun, vla_path: str | None) -> Iterator[export.Tensor]:
    """The encoders as the original keeps them with FiLM: base weights, low-rank branches and FiLM layers together."""
    from_demo = run.config.vla_path == DEMO_MODEL
    base = {} if from_demo else open_base(run, vla_path).tensors
    params = run.params["vla"] if "vla" in run.params else film.base_vision(base, run.vla_config)
    variables = {"params": join_film(params, run.params["film"]), "lora": run.params.get("lora", {})}
    return film.export_film(variables, run.vla_config, base)


def _write_adapter(run: SavedRun, folder: Path) -> None:
    if "lora" not in run.params:
        raise UserError("--format peft: the run has no adapter, it was trained with --use_lora False; use --format merged or heads")
    write_adapter(folder, run.params["lora"], run.vla_config, run.config.vla_path)


def _write_merged(run: SavedRun, vla_path: str | None, folder: Path, max_bytes: int) -> None:
    if run.config.vla_path == DEMO_MODEL:
        raise UserError("--format merged: the demo policy comes from no checkpoint of the PyTorch side; use --format heads")
    base = open_base(run, vla_path)
    check_base(run, base)
    tensors = export.merged_tensors(base.tensors, run.vla_config, run.params)
    shown = tqdm(tensors, total=len(base.tensors), desc="writing weights", unit="tensor", disable=not sys.stderr.isatty())
    export.write_shards(shown, folder, max_bytes)
    export.copy_files(base.folder, folder)
    export.untie_output(folder)


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill beside `out`, which takes its place if nothing goes wrong and leaves no trace otherwise."""
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists; expected a folder that is new or empty")
    folder = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        os.replace(folder, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
