"""The built-in demo dataset: simulated pick-and-place demonstrations in the LIBERO layout, written on first use.

On disk it is an ordinary TFDS/RLDS dataset of TFRecord shards with a label file, so that it is read like real data. A
separate process writes it, because only that process loads TensorFlow.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from eosjax.data.process import exit_with, run_module
from eosjax.data.rlds.write import LABELS_FILE, VERSION, Recorded, write_dataset
from eosjax.demo.expert import Style
from eosjax.demo.recordings import Recording, record, recorded
from eosjax.demo.render import SIZE
from eosjax.demo.scene import SUBSTEP_ACTIONS
from eosjax.demo.table import Luck

DATASET_NAME = "eosjax_demo"
EPISODES = 480
LUCK = Luck(knock=0.02)  # knocks show how to come back from where no demonstration would lead
_VERSION = "2.2.0"  # raise it when the simulation changes, so that old files are not taken for new ones


class DemoPaths(NamedTuple):
    """Location of the demo dataset; the fields are values of the data flags with the same names."""

    data_root: Path
    dataset_name: str
    labels: Path


def demonstration(index: int, seed: int = 0) -> Recording:
    """Episode `index` of the demo with this seed, a success; the same arguments give the same arrays."""
    attempts = (record((seed, index, attempt), LUCK, Style()) for attempt in itertools.count())
    return next(each for each in attempts if each.success and each.end.sum() == len(SUBSTEP_ACTIONS))


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
    return recorded(demonstration(index, seed), f"{DATASET_NAME}/{index:05d}.hdf5")


if __name__ == "__main__":
    exit_with(lambda: _write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
