"""Compares ways to train the EOS head on cached hidden states: `eosjax bench eos`.

All methods share data, head, seeds and number of updates. The learning rate (from a small grid) and the thresholds are chosen for each
method on one half of the held-out episodes. All results are measured on the other half."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eosjax.bench import sweep
from eosjax.bench.methods import REFERENCE, Method, choose, with_and_without_memory
from eosjax.cli.common import to_path, write_bytes, write_text
from eosjax.reports.bench_plots import head_curves
from eosjax.reports.bench_tables import edge_of_grid, head_quality, head_training
from eosjax.reports.plots import png, svg
from eosjax.reports.tables import markdown, table
from eosjax.runs.hidden import HiddenCache, open_cache
from eosjax.types import UserError

RESULTS, SUMMARY, SETTINGS, BASELINES = "results.json", "summary.md", "settings.json", "baselines.json"
_SEEDS, _UPDATES = 5, 3000


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument("what", choices=("eos",), help="what to compare: eos = ways to train the EOS head")
    parser.add_argument("--cache", type=to_path, required=True, metavar="DIR", help="folder that `eosjax cache-hidden` wrote")
    parser.add_argument(
        "--out",
        type=to_path,
        required=True,
        metavar="DIR",
        help=f"folder for {RESULTS}, {SUMMARY} and curves; an interrupted comparison in it is continued",
    )
    parser.add_argument("--seeds", type=int, default=_SEEDS, metavar="N", help="runs of each method and learning rate (%(default)s)")
    parser.add_argument(
        "--updates", type=int, default=_UPDATES, metavar="N", help=f"updates of each head, a multiple of {sweep.SEGMENTS} (%(default)s)"
    )
    parser.add_argument("--methods", metavar="A,B", help="methods to compare (default: all)")


def run(args: argparse.Namespace) -> int:
    """Trains, measures and writes."""
    for name in ("seeds", "updates"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected 1 or more, got {getattr(args, name)}")
    if args.updates % sweep.SEGMENTS:
        raise UserError(f"--updates {args.updates}: expected a multiple of {sweep.SEGMENTS}")
    cache = open_cache(args.cache)
    settings = sweep.Settings(args.seeds, args.updates, cache.facts["batch_size"])
    methods = choose(args.methods, cache.share_of_ends)
    about = _claim(args.out, cache, settings, methods)
    bench = sweep.Bench.of(cache, settings)
    results = _run_methods(args.out, bench, methods)
    baselines = _kept(args.out / BASELINES, lambda: sweep.run_baselines(bench))
    quality, training = head_quality(results, baselines), head_training(results)
    curves = head_curves(with_and_without_memory(results), REFERENCE)
    write_bytes(args.out / "curves.png", png(curves))
    write_bytes(args.out / "curves.svg", svg(curves))
    write_text(args.out / SUMMARY, "\n\n".join([markdown(quality), markdown(training)]) + "\n")
    # The results come last: a folder that has them is complete.
    write_text(args.out / RESULTS, json.dumps({**about, "results": results, "baselines": baselines}, indent=1, allow_nan=False) + "\n")
    notes = edge_of_grid(results, settings.learning_rates)
    print("\n\n".join([table(quality), table(training), *notes, f"written: {args.out}"]))
    return 0


def _claim(out: Path, cache: HiddenCache, settings: sweep.Settings, methods: list[Method]) -> dict[str, Any]:
    """Takes the folder for this comparison, or finds it begun there; returns what is compared.

    Raises:
      UserError: the folder has results, or another comparison has been begun in it.
    """
    about = {
        "cache": dict(cache.facts),
        "seeds": settings.seeds,
        "updates": settings.updates,
        "batch": settings.batch,
        "learning_rates": list(settings.learning_rates),
        "methods": [method.name for method in methods],
        "share_of_ends": cache.share_of_ends,
    }
    if (out / RESULTS).exists():
        raise UserError(f"--out {out}: expected a folder without results, it has {RESULTS}; choose another or move it")
    begun = out / SETTINGS
    if not begun.exists():
        write_text(begun, json.dumps(about, indent=1) + "\n")
    elif json.loads(begun.read_text(encoding="utf-8")) != about:
        raise UserError(f"--out {out}: another comparison was begun there ({SETTINGS} differs); choose another folder or remove it")
    return about


def _run_methods(out: Path, bench: sweep.Bench, methods: list[Method]) -> list[dict[str, Any]]:
    """The results of all methods; those that a broken-off comparison left are read."""
    results = []
    with tqdm(total=len(methods) * bench.settings.updates, unit="update", disable=not sys.stderr.isatty()) as bar:
        for method in methods:
            bar.set_description(method.name)
            results.append(_kept(_result_file(out, method.name), lambda method=method: sweep.run_method(bench, method, bar.update)))
            bar.update(bench.settings.updates * len(results) - bar.n)
    return results


def _result_file(out: Path, method: str) -> Path:
    return out / "methods" / f"{method}.json"


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    """What the file holds, made and written first if it is not there."""
    if not path.exists():
        write_text(path, json.dumps(_jsonable(make()), indent=1, allow_nan=False) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def _jsonable(value: Any) -> Any:
    """The value with None for what is not a number."""
    if isinstance(value, dict):
        return {key: _jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
