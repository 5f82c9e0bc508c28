"""Fixtures that tests of several folders share. Runs before JAX is imported: four fake CPU devices for every test."""

import contextlib
import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")

# Writes two datasets in LIBERO's layout: a sound one, and one with a NaN in step 2 of every episode; then reads the sound
# one back as label files count (`as_dataset`, unshuffled) into expected.json.
_WRITER = """
import json, sys
import numpy as np
import tensorflow_datasets as tfds

root = sys.argv[1]
F = tfds.features
LENGTHS = [5, 12, 9, 3, 17, 8, 10, 6]

def episode(number, length, broken):
    def step(t):
        colour = lambda view: np.full((16, 16, 3), (number * 20, t * 10, view * 100), np.uint8)
        action = np.full(7, number + t / 100, np.float32)
        action[6] = 1.0 if t % 2 else -1.0
        if broken and t == 2:
            action[3] = np.nan
        return {
            "observation": {"image": colour(0), "wrist_image": colour(1),
                            "state": np.full(8, 10 * number + t, np.float32), "joint_state": np.zeros(7, np.float32)},
            "action": action, "language_instruction": f"Do task {number % 3}", "is_first": t == 0,
            "is_last": t == length - 1, "is_terminal": t == length - 1, "discount": 1.0, "reward": 0.0,
        }
    return {"steps": [step(t) for t in range(length)], "episode_metadata": {"file_path": f"task_{number % 3}.hdf5"}}

class Base(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BROKEN = False
    def _info(self):
        picture = F.Image(shape=(16, 16, 3), encoding_format="png")
        scalar = {k: np.bool_ for k in ("is_first", "is_last", "is_terminal")} | {k: np.float32 for k in ("discount", "reward")}
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict({
            "steps": F.Dataset({
                "observation": F.FeaturesDict({
                    "image": picture, "wrist_image": picture, "state": F.Tensor(shape=(8,), dtype=np.float32),
                    "joint_state": F.Tensor(shape=(7,), dtype=np.float32)}),
                "action": F.Tensor(shape=(7,), dtype=np.float32), "language_instruction": F.Text(), **scalar}),
            "episode_metadata": F.FeaturesDict({"file_path": F.Text()})}))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for number, length in enumerate(LENGTHS[:2] if self.BROKEN else LENGTHS):
            yield number, episode(number, length, self.BROKEN)

class LiberoGoalNoNoops(Base):
    pass

class Libero10(Base):
    name = "libero_10"
    BROKEN = True

for builder in (LiberoGoalNoNoops(data_dir=root), Libero10(data_dir=root)):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
order = []
for item in tfds.builder("libero_goal_no_noops", data_dir=root).as_dataset(split="train", shuffle_files=False):
    steps = list(item["steps"])
    order.append(int(steps[0]["observation"]["state"][0].numpy()) // 10)
with open(root + "/expected.json", "w") as file:
    json.dump({"order": order, "lengths": LENGTHS}, file)
"""


@dataclasses.dataclass(frozen=True)
class TinyDataset:
    """An RLDS dataset on disk; `numbers[e]` is the writer's number of the dataset's e-th episode, `lengths[e]` its length."""

    root: Path
    name: str
    broken_name: str
    numbers: list[int]
    lengths: list[int]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A fresh folder of this test run, the same for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def once(shared_folder):
    """A context (name) -> folder to fill, or None when another worker has filled it; the others wait meanwhile."""

    @contextlib.contextmanager
    def enter(name: str):
        folder = shared_folder / name
        with open(shared_folder / f"{name}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            done = shared_folder / f"{name}.done"
            yield None if done.exists() else folder
            done.touch()

    return enter


@pytest.fixture(scope="session")
def tiny(shared_folder, once) -> TinyDataset:
    root = shared_folder / "rlds"
    with once("rlds") as folder:
        if folder:
            folder.mkdir()
            environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
            command = [sys.executable, "-c", _WRITER, str(root)]
            child = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert child.returncode == 0, child.stderr
    expected = json.loads((root / "expected.json").read_text())
    lengths = [expected["lengths"][number] for number in expected["order"]]
    return TinyDataset(root, "libero_goal_no_noops", "libero_10", expected["order"], lengths)
