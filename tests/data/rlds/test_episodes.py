import dataclasses
import io
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from eosjax.data.episode import DatasetError
from eosjax.data.images.transforms import decode
from eosjax.data.rlds.episodes import read_episodes
from eosjax.data.rlds.info import dataset_dir
from eosjax.data.specs import DatasetSpec, spec_for

LIBERO = DatasetSpec()
OTHER = """
other:
  image_keys: [images/top, images/side]
  state_keys: [joints/gripper, joints/arm]
  action_key: steps/action
  instruction_key: natural_language_instruction
  gripper: as_stored
  action_size: 7
  proprio_size: 7
  control_hz: 10
"""


@pytest.fixture
def other(tmp_path) -> DatasetSpec:
    path = tmp_path / "specs.yaml"
    path.write_text(OTHER)
    return spec_for("other", path)


@pytest.fixture
def copy(tiny, tmp_path):
    """A function (dataset) -> (root, folder) of a copy that may be damaged."""

    def make(name):
        shutil.copytree(tiny.root / name, tmp_path / "copy" / name)
        return tmp_path / "copy", dataset_dir(tmp_path / "copy", name)

    return make


def depth() -> bytes:
    """A picture of depths in millimetres."""
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16), 1500, np.uint16)).save(file, "PNG")
    return file.getvalue()


def test_episodes_come_in_the_datasets_order_with_their_values(tiny):
    episodes = list(read_episodes(dataset_dir(tiny.root, tiny.name), spec_for(tiny.name)))
    assert [len(episode) for episode in episodes] == tiny.lengths
    assert [episode.index for episode in episodes] == list(range(len(tiny.numbers)))
    assert tiny.numbers != sorted(tiny.numbers)  # TFDS shuffles when it writes: the order is worth testing
    for number, episode in zip(tiny.numbers, episodes, strict=True):
        steps = np.arange(len(episode), dtype=np.float32)
        np.testing.assert_array_equal(episode.proprio, np.repeat(10 * number + steps[:, None], 8, axis=1))
        np.testing.assert_array_equal(episode.actions[:, :6], np.repeat(np.float32(number + steps[:, None] / 100), 6, 1))
        assert episode.task == f"Do task {number % 3}"
        assert episode.file_path == f"task_{number % 3}.hdf5"
        for view, images in enumerate(episode.images):
            assert decode(images[2])[0, 0].tolist() == [number * 20, 20, view * 100]


def test_many_shards_are_interleaved_as_tfds_does(tiny):
    shards = [int(place.split("/")[0]) for place in tiny.many]
    assert shards != sorted(shards)
    assert [episode.file_path for episode in read_episodes(dataset_dir(tiny.root, "many"), LIBERO)] == tiny.many


@pytest.mark.parametrize("start", [1, 16, 100, 335])
def test_reading_from_an_episode_on(tiny, start):
    episodes = list(itertools.islice(read_episodes(dataset_dir(tiny.root, "many"), LIBERO, start), 40))
    assert [episode.file_path for episode in episodes] == tiny.many[start : start + 40]
    assert [episode.index for episode in episodes] == list(range(len(tiny.many)))[start : start + 40]


def test_libero_gripper_becomes_one_for_open(tiny):
    episode = next(read_episodes(dataset_dir(tiny.root, tiny.name), spec_for(tiny.name)))
    stored_closed = np.arange(len(episode)) % 2 == 1
    np.testing.assert_array_equal(episode.actions[:, 6], np.where(stored_closed, 0.0, 1.0))


def test_array_record_in_another_layout(tiny, other):
    episodes = list(read_episodes(dataset_dir(tiny.root, "other"), other))
    assert tiny.other_numbers != sorted(tiny.other_numbers)
    assert [len(episode) for episode in episodes] == [tiny.lengths[tiny.numbers.index(number)] for number in tiny.other_numbers]
    for number, episode in zip(tiny.other_numbers, episodes, strict=True):
        steps = np.arange(len(episode), dtype=np.float32)
        assert episode.proprio.dtype == np.float32
        np.testing.assert_array_equal(episode.proprio[:, 0], steps)
        np.testing.assert_array_equal(episode.proprio[:, 1:], np.repeat(10 * number + steps[:, None], 6, axis=1))
        np.testing.assert_array_equal(episode.actions, np.repeat(np.float32(number + steps[:, None] / 100), 7, 1))
        assert (episode.task, episode.file_path) == (f"Do task {number % 3}", "")
        for view, images in enumerate(episode.images):
            assert decode(images[1])[0, 0].tolist() == [number * 20, 10, view * 100]
    assert [episode.index for episode in read_episodes(dataset_dir(tiny.root, "other"), other, 5)] == [5, 6, 7]


def test_instruction_of_the_episode(tiny):
    spec = dataclasses.replace(LIBERO, instruction_key="episode_metadata/file_path")
    episode = next(read_episodes(dataset_dir(tiny.root, tiny.name), spec))
    assert episode.task == episode.file_path


