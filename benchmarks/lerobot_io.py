"""Writes and reads datasets with the package `lerobot`, in an environment of its own: its versions of other packages differ from ours.

    python benchmarks/lerobot_io.py write EPISODES FOLDER --fps 10 --robot_type so101_follower [--codec h264]
    python benchmarks/lerobot_io.py read FOLDER OUT.npz
    python benchmarks/lerobot_io.py load FOLDER --samples 2000 --workers 2

`write` makes a dataset of version 3 from a folder of `*.npz` files, one an episode: `task`, and the features by name, pictures as
u8 [t h w 3] and numbers as f32 [t n]. With `--codec` pictures become videos, otherwise PNG files in Parquet. `read` stores every item that
its reader gives. `load` measures its reader under a `DataLoader` of PyTorch, and prints JSON.
"""

import argparse
import importlib
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]
from memory import peak_mb, resident_mb

REPO = "made/here"
BATCH, WINDOW, WARM_UP, CHUNK = 64, 10, 5, 8


def write(args: argparse.Namespace) -> None:
    """Writes the episodes with LeRobot's own writer."""
    files = sorted(args.episodes.glob("*.npz"))
    with np.load(files[0]) as first:
        features = {key: _feature(first[key], args.codec) for key in first.files if key != "task"}
    coded: dict[str, Any] = {"vcodec": args.codec} if args.codec else {}
    dataset = LeRobotDataset.create(
        REPO, args.fps, features, root=args.folder, robot_type=args.robot_type, use_videos=bool(args.codec), **coded
    )
    for file in files:
        with np.load(file) as episode:
            columns = {key: episode[key] for key in features}
            task = str(episode["task"])
        for step in range(len(next(iter(columns.values())))):
            dataset.add_frame({key: column[step] for key, column in columns.items()} | {"task": task})
        dataset.save_episode()
    dataset.finalize()


def _feature(values: np.ndarray, codec: str | None) -> dict:
    if values.ndim == 4:
        return {"dtype": "video" if codec else "image", "shape": values.shape[1:], "names": ["height", "width", "channels"]}
    return {"dtype": "float32", "shape": values.shape[1:], "names": [f"{number}" for number in range(values.shape[1])]}


def read(args: argparse.Namespace) -> None:
    """Stores what LeRobot's own reader gives, item by item."""
    dataset = LeRobotDataset(REPO, root=args.folder, video_backend="pyav")
    items = [dataset[index] for index in range(len(dataset))]
    columns = {key: np.stack([item[key].numpy() for item in items]) for key, value in items[0].items() if torch.is_tensor(value)}
    columns |= {key: np.array([item[key] for item in items]) for key, value in items[0].items() if isinstance(value, str)}
    np.savez(args.out, allow_pickle=False, **columns)


def load(args: argparse.Namespace) -> None:
    """Measures shuffled batches with a chunk of actions, as they come from LeRobot's reader."""
    before = resident_mb()
    began = time.perf_counter()
    info = json.loads((args.folder / "meta/info.json").read_text(encoding="utf-8"))
    action = "actions" if "actions" in info["features"] else "action"
    delta = {action: [step / info["fps"] for step in range(CHUNK)]}
    dataset = LeRobotDataset(REPO, root=args.folder, video_backend=_fastest_backend(), delta_timestamps=delta)
    workers = {"num_workers": args.workers, "persistent_workers": args.workers > 0}
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, drop_last=True, **workers)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
    next(batches)
    cold = time.perf_counter() - began
    for _ in range(WARM_UP):
        next(batches)
    rates = []
    for _ in range(max(args.samples // (BATCH * WINDOW), 1)):
        began = time.perf_counter()
        for _ in range(WINDOW):
            next(batches)
        rates.append(BATCH * WINDOW / (time.perf_counter() - began))
    print(json.dumps({"rate": statistics.median(rates), "growth": peak_mb(batches) - before, "cold": cold}))


def _fastest_backend() -> str:
    """Torchcodec, LeRobot's default, where it finds the FFmpeg of the system; else PyAV."""
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError):
        return "pyav"
    return "torchcodec"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("write")
    command.set_defaults(do=write)
    command.add_argument("episodes", type=Path)
    command.add_argument("folder", type=Path)
    command.add_argument("--fps", type=int, required=True)
    command.add_argument("--robot_type", required=True)
    command.add_argument("--codec", help="such as h264, hevc or libsvtav1")
    command = commands.add_parser("read")
    command.set_defaults(do=read)
    command.add_argument("folder", type=Path)
    command.add_argument("out", type=Path)
    command = commands.add_parser("load")
    command.set_defaults(do=load)
    command.add_argument("folder", type=Path)
    command.add_argument("--samples", type=int, default=2000)
    command.add_argument("--workers", type=int, default=2)
    parsed = parser.parse_args()
    parsed.do(parsed)
