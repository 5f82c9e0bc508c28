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
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eosjax.data.process import exit_with, run_module
from eosjax.data.rlds.write import LABELS_FILE, Recorded, write_dataset
from eosjax.documents import read_json
from eosjax.envs.attempts import DEMONSTRATION, FAILURES, Source
from eosjax.types import UserError

ATTEMPTS_FILE, SETTINGS_FILE = "attempts.json", "collect.json"
_PARTS = ".episodes"  # in the output, until it is complete
_TEXTS = ("file_path", "task", "plan", "verbs")
_KIND = 3  # tells the random numbers of an episode's kind from others with its seed


class Settings(NamedTuple):
    """What decides the episodes."""

    env: str
    episodes: int
    seed: int
    failures: float  # share of the attempts that go wrong
    plain_pictures: bool  # see `eosjax.envs.registry.open_source`


def collect(out: Path, settings: Settings, source: Source, processes: int) -> dict[str, int]:
    """Collects the dataset into `out`, or what is missing of it; how many attempts of each kind it has.

    Raises:
      UserError: the folder has another collection, or something else; or a process died.
    """
    parts = _prepare(out, settings)
    missing = [number for number in range(settings.episodes) if not _part(parts, number).exists()]
    if not (out / LABELS_FILE).exists():
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(_make, parts, settings, source, number) for number in missing]
            try:
                shown = tqdm(as_completed(jobs), "collecting", len(jobs), unit="episode", disable=not sys.stderr.isatty())
                for job in shown:
                    job.result()
            except BrokenProcessPool as error:
                raise UserError("a process that made episodes died; finished episodes are kept, and the same command goes on") from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        _assemble(out, parts, source, settings.episodes)
    attempts = read_json(out / ATTEMPTS_FILE).values()
    kinds = (DEMONSTRATION, *FAILURES)
    return {kind: sum(each["kind"] == kind for each in attempts) for kind in kinds}


def kind_of(settings: Settings, number: int) -> tuple[str, np.random.Generator]:
    """The kind of an attempt, and the random numbers of what it leaves open."""
    rng = np.random.default_rng((settings.seed, number, _KIND))
    return str(rng.choice(FAILURES)) if rng.random() < settings.failures else DEMONSTRATION, rng


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


def _make(parts: Path, settings: Settings, source: Source, number: int) -> None:
    """Makes an episode and keeps it."""
    kind, rng = kind_of(settings, number)
    mark = "" if kind == DEMONSTRATION else f"-{kind}"
    file_path = f"{source.dataset}/{settings.seed}/{number:05d}{mark}.hdf5"
    success, episode = source.make((settings.seed, number), kind, rng, file_path)
    texts = json.dumps({"kind": kind, "success": success} | {name: getattr(episode, name) for name in _TEXTS})
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


def _assemble(out: Path, parts: Path, source: Source, episodes: int) -> None:
    """Writes the dataset from its episodes in a process that loads TensorFlow; the label file comes last."""
    scratch = out / ".dataset"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    run_module("eosjax.envs.collect", scratch, parts, source.dataset, str(source.size), str(episodes))
    shutil.rmtree(out / source.dataset, ignore_errors=True)
    for name in (source.dataset, ATTEMPTS_FILE, LABELS_FILE):
        os.replace(scratch / name, out / name)
    shutil.rmtree(scratch)
    shutil.rmtree(parts)


def _write(folder: Path, parts: Path, dataset: str, size: int, episodes: int) -> None:
    marks: dict[str, object] = {}

    def read():
        for number in tqdm(range(episodes), "writing", unit="episode", disable=not sys.stderr.isatty()):
            mark, episode = _load(_part(parts, number))
            marks[episode.file_path] = mark
            yield episode

    write_dataset(folder, dataset, "eosjax.envs.collect", size, episodes, read())
    (folder / ATTEMPTS_FILE).write_text(json.dumps(marks, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    exit_with(functools.partial(_write, Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
