"""How long does it take to load the real model, and how much memory? A checkpoint of the shape of openvla-7b with random weights.

    python benchmarks/pretrained.py DIR

The checkpoint (15 GB of bfloat16 in shards of at most 5 GB, with `config.json`) is written to DIR/openvla-7b-random unless it is there.
Then, in a process of its own, its base weights are loaded as `train.py` loads them, and one image with a text of 96 tokens goes through the
model. Reported are the seconds of both, and the largest resident set while loading: what of it is beyond the weights themselves, in
relation to the largest shard (to stay below 1.3). Linux; needs 20 GB of memory. Exit status 1 beyond the limit.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME, PUBLISHED_NAME = "openvla-7b-random", "openvla/openvla-7b"
SHARD_BYTES = 5_000_000_000
TEXT_LENGTH, LIMIT = 96, 1.3
# For CPUs alone XLA makes float32 copies of all bfloat16 weights ahead of the loop over the layers.
COMPILER_OPTIONS = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def write_checkpoint(folder: Path) -> None:
    """Writes random weights in the layout of `PUBLISHED_NAME`; the folder appears when it is whole."""
    import ml_dtypes
    import numpy as np
    from flax.traverse_util import flatten_dict
    from tqdm import tqdm

    from eosjax.models.hf.config import PUBLISHED, vla_config_from_hf
    from eosjax.models.hf.export import write_shards
    from eosjax.models.hf.files import write_json
    from eosjax.models.hf.table import weight_table
    from eosjax.models.hf.weights import abstract_variables

    config = vla_config_from_hf(PUBLISHED[PUBLISHED_NAME])
    shapes: dict[Any, Any] = dict(flatten_dict(abstract_variables(config)["params"]))
    rng = np.random.default_rng(0)
    # One stretch of numbers, cut anew for each tensor: drawing 7.5 billion of them would take longer than all the rest.
    pool = (0.02 * rng.standard_normal(1 << 27, np.float32)).astype(ml_dtypes.bfloat16)

    def draw(shape: tuple[int, ...]) -> Any:
        start = int(rng.integers(len(pool)))
        return np.resize(np.roll(pool[: 1 << 20], start), shape) if math.prod(shape) < 1 << 20 else np.resize(pool[start:], shape)

    def tensors() -> Iterator[tuple[str, Any]]:
        for entry in tqdm(weight_table(config), "writing random weights", unit="array", disable=not sys.stderr.isatty()):
            shape = shapes[entry.path].shape[1 if entry.stacked else 0 :]
            # The checkpoint holds one more block of each encoder than the model runs.
            last = [re.sub(r"\d+", lambda i: str(int(i[0]) + 1), entry.names[-1], count=1)] if ".blocks." in entry.names[0] else []
            for name in (*entry.names, *last):
                yield name, np.ascontiguousarray(entry.op.to_hf(draw(shape)))

    scratch = folder.with_name(f".{folder.name}")
    scratch.mkdir(parents=True, exist_ok=True)
    write_shards(tensors(), scratch, SHARD_BYTES)
    write_json(scratch / "config.json", PUBLISHED[PUBLISHED_NAME])
    scratch.rename(folder)


def resident(which: str) -> int:
    """Bytes that Linux counts for this process: `VmRSS` now, `VmHWM` at most so far."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) * 1024


def measure(folder: Path) -> dict[str, Any]:
    """Loads the checkpoint and runs the model once."""
    import jax
    import numpy as np

    from eosjax.models.hf.pretrained import Pretrained
    from eosjax.models.openvla import OpenVLA

    jax.devices()
    before, started = resident("VmRSS"), time.perf_counter()
    checkpoint = Pretrained(folder)
    config = checkpoint.vla_config(dtype="bfloat16", param_dtype="bfloat16", remat=True)
    params, report = checkpoint.load_base(config, lambda _, array: jax.device_put(array))
    jax.block_until_ready(params)
    result = {"load_s": time.perf_counter() - started, "tensors": len(report.used)}
    result |= {"before": before, "peak": resident("VmHWM"), "largest": checkpoint.tensors.largest_file}
    result["weights"] = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    images = np.random.default_rng(0).integers(0, 256, (1, 1, 224, 224, 3), dtype=np.uint8)
    inputs = (images, np.full((1, TEXT_LENGTH), 7, np.int32), np.ones((1, TEXT_LENGTH), bool), np.zeros((1, 0), np.float32))
    run = jax.jit(lambda params: OpenVLA(config).apply({"params": params}, *inputs), compiler_options=COMPILER_OPTIONS)
    for name in ("first_s", "again_s"):
        started = time.perf_counter()
        hidden = np.asarray(run(params), np.float32)
        result[name] = time.perf_counter() - started
    assert hidden.shape == (1, config.chunk, config.action_dim, config.llama.width)
    assert np.isfinite(hidden).all()
    return result | {"peak_all": resident("VmHWM")}


def main() -> None:
    """Prints a line a quantity; exit status 1 if loading takes more memory than it may."""
    parser = argparse.ArgumentParser(description="Time and memory of loading a 7B checkpoint, and of one pass through it.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the checkpoint is, or is written: 15 GB")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    checkpoint = arguments.folder / NAME
    if arguments.measure:
        print(json.dumps(measure(checkpoint)))
        return
    if not checkpoint.is_dir():
        write_checkpoint(checkpoint)
    output = subprocess.run(
        [sys.executable, __file__, arguments.folder, "--measure"], stdout=subprocess.PIPE, check=True, encoding="utf-8"
    ).stdout
    found = json.loads(output.splitlines()[-1])
    beyond = found["peak"] - found["before"] - found["weights"]
    print(f"tensors used                   {found['tensors']}")
    print(f"weights                        {found['weights'] / 1e9:.2f} GB")
    print(f"loading                        {found['load_s']:.0f} s")
    print(f"peak while loading             {found['peak'] / 1e9:.2f} GB")
    share = f"{beyond / found['largest']:.2f} of the largest shard, {found['largest'] / 1e9:.2f} GB"
    print(f"  beyond the weights           {beyond / 1e9:.2f} GB ({share})")
    print(f"one pass, with compilation     {found['first_s']:.0f} s")
    print(f"one pass                       {found['again_s']:.1f} s")
    print(f"peak with the passes           {found['peak_all'] / 1e9:.2f} GB")
    sys.exit(beyond > LIMIT * found["largest"])


if __name__ == "__main__":
    main()
