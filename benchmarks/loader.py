"""Speed of data loading: eosjax's loader and a plain `tf.data` pipeline over the same TFRecords, or LeRobot's own over the same videos.

    python benchmarks/loader.py
    LEROBOT_PYTHON=…/bin/python python benchmarks/loader.py --against lerobot --frames 3000 --samples 3000
    python benchmarks/loader.py --samples 5000 --rounds 1
    python benchmarks/loader.py --data_root_dir DIR

The work: samples of two 256-pixel JPEG images, resized to 224 (Lanczos, antialiased) and augmented, with prompt ids, proprio and a chunk of
actions, in batches of 64. Both contenders run one after the other on the same cores, each in a process of its own. Without
`--data_root_dir` (a folder that holds libero_goal_no_noops/) a dataset is written to a cache folder first, and kept there.

* samples/s: median over windows of 10 batches, the first 5 batches left out.
* CPU ms a sample: of all threads together; hardly affected by other load on the machine.
* memory growth: the largest resident memory over that before the first batch was asked for, while batches are taken every half second, so
  that all queues are full: a training that takes longer for an update than the loader for a batch meets them so. Memory is that of all
  processes of a contender, pages that they share counted once (PSS).
* first batch: from nothing but imported modules to the first batch, at the beginning and resumed after all the samples. eosjax computes
  the position; tf.data reads everything before it again, but without decoding the images. At the first run on a machine, eosjax also
  compiles its pixel operations, which takes some seconds.

LeRobot's contender is its reader under PyTorch's `DataLoader`, with as many worker processes as eosjax has threads, and torchcodec where
it loads (it needs FFmpeg). The samples of both then have the decoded pictures at 256 pixels, neither resized nor augmented.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memory import peak_mb, resident_mb

BATCH, WINDOW, WARM_UP, SEED = 64, 10, 5, 7
# LeRobot's loader gives the pictures as they are.
PICTURES: dict[str, dict[str, Any]] = {
    "tf.data": {"image_size": 224, "image_aug": True},
    "lerobot": {"image_size": 256, "image_aug": False},
}
NAMES = {"tf.data": "libero_goal_no_noops", "lerobot": "libero_videos"}
ROOT = Path(__file__).resolve().parents[1]
Make = Callable[[int], Iterator[Any]]  # number of a batch -> the batches from there on


def eosjax_batches(args: argparse.Namespace) -> Make:
    """The batches of eosjax's `TrainLoader`."""
    import numpy as np

    from eosjax.data.frames.store import open_store
    from eosjax.data.labels import task_labels
    from eosjax.data.samples.loader import TrainLoader
    from eosjax.data.samples.mixture import LabelledDataset, Mixture, stats_of
    from eosjax.data.samples.source import SampleSource
    from eosjax.data.samples.tokens import demo_tokenizer
    from eosjax.data.sources import describe

    def make(start: int) -> Iterator[Any]:
        spec = describe(args.data_root_dir, NAMES[args.against])
        store = open_store(args.data_root_dir, NAMES[args.against], spec, args.cache_dir)
        data = Mixture([LabelledDataset(store, spec, task_labels(store), stats_of(store, spec))])
        source = SampleSource(
            data, demo_tokenizer(), np.arange(store.num_episodes), num_images=2, use_proprio=True, **PICTURES[args.against]
        )
        return iter(TrainLoader(source, BATCH, SEED, start_batch=start, threads=args.threads))

    return make


def tf_batches(args: argparse.Namespace) -> Make:
    """The batches of the `tf.data` pipeline; it is given the prompt ids and the bounds of the actions."""
    import numpy as np
    from loader_tf import batches

    with np.load(args.cache_dir / "for_tf.npz") as arrays:
        prompts = (arrays["tasks"].tolist(), arrays["input_ids"])
        bounds = (arrays["low"], arrays["high"])
    return lambda start: batches(Path(args.data_root_dir), NAMES["tf.data"], prompts, bounds, BATCH, start, SEED)


