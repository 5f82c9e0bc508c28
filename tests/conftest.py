"""Fixtures that tests of several folders share. Runs before JAX is imported: four fake CPU devices for every test, and a compiler that
does not optimise and takes its short way to fusions, since tests compile much and compute little."""

import contextlib
import dataclasses
import fcntl
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.golden import cut

os.environ["JAX_PLATFORMS"] = "cpu"
_XLA_FLAGS = " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
_XLA_FLAGS += " --xla_cpu_parallel_codegen_split_count=1"  # in one piece, a fifth less to compile; in many, sooner where cores are idle
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _XLA_FLAGS
# Each program is compiled once a test run, for all workers and for the processes that tests start; one that is read gives the same bits.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="eosjax-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")

# Writes four datasets: a sound one in LIBERO's layout; one with a NaN in step 2 of every episode; "many" in enough uneven shards
# to be interleaved; "other" in another layout, as ArrayRecord. Then TFDS itself tells the order of the episodes, in expected.json.
_WRITER = """
import json, os, sys
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

root = sys.argv[1]
F = tfds.features
LENGTHS = [5, 12, 9, 3, 17, 8, 10, 6]
SHARDS = [3, 16, 17, 32, 33, 1, 40, 5, 16, 20, 2, 18, 7, 16, 31, 4, 19, 6, 34, 16]

def colour(number, t, view):
    return np.full((16, 16, 3), (number * 20 % 256, t * 10, view * 100), np.uint8)

def vector(size):
    return F.Tensor(shape=(size,), dtype=np.float32)

def episode(number, length, broken=False, file_path=None):
    def step(t):
        action = np.full(7, number + t / 100, np.float32)
        action[6] = 1.0 if t % 2 else -1.0
        if broken and t == 2:
            action[3] = np.nan
        return {
            "observation": {"image": colour(number, t, 0), "wrist_image": colour(number, t, 1),
                            "state": np.full(8, 10 * number + t, np.float32), "joint_state": np.zeros(7, np.float32)},
            "action": action, "language_instruction": f"Do task {number % 3}", "is_first": t == 0,
            "is_last": t == length - 1, "is_terminal": t == length - 1, "discount": 1.0, "reward": 0.0,
        }
    return {"steps": [step(t) for t in range(length)], "episode_metadata": {"file_path": file_path or f"task_{number % 3}.hdf5"}}

def other_episode(number, length):
    def step(t):
        return {"observation": {
            "images": {"top": colour(number, t, 0), "side": colour(number, t, 1), "unused": colour(number, t, 2)},
            "joints": {"arm": np.full(6, 10 * number + t, np.float64), "gripper": np.float32(t)},
            "action": np.zeros(7, np.float32), "natural_language_instruction": f"Do task {number % 3}"},
            "action": np.full(7, number + t / 100, np.float32)}
    return {"steps": [step(t) for t in range(length)]}

picture = F.Image(shape=(16, 16, 3), encoding_format="png")
scalar = {k: np.bool_ for k in ("is_first", "is_last", "is_terminal")} | {k: np.float32 for k in ("discount", "reward")}
LIBERO = F.FeaturesDict({
    "steps": F.Dataset({
        "observation": F.FeaturesDict({"image": picture, "wrist_image": picture, "state": vector(8), "joint_state": vector(7)}),
        "action": vector(7), "language_instruction": F.Text(), **scalar}),
    "episode_metadata": F.FeaturesDict({"file_path": F.Text()})})
OTHER = F.FeaturesDict({
    "steps": F.Dataset({
        "observation": F.FeaturesDict({
            "images": F.FeaturesDict({"top": picture, "side": picture, "unused": picture}),
            "joints": F.FeaturesDict({"arm": F.Tensor(shape=(6,), dtype=np.float64), "gripper": np.float32}),
            "action": vector(7), "natural_language_instruction": F.Text()}),
        "action": vector(7)})})

class Base(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES = LIBERO
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.FEATURES)
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for number, length in enumerate(LENGTHS):
            yield number, episode(number, length)

class LiberoGoalNoNoops(Base):
    pass

class Libero10(Base):
    name = "libero_10"
    def _generate_examples(self):
        for number, length in enumerate(LENGTHS[:2]):
            yield number, episode(number, length, broken=True)

class Other(Base):
    FEATURES = OTHER
    def _generate_examples(self):
        for number, length in enumerate(LENGTHS):
            yield number, other_episode(number, length)

for builder in (LiberoGoalNoNoops(data_dir=root), Libero10(data_dir=root), Other(data_dir=root, file_format="array_record")):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))

many = root + "/many/1.0.0"
os.makedirs(many)
for shard, count in enumerate(SHARDS):
    with tf.io.TFRecordWriter(f"{many}/many-train.tfrecord-{shard:05d}-of-{len(SHARDS):05d}") as writer:
        for number in range(count):
            writer.write(LIBERO.serialize_example(episode(0, 1, file_path=f"{shard}/{number}")))
LIBERO.save_config(many)
split = {"name": "train", "numBytes": "1", "shardLengths": [str(count) for count in SHARDS],
         "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
with open(many + "/dataset_info.json", "w") as file:
    json.dump({"fileFormat": "tfrecord", "moduleName": "many", "name": "many", "version": "1.0.0", "splits": [split]}, file)

def read(name):
    return tfds.builder_from_directory(f"{root}/{name}/1.0.0").as_dataset(split="train", shuffle_files=False)

first_steps = [next(iter(item["steps"])) for item in read("libero_goal_no_noops")]
others = tfds.builder_from_directory(f"{root}/other/1.0.0").as_data_source(split="train")
expected = {
    "order": [int(step["observation"]["state"][0].numpy()) // 10 for step in first_steps],
    "many": [item["episode_metadata"]["file_path"].numpy().decode() for item in read("many")],
    "other": [int(item["steps"][0]["observation"]["joints"]["arm"][0]) // 10 for item in others],
    "lengths": LENGTHS,
}
with open(root + "/expected.json", "w") as file:
    json.dump(expected, file)
"""