def test_steps_that_a_description_leaves_out(tiny):
    spec = dataclasses.replace(LIBERO, skip_first=1, motion="reached_states")
    whole = list(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO))
    for episode, full in zip(read_episodes(dataset_dir(tiny.root, tiny.name), spec), whole, strict=True):
        assert len(episode) == len(full) - 2
        np.testing.assert_array_equal(episode.proprio, full.proprio[1:-1])
        np.testing.assert_array_equal(episode.actions[:, :6], np.diff(full.proprio[1:], axis=0)[:, :6])
        np.testing.assert_array_equal(episode.actions[:, 6], full.actions[1:-1, 6])
        assert episode.images == tuple(images[1:-1] for images in full.images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_keys": ("image", "rear_image")}, "image_keys: expected a feature 'rear_image'; found: .*steps/observation/image"),
        ({"state_keys": ("state", "eef")}, "state_keys: expected a feature 'eef'"),
        ({"action_key": "actions"}, "action_key: expected a feature 'actions'; found: .*steps/action,"),
        ({"image_keys": ("state",)}, r"image_keys: feature steps/observation/state: expected an Image of three channels .*, got Tensor"),
        ({"state_keys": ("language_instruction",)}, r"feature steps/language_instruction: expected numbers, got Text"),
        ({"state_keys": ("episode_metadata/file_path",)}, r"feature episode_metadata/file_path: expected a feature of the steps"),
        ({"instruction_key": "reward"}, r"feature steps/reward: expected text, got Tensor"),
        ({"proprio_size": 7}, r"tfrecord-00000-of-00002: episode 0: proprio: expected shape \[7\] in each step, got \[8\] in step 0"),
        ({"state_keys": ("state", "joint_state")}, r"episode 0: proprio: expected shape \[8\] in each step, got \[15\] in step 0"),
    ],
)
def test_another_layout_than_described(tiny, change, message):
    with pytest.raises(DatasetError, match=message):
        next(read_episodes(dataset_dir(tiny.root, tiny.name), dataclasses.replace(LIBERO, **change)))


@pytest.mark.parametrize("image", [{"shape": (16, 16, 4)}, {"shape": (16, 16, 1), "dtype": np.float32}, {"dtype": np.uint16}])
def test_images_of_depth_are_refused_by_their_feature(tiny, copy, image):
    import tensorflow_datasets as tfds

    root, folder = copy(tiny.name)
    features = tfds.features.FeaturesDict.from_config(str(folder))
    changed = tfds.features.Image(**{"shape": (16, 16, 3), "encoding_format": "png"} | image)
    features["steps"]["observation"]._feature_dict["wrist_image"] = changed
    features.save_config(str(folder))
    with pytest.raises(DatasetError, match="feature steps/observation/wrist_image: expected an Image of three channels of uint8"):
        next(read_episodes(dataset_dir(root, tiny.name), LIBERO))


def test_a_key_with_two_meanings_is_refused(tiny, other):
    spec = dataclasses.replace(other, action_key="action")
    with pytest.raises(DatasetError, match="action_key: 'action' may mean steps/observation/action or steps/action; write which one"):
        next(read_episodes(dataset_dir(tiny.root, "other"), spec))


def test_nan_names_file_episode_and_step(tiny):
    with pytest.raises(DatasetError, match=r"libero_10-train.tfrecord-\d+-of-\d+: episode 0, step 2: actions has NaN"):
        list(read_episodes(dataset_dir(tiny.root, tiny.broken_name), spec_for(tiny.broken_name)))


def test_truncated_tfrecord_names_the_file_and_the_episode(tiny, copy):
    root, folder = copy(tiny.name)
    shard = sorted(folder.glob("*.tfrecord*"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=rf"{shard}: episode 7: unreadable \(is the file truncated\?\): it ends within record \d"):
        list(read_episodes(dataset_dir(root, tiny.name), LIBERO))


def test_tfrecord_cut_between_two_records(tiny, copy):
    root, folder = copy(tiny.name)
    shard = sorted(folder.glob("*.tfrecord*"))[-1]
    data = shard.read_bytes()
    shard.write_bytes(data[: int.from_bytes(data[:8], "little") + 16])
    with pytest.raises(DatasetError, match=rf"{shard}: episode \d: expected \d episodes in this file, as announced; found only 1"):
        list(read_episodes(dataset_dir(root, tiny.name), LIBERO))


def test_more_episodes_in_a_file_than_announced(tiny, copy):
    root, folder = copy(tiny.name)
    shard = sorted(folder.glob("*.tfrecord*"))[0]
    data = shard.read_bytes()
    shard.write_bytes(data + data[: int.from_bytes(data[:8], "little") + 16])
    with pytest.raises(DatasetError, match=rf"{shard}: episode \d: expected \d episodes in this file, as announced; found more"):
        list(read_episodes(dataset_dir(root, tiny.name), LIBERO))


def test_truncated_array_record_names_the_file_and_the_episode(tiny, copy, other):
    root, folder = copy("other")
    shard = sorted(folder.glob("*.array_record*"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=rf"{shard}: episode \d: unreadable \(is the file truncated\?\)"):
        list(read_episodes(dataset_dir(root, "other"), other))


@pytest.mark.parametrize("name", ["many", "other"])
def test_missing_file_is_named_before_anything_is_read(copy, other, name):
    root, folder = copy(name)
    shard = sorted(folder.glob("*record*"))[-1]
    shard.unlink()
    with pytest.raises(DatasetError, match=rf"{shard}: this file of the dataset is missing \(1 of \d+ files are\)"):
        next(read_episodes(dataset_dir(root, name), LIBERO if name == "many" else other))


def test_files_of_another_format(tiny, copy):
    root, folder = copy(tiny.name)
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "riegeli"}))
    for shard in folder.glob("*.tfrecord*"):
        shard.rename(folder / shard.name.replace("tfrecord", "riegeli"))
    with pytest.raises(DatasetError, match="expected files of format tfrecord or array_record, got riegeli"):
        next(read_episodes(dataset_dir(root, tiny.name), LIBERO))


