"""Small datasets for the data tests: real RLDS files (written once by TensorFlow, in a process of its own) and bare stores."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosjax.data.frames import FrameStore, write_store
from eosjax.data.loader import SampleSource
from eosjax.data.rlds import Episode
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import compute_stats
from eosjax.data.substeps import Labels
from eosjax.data.tokens import demo_tokenizer

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


def _encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """`pixels` u8 [h w 3] as the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _make_episodes(lengths, spec: DatasetSpec, picture=None):
    """Episodes whose images, actions and proprio tell the episode and the step."""
    for episode, length in enumerate(lengths):
        steps = np.arange(length)
        views = tuple(
            [picture or _encoded(np.full((8, 8, 3), (episode, step, view), np.uint8)) for step in steps]
            for view in range(len(spec.image_keys))
        )
        actions = np.stack([episode + steps / 1000] * spec.action_size, axis=1).astype(np.float32)
        proprio = np.stack([episode * 100 + steps] * spec.proprio_size, axis=1).astype(np.float32)
        yield Episode(episode, views, actions, proprio, f"Task {episode % 2}", f"{episode}.hdf5")


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    """A function (lengths, picture=None) -> `FrameStore` in a folder of its own, without TensorFlow."""

    def make(lengths, picture=None) -> FrameStore:
        folder = tmp_path_factory.mktemp("store")
        write_store(_make_episodes(lengths, DatasetSpec(), picture), "made", folder)
        return FrameStore(folder)

    return make


@pytest.fixture(scope="session")
def make_source(make_store):
    """A function (lengths, ends=frames, …) -> `SampleSource` over such a store."""

    def make(lengths, ends=(), chunk=8, picture=None, episodes=None, **options) -> SampleSource:
        spec = DatasetSpec(chunk=chunk)
        store = make_store(lengths, picture)
        flags = np.zeros(store.num_frames, bool)
        flags[list(ends)] = True
        return SampleSource(
            store=store,
            labels=Labels((np.arange(store.num_frames) % 3).astype(np.int32), ["close it", "open it", "push it"], flags),
            stats=compute_stats(store.actions, store.proprio, store.num_episodes, spec.action_mask),
            tokenizer=demo_tokenizer(),
            spec=spec,
            episodes=np.arange(len(lengths)) if episodes is None else np.asarray(episodes),
            **({"image_size": 8, "num_images": 2, "use_proprio": True} | options),
        )

    return make


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with the recorded arrays of the PyTorch original, beside the checkout."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "reference" / "golden"
    if not folder.is_dir():
        pytest.skip(f"recorded arrays not found: {folder}")
    return folder