@dataclasses.dataclass(frozen=True)
class TinyDataset:
    """RLDS datasets on disk; `numbers[e]` is the writer's number of the e-th episode of dataset `name`, `lengths[e]` its length."""

    root: Path
    name: str
    broken_name: str
    numbers: list[int]
    lengths: list[int]
    many: list[str]  # "shard/place in it" of the episodes of dataset "many", in the order of `as_dataset`
    other_numbers: list[int]  # as `numbers`, of dataset "other"


def pytest_collection_finish():
    """Spares the garbage collector what JAX and TensorFlow have loaded: going over it again and again took one second of fifteen."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure():
    """Removes the compiled programs of this test run."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_of_a_module_only():
    """Programs take memory maps, of which a process has 65,530: a worker that kept those of all tests would crash in the compiler."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()


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
def golden(shared_folder, once) -> Path:
    """What was recorded from the PyTorch original, as far as the repository holds it, in the layout of the complete recording."""
    with once("golden") as folder:
        if folder:
            cut.expand(cut.SMALL, folder)
    return shared_folder / "golden"


@pytest.fixture(scope="session")
def recording() -> Path:
    """The complete recording, which the repository does not hold: a folder `shared` beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "reference" / "golden"
    if not folder.is_dir():
        pytest.skip(f"the complete recording is not there: {folder}")
    return folder


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
    order, many, other = (expected[key] for key in ("order", "many", "other"))
    return TinyDataset(root, "libero_goal_no_noops", "libero_10", order, lengths, many, other)


@pytest.fixture
def data(tiny, shared_folder):
    """The flags that name the tiny dataset; its frame store is built once a test run."""
    return ["--data_root_dir", tiny.root, f"--dataset_name={tiny.name}", "--cache_dir", shared_folder / "cli_stores"]


@pytest.fixture
def bodies(tiny):
    """The label entry of each episode of the tiny dataset: "first half" ends in the middle, "second half" at the last step."""

    def body(number, length):
        entries = [
            {"timestep": step, "APD_step": "first half" if step < length // 2 else "second half", "is_substep_end": end}
            for step, end in ((step, step in (length // 2 - 1, length - 1)) for step in range(length))
        ]
        return {"instruction": f"Do task {number % 3}", "total_timesteps": length, "timestep_labels": entries}

    return [body(number, length) for number, length in zip(tiny.numbers, tiny.lengths, strict=True)]


@pytest.fixture
def write_labels(tmp_path):
    """A function (bodies, skip=()) -> path of a label file with those of the episodes that are not skipped."""

    def write(bodies, skip=()):
        tasks = {}
        for episode, body in enumerate(bodies):
            if episode not in skip:
                tasks.setdefault(body["instruction"].lower().replace(" ", "_"), {})[f"episode_{episode}"] = body
        path = tmp_path / "labels.json"
        path.write_text(json.dumps({"libero_goal": tasks}))
        return path

    return write
