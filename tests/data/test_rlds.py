import dataclasses
import shutil

import numpy as np
import pytest

from eosjax.data.images import decode
from eosjax.data.rlds import DatasetError, dataset_dir, num_episodes, read_episodes
from eosjax.data.specs import DatasetSpec, spec_for


def test_episodes_come_in_the_datasets_order_with_their_values(tiny):
    episodes = list(read_episodes(tiny.root, tiny.name, spec_for(tiny.name)))
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


def test_libero_gripper_becomes_one_for_open(tiny):
    episode = next(read_episodes(tiny.root, tiny.name, spec_for(tiny.name)))
    stored_closed = np.arange(len(episode)) % 2 == 1
    np.testing.assert_array_equal(episode.actions[:, 6], np.where(stored_closed, 0.0, 1.0))


def test_gripper_conventions():
    actions = np.array([[0.5] * 6 + [g] for g in (-1.0, -0.3, 0.0, 0.25, 1.0)], np.float32)
    np.testing.assert_allclose(DatasetSpec().standard_actions(actions)[:, 6], [1.0, 1.0, 1.0, 0.75, 0.0])
    kept = DatasetSpec(gripper="as_stored").standard_actions(actions)
    np.testing.assert_array_equal(kept, actions)


def test_announced_number_of_episodes(tiny):
    assert num_episodes(tiny.root, tiny.name) == len(tiny.lengths)


def test_missing_dataset_names_what_is_there(tiny):
    with pytest.raises(DatasetError, match=r"no dataset 'libero_gaol'.*datasets found there: libero_10, libero_goal_no_noops"):
        dataset_dir(tiny.root, "libero_gaol")


def test_missing_data_root(tmp_path):
    with pytest.raises(DatasetError, match="no dataset found there"):
        dataset_dir(tmp_path / "nowhere", "libero_goal")


def test_newest_version_is_taken(tmp_path):
    for version in ("1.0.0", "10.0.0", "9.1.0"):
        (tmp_path / "some" / version).mkdir(parents=True)
        (tmp_path / "some" / version / "dataset_info.json").touch()
    assert dataset_dir(tmp_path, "some").name == "10.0.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_keys": ("image", "rear_image")}, r"expected feature\(s\) rear_image in steps/observation; found: image, j"),
        ({"state_key": "eef"}, r"expected feature\(s\) eef in steps/observation"),
        ({"action_key": "actions"}, r"expected feature\(s\) actions in steps; found: action,"),
        ({"proprio_size": 7}, r"episode 0: proprio: expected shape \[T, 7\], got \[\d+, 8\]"),
    ],
)
def test_another_layout_than_described(tiny, change, message):
    spec = dataclasses.replace(spec_for(tiny.name), **change)
    with pytest.raises(DatasetError, match=message):
        next(read_episodes(tiny.root, tiny.name, spec))


def test_nan_names_episode_and_step(tiny):
    with pytest.raises(DatasetError, match="episode 0, step 2: actions has NaN"):
        list(read_episodes(tiny.root, tiny.broken_name, spec_for(tiny.broken_name)))


def test_truncated_shard_names_the_episode(tiny, tmp_path):
    shutil.copytree(tiny.root / tiny.name, tmp_path / tiny.name)
    shard = sorted(dataset_dir(tmp_path, tiny.name).glob("*.tfrecord*"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"episode \d: unreadable \(is a shard truncated\?\)"):
        list(read_episodes(tmp_path, tiny.name, spec_for(tiny.name)))


def test_unknown_dataset_lists_the_nearest_first():
    with pytest.raises(ValueError, match=r"no description of dataset 'libero_gaol'; known: libero_goal, .*eosjax_demo"):
        spec_for("libero_gaol")


def test_every_libero_suite_is_described():
    for suite in ("spatial", "object", "goal", "10"):
        assert spec_for(f"libero_{suite}") == spec_for(f"libero_{suite}_no_noops")
    spec = spec_for("eosjax_demo")
    assert (spec.chunk, spec.action_size, spec.proprio_size, spec.control_hz) == (8, 7, 8, 20.0)


def test_mask_of_the_wrong_size():
    with pytest.raises(ValueError, match=r"action_mask: expected 14 entries \(action_size\), got 7"):
        DatasetSpec(action_size=14)
