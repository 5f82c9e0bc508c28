"""Demonstrations by a scripted expert, collected into a TFDS/RLDS dataset with its label file.

Every episode depends on the settings and its number alone, so that several processes may make them in any order, and an interrupted
collection goes on where it was. Finished episodes wait in a hidden folder of the output until all are there.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eosjax.data.process import exit_with, run_module
from eosjax.data.rlds.write import LABELS_FILE, Recorded, write_dataset
from eosjax.demo.expert import Style
from eosjax.demo.recordings import Recording, record, recorded
from eosjax.demo.render import SIZE
from eosjax.demo.table import Luck
from eosjax.documents import read_json
from eosjax.types import UserError

DATASET_NAME = "demo_table"
ATTEMPTS_FILE, SETTINGS_FILE = "attempts.json", "collect.json"
FAILURES = ("missed", "lost", "beside")  # a grasp that slips, one that holds for a while, a block that is put beside the plate
_PARTS = ".episodes"  # in the output, until it is complete
_TEXTS = ("file_path", "task", "plan", "verbs")
_KIND = 3  # tells the random numbers of an episode's kind from others with its seed


class Settings(NamedTuple):
    """What decides the episodes."""

    env: str
    episodes: int
    seed: int
    failures: float  # share of the attempts that go wrong


def collect(out: Path, settings: Settings, processes: int) -> dict[str, int]:
    """Collects the dataset into `out`, or what is missing of it; how many attempts of each kind it has.

    Raises:
      UserError: the folder has another collection, or something else.
    """
    parts = _prepare(out, settings)
    missing = [number for number in range(settings.episodes) if not _part(parts, number).exists()]
    if not (out / LABELS_FILE).exists():
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(_make, parts, settings, number) for number in missing]
            try:
                shown = tqdm(as_completed(jobs), "collecting", len(jobs), unit="episode", disable=not sys.stderr.isatty())
                for job in shown:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        _assemble(out, parts, settings)
    attempts = read_json(out / ATTEMPTS_FILE).values()
    kinds = ("demonstration", *FAILURES)
    return {kind: sum(each["kind"] == kind for each in attempts) for kind in kinds}


def attempt(settings: Settings, number: int) -> tuple[str, Recording]:
    """The kind of an episode, and the episode."""
    seed = (settings.seed, number)
    rng = np.random.default_rng((*seed, _KIND))
    kind = str(rng.choice(FAILURES)) if rng.random() < settings.failures else "demonstration"
    luck, style = {
        "demonstration": (Luck(), Style()),
        "missed": (Luck(slip=1.0), Style(tries=int(rng.integers(1, 3)))),
        "lost": (Luck(slip=0.0, lose=1.0), Style()),
        "beside": (Luck(), Style(beside=True)),
    }[kind]
    return kind, record(seed, luck, style)


def _prepare(out: Path, settings: Settings) -> Path:
    """The folder of the finished episodes of `out`, which may be new."""
    path, wanted = out / SETTINGS_FILE, settings._asdict()
    if path.exists():
        found = read_json(path)
        if found != wanted:
            raise UserError(
                f"--out {out}: has another collection: expected {wanted} in {SETTINGS_FILE}, it has {found}; choose another folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: expected a new or empty folder, or one with a collection to go on with")
    try:
        parts = out / _PARTS
        if not (out / LABELS_FILE).exists():
            parts.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
    return parts


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:05d}.npz"


def _make(parts: Path, settings: Settings, number: int) -> None:
    """Makes an episode and keeps it."""
    kind, recording = attempt(settings, number)
    mark = "" if kind == "demonstration" else f"-{kind}"
    episode = recorded(recording, f"{DATASET_NAME}/{settings.seed}/{number:05d}{mark}.hdf5")
    texts = json.dumps({"kind": kind, "success": recording.success} | {name: getattr(episode, name) for name in _TEXTS})
    views = {name: getattr(episode, name) for name in ("images", "wrist_images")}
    arrays = {name: value for name, value in episode._asdict().items() if name not in (*_TEXTS, *views)}
    for name, pictures in views.items():
        arrays[name] = np.frombuffer(b"".join(pictures), np.uint8)
        arrays[f"{name}_sizes"] = np.array([len(each) for each in pictures])
    temporary = parts / f".{number:05d}.{os.getpid()}.npz"
    np.savez(temporary, texts=np.array(texts), **arrays)
    os.replace(temporary, _part(parts, number))


def _load(path: Path) -> tuple[dict[str, object], Recorded]:
    """The mark of a kept episode, and the episode."""
    with np.load(path) as file:
        arrays = dict(file)
    texts = json.loads(str(arrays.pop("texts")))
    mark = {name: texts.pop(name) for name in ("kind", "success")}
    for name in ("images", "wrist_images"):
        ends = np.cumsum(arrays.pop(f"{name}_sizes")).tolist()
        content = arrays[name].tobytes()
        arrays[name] = [content[first:last] for first, last in zip([0, *ends], ends, strict=False)]
    return mark, Recorded(**texts, **arrays)


def _assemble(out: Path, parts: Path, settings: Settings) -> None:
    """Writes the dataset from its episodes in a process that loads TensorFlow; the label file comes last."""
    scratch = out / ".dataset"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    run_module("eosjax.envs.collect", scratch, parts, str(settings.episodes))
    shutil.rmtree(out / DATASET_NAME, ignore_errors=True)
    for name in (DATASET_NAME, ATTEMPTS_FILE, LABELS_FILE):
        os.replace(scratch / name, out / name)
    shutil.rmtree(scratch)
    shutil.rmtree(parts)


def _write(folder: Path, parts: Path, episodes: int) -> None:
    marks: dict[str, object] = {}

    def read():
        for number in tqdm(range(episodes), "writing", unit="episode", disable=not sys.stderr.isatty()):
            mark, episode = _load(_part(parts, number))
            marks[episode.file_path] = mark
            yield episode

    write_dataset(folder, DATASET_NAME, "eosjax.envs.collect", SIZE, episodes, read())
    (folder / ATTEMPTS_FILE).write_text(json.dumps(marks, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    exit_with(functools.partial(_write, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