@pytest.fixture
def change_steps(monkeypatch):
    """A function (change) that has every episode read with its steps changed."""
    import tensorflow_datasets as tfds

    deserialise = tfds.features.FeaturesDict.deserialize_example_np

    def install(change):
        def changed(features, record, decoders):
            example = deserialise(features, record, decoders=decoders)
            return example | {"steps": change(list(example["steps"]))}

        monkeypatch.setattr(tfds.features.FeaturesDict, "deserialize_example_np", changed)

    return install


def test_an_instruction_that_is_no_utf8_names_file_and_episode(tiny, change_steps):
    change_steps(lambda steps: [step | {"language_instruction": b"pick \xff"} for step in steps])
    with pytest.raises(DatasetError, match=r"-of-00002: episode 0: steps/language_instruction: expected text in UTF-8, got b'pick \\xff'"):
        next(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO))


def test_a_gripper_in_another_unit_names_file_and_episode(tiny, change_steps):
    change_steps(lambda steps: [step | {"action": np.full(7, 850, np.float32)} for step in steps])
    with pytest.raises(DatasetError, match="-of-00002: episode 0: actions: gripper: .*, got 850 to 850"):
        next(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO))


def test_numbers_that_float32_does_not_hold_are_infinite(tiny, change_steps):
    change_steps(lambda steps: [step | {"action": np.full(7, 1e300)} for step in steps])
    with pytest.raises(DatasetError, match="episode 0, step 0: actions has NaN or infinity"):
        next(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO))


def test_steps_of_different_sizes_are_named(tiny, change_steps):
    change_steps(lambda steps: [step | {"action": np.zeros(7 + (number == 2))} for number, step in enumerate(steps)])
    with pytest.raises(DatasetError, match=r"episode 0: actions: expected shape \[7\] in each step, got \[8\] in step 2"):
        next(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO))


def test_an_episode_without_steps_keeps_its_number(tiny, change_steps):
    change_steps(lambda steps: [] if len(steps) == tiny.lengths[3] else steps)
    episodes = list(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO))
    assert [len(episode) for episode in episodes] == [length if length != tiny.lengths[3] else 0 for length in tiny.lengths]
    assert (episodes[3].task, episodes[3].images, episodes[3].proprio.shape) == ("", ([], []), (0, 8))


@pytest.mark.parametrize(
    ("step", "damage", "message"),
    [
        (1, lambda data: b"no image", r"steps/observation/wrist_image, step 1: 8 bytes that are no whole JPEG or PNG image"),
        (3, lambda data: depth(), r"steps/observation/wrist_image, step 3: expected an 8-bit RGB image, got 16-bit greyscale PNG"),
        (2, lambda data: data[:-20], r"steps/observation/wrist_image, step 2: \d+ bytes that are no whole JPEG or PNG image"),
        (0, lambda data: data[:40] + bytes(10) + data[50:], r"steps/observation/wrist_image, step 0: does not decode as JPEG or PNG"),
    ],
)
def test_an_image_that_does_not_decode_names_file_episode_camera_and_step(tiny, change_steps, step, damage, message):
    def damaged(steps):
        steps[step]["observation"]["wrist_image"] = damage(steps[step]["observation"]["wrist_image"])
        return steps

    change_steps(damaged)
    with pytest.raises(DatasetError, match=f"-train.tfrecord-00000-of-00002: episode 0, {message}"):
        list(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO))


def test_reading_needs_no_tensorflow(tiny):
    code = (
        "import sys; from eosjax.data.rlds.episodes import read_episodes; from eosjax.data.rlds.info import dataset_dir; "
        "from eosjax.data.specs import spec_for; "
        f"list(read_episodes(dataset_dir({str(tiny.root)!r}, {tiny.name!r}), spec_for({tiny.name!r}))); "
        "assert 'tensorflow' not in sys.modules"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