def prepare(args: argparse.Namespace) -> None:
    """Builds the frame store and leaves what the `tf.data` pipeline is given."""
    import numpy as np

    from eosjax.data.frames.store import open_store
    from eosjax.data.samples.mixture import stats_of
    from eosjax.data.samples.tokens import demo_tokenizer, evaluation_prompt
    from eosjax.data.sources import describe

    spec = describe(args.data_root_dir, NAMES[args.against])
    store = open_store(args.data_root_dir, NAMES[args.against], spec, args.cache_dir)
    stats = stats_of(store, spec).action
    tasks = sorted(set(store.tasks))
    tokenizer = demo_tokenizer()
    length = tokenizer.required_length([task.lower() for task in tasks], spec.chunk * spec.action_size)
    input_ids, _ = tokenizer.encode([evaluation_prompt(task) for task in tasks], length, spec.chunk * spec.action_size)
    np.savez(args.cache_dir / "for_tf.npz", tasks=tasks, input_ids=input_ids, low=stats.q01, high=stats.q99)


def measure(make: Make, samples: int) -> dict[str, Any]:
    """Reads `samples` samples in this process and tells how it went."""
    before = resident_mb()
    began = time.perf_counter()
    batches = make(0)
    next(batches)
    first = time.perf_counter() - began
    for _ in range(WARM_UP):
        next(batches)
    windows = max(samples // (BATCH * WINDOW), 1)
    rates, cpu_began = [], time.process_time()
    for _ in range(windows):
        began = time.perf_counter()
        for _ in range(WINDOW):
            next(batches)
        rates.append(BATCH * WINDOW / (time.perf_counter() - began))
    cpu = (time.process_time() - cpu_began) / (windows * WINDOW * BATCH)
    return {"rate": statistics.median(rates), "cpu": 1e3 * cpu, "growth": peak_mb(batches) - before, "cold": first}


def measure_resume(make: Make, samples: int) -> dict[str, Any]:
    """Time to the first batch behind `samples` samples in this process."""
    began = time.perf_counter()
    next(make(samples // BATCH))
    return {"resumed": time.perf_counter() - began}


def write_videos(args: argparse.Namespace) -> None:
    """Writes a LeRobot dataset with videos (AV1), by LeRobot's own writer."""
    import numpy as np
    from loader_scenes import TASK, episodes

    cameras = ("observation.images.image", "observation.images.image2")
    with tempfile.TemporaryDirectory(dir=args.cache_dir) as folder:
        for number, episode in enumerate(episodes(args.frames)):
            columns = dict(zip(cameras, episode.views, strict=True)) | {"observation.state": episode.states, "action": episode.actions}
            np.savez(Path(folder) / f"{number:06d}.npz", task=np.array(TASK), allow_pickle=False, **columns)
        target = args.data_root_dir / NAMES["lerobot"]
        run_lerobot("write", folder, target, "--fps", "20", "--robot_type", "panda", "--codec", "libsvtav1")


def run_lerobot(*command: str | Path) -> str:
    """What a command of benchmarks/lerobot_io.py prints."""
    python = os.environ.get("LEROBOT_PYTHON")
    if python is None:
        raise SystemExit("--against lerobot: set LEROBOT_PYTHON to the Python of an environment with the package lerobot")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    arguments = [python, str(ROOT / "benchmarks/lerobot_io.py"), *map(str, command)]
    return subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout


def run_contender(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """One measurement of a contender."""
    if name == "lerobot":
        folder = args.data_root_dir / NAMES["lerobot"]
        return json.loads(run_lerobot("load", folder, "--samples", str(args.samples), "--workers", str(args.threads)).splitlines()[-1])
    return run_child(args, f"{name} run") | run_child(args, f"{name} resume")


CONTENDERS = {"eosjax": eosjax_batches, "tf.data": tf_batches}
ROWS = {
    "rate": ("samples/s", "{:.0f}", "x{:.2f}"),
    "cpu": ("CPU ms a sample", "{:.2f}", "x{:.2f}"),
    "growth": ("memory growth, MB", "{:.0f}", "x{:.2f}"),
    "cold": ("first batch, cold, s", "{:.2f}", "x{:.2f}"),
    "resumed": ("first batch, resumed, s", "{:.2f}", "x{:.2f}"),
}


def run_child(args: argparse.Namespace, task: str) -> dict[str, Any]:
    """Runs one task of this file in a process of its own and returns what it found out."""
    command = [sys.executable, __file__, "--task", task, "--data_root_dir", str(args.data_root_dir), "--cache_dir", str(args.cache_dir)]
    command += ["--samples", str(args.samples), "--frames", str(args.frames), "--threads", str(args.threads), "--against", args.against]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, encoding="utf-8")
    return json.loads(child.stdout.splitlines()[-1])


def do_task(args: argparse.Namespace) -> dict[str, Any]:
    """The work of a child process."""
    if args.task == "synthesise":
        from loader_tf import synthesise

        synthesise(args.data_root_dir, args.frames)
        return {}
    if args.task == "write_videos":
        write_videos(args)
        return {}
    if args.task == "prepare":
        prepare(args)
        return {}
    contender, kind = args.task.split()
    return (measure if kind == "run" else measure_resume)(CONTENDERS[contender](args), args.samples)


def main(args: argparse.Namespace) -> None:
    """Measures all contenders `--rounds` times in turn and prints medians."""
    args.cache_dir = args.cache_dir or Path(tempfile.gettempdir()) / "eosjax_loader_benchmark"
    args.cache_dir.mkdir(parents=True, exist_ok=True)
    if args.data_root_dir is None:
        made = {"tf.data": "rlds", "lerobot": "lerobot"}[args.against]
        args.data_root_dir = args.cache_dir / f"{made}-{args.frames}"
        if not args.data_root_dir.exists():
            final, args.data_root_dir = args.data_root_dir, args.cache_dir / f".{made}-{os.getpid()}"
            print(f"writing {args.frames} frames to {final}", flush=True)
            run_child(args, "synthesise" if args.against == "tf.data" else "write_videos")
            os.replace(args.data_root_dir, final)
            args.data_root_dir = final
    run_child(args, "prepare")
    names = ("eosjax", args.against)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _, name in itertools.product(range(args.rounds), names):
        found[name].append(run_contender(args, name))
        print(name, {key: round(value, 2) for key, value in found[name][-1].items()}, flush=True)
    cores = len(os.sched_getaffinity(0))
    print(f"\n{args.samples} samples, batch {BATCH}, {cores} cores, medians of {args.rounds} round(s)")
    print(f"{'':<26}" + "".join(f"{name:>12}" for name in names) + f"{'ratio':>12}")
    for key, (title, number, ratio) in ROWS.items():
        if key not in found[args.against][0]:
            continue
        ours, theirs = (statistics.median(each[key] for each in found[name]) for name in names)
        print(f"{title:<26}{number.format(ours):>12}{number.format(theirs):>12}{ratio.format(ours / theirs):>12}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=sorted(NAMES), default="tf.data", help="the other contender")
    parser.add_argument(
        "--data_root_dir", type=Path, help="folder with libero_goal_no_noops/ (TFRecord) or libero_videos/; default: one is written"
    )
    parser.add_argument("--cache_dir", type=Path, help="folder of what is written; default: in the system's temporary folder")
    parser.add_argument("--samples", type=int, default=20_000, help="samples that each contender reads")
    parser.add_argument("--frames", type=int, default=20_000, help="frames of the dataset that is written")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of eosjax's loader")
    parser.add_argument("--rounds", type=int, default=1, help="how often each contender is measured")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.task:
        print(json.dumps(do_task(parsed)))
    else:
        main(parsed)
