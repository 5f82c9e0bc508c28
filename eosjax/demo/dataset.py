"""The built-in demo dataset: simulated pick-and-place demonstrations in the LIBERO layout, written on first use.

On disk it is an ordinary TFDS/RLDS dataset of TFRecord shards with a label file, so that it is read like real data. A
separate process writes it, because only that process loads TensorFlow.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eosjax.data.process import exit_with, run_module
from eosjax.data.rlds.write import LABELS_FILE, VERSION, Recorded, jpeg, write_dataset
from eosjax.demo.render import SIZE, render
from eosjax.demo.simulator import SUBSTEP_ACTIONS, Rollout, instruction, simulate, substep_instructions

DATASET_NAME = "eosjax_demo"
EPISODES = 240
_VERSION = "1.0.0"  # raise it when the simulation changes, so that old files are not taken for new ones


class DemoPaths(NamedTuple):
    """Location of the demo dataset; the fields are values of the data flags with the same names."""

    data_root: Path
    dataset_name: str
    labels: Path


class DemoEpisode(NamedTuple):
    """One demonstration of T steps with its images."""

    rollout: Rollout
    image: np.ndarray  # u8 [T 64 64 3], third person
    wrist_image: np.ndarray  # u8 [T 64 64 3]


def demo_episode(index: int, seed: int = 0) -> DemoEpisode:
    """Episode `index` of the demo with this seed; the same arguments give the same arrays."""
    rng = np.random.default_rng((seed, index))
    rollout = simulate(rng)
    return DemoEpisode(rollout, *render(rollout, rng))


def ensure_demo(root: Path, episodes: int = EPISODES, seed: int = 0) -> DemoPaths:
    """The demo dataset of `episodes` demonstrations under `root`, generated if it is not there yet (under a minute).

    Every (version, episodes, seed) has its own folder, which appears complete or not at all: it is written under another name
    and renamed. If two processes generate at the same time, the later one uses the result of the earlier one.

    Returns:
        The folder to pass as `data_root_dir`, the dataset's name, and the label file (format 1, every step listed).

    Raises:
        ValueError: `episodes` is not positive or `seed` is negative.
        FileExistsError: the path of the dataset is taken by something else, which is not changed.
    """
    if episodes < 1 or seed < 0:
        raise ValueError(f"demo: expected episodes >= 1 and seed >= 0, got episodes={episodes}, seed={seed}")
    home = Path(root).expanduser() / f"demo-{_VERSION}-{episodes}-episodes-seed-{seed}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
        try:
            run_module("eosjax.demo.dataset", scratch / "data", str(episodes), str(seed))
            _publish(scratch / "data", home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    expected = (LABELS_FILE, f"{DATASET_NAME}/{VERSION}/dataset_info.json")
    missing = [file for file in expected if not (home / file).is_file()]
    if missing:
        raise FileExistsError(f"demo: {home} exists but is no demo dataset: expected {', '.join(missing)} in it; move it away")
    return DemoPaths(home, DATASET_NAME, home / LABELS_FILE)


def _publish(source: Path, home: Path) -> None:
    """Renames `source` to `home` unless another process has put its own there first."""
    try:
        os.replace(source, home)
    except OSError:
        if not home.exists():
            raise


def _write(folder: Path, episodes: int, seed: int) -> None:
    """Writes dataset and labels into the new folder `folder`."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        records = pool.map(_record, range(episodes), repeat(seed))
        shown = tqdm(records, "generating the demo", episodes, unit="episode", disable=not sys.stderr.isatty())
        write_dataset(folder, DATASET_NAME, "eosjax.demo.dataset", SIZE, episodes, shown)


def _record(index: int, seed: int) -> Recorded:
    """Episode `index` as it is written; reward at the last step, as in LIBERO."""
    episode = demo_episode(index, seed)
    rollout = episode.rollout
    fingers = 0.5 * rollout.opening[:, None] * np.array([1.0, -1.0], np.float32)
    state = np.concatenate([rollout.hand, rollout.rotation, fingers], axis=1)
    return Recorded(
        file_path=f"{DATASET_NAME}/{index:05d}.hdf5",
        task=instruction(rollout.scene),
        images=[jpeg(picture) for picture in episode.image],
        wrist_images=[jpeg(picture) for picture in episode.wrist_image],
        state=state,
        joints=state[:, :7],  # there is no arm: pose and one finger replace its joints
        action=rollout.action,
        reward=(np.arange(len(state)) == len(state) - 1).astype(np.float32),
        plan=substep_instructions(rollout.scene),
        verbs=SUBSTEP_ACTIONS,
        substep=rollout.substep,
        end=rollout.end,
    )


if __name__ == "__main__":
    exit_with(lambda: _write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
