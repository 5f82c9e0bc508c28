import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eosjax.data.frames import FrameStore, fingerprint, open_store, write_store
from eosjax.data.images import decode
from eosjax.data.rlds import DatasetError, dataset_dir, read_episodes
from eosjax.data.specs import spec_for
from eosjax.data.substeps import import_labels, join_labels

LENGTHS = (4, 1, 7)


@pytest.fixture
def store(make_store) -> FrameStore:
    return make_store(LENGTHS)


@pytest.fixture(scope="session")
def tiny_cache(tiny, shared_folder, once) -> Path:
    """A cache folder with the store of the tiny dataset, built by two processes at once beside the leftover of a killed one."""
    cache = shared_folder / "cache"
    code = (
        "import sys; from eosjax.data.frames import open_store; "
        f"open_store({str(tiny.root)!r}, {tiny.name!r}, {str(cache)!r}).images(0); "
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    with once("cache") as folder:
        if folder:
            leftover = cache / f".{tiny.name}-{fingerprint(tiny.root, tiny.name)[:16]}.building-1"
            leftover.mkdir(parents=True)
            (leftover / "frames.array_record").write_bytes(b"half")
            children = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
            for child in children:
                _, errors = child.communicate()
                assert child.returncode == 0, errors
    return cache


def test_store_holds_what_the_dataset_holds(tiny, tiny_cache):
    store = open_store(tiny.root, tiny.name, tiny_cache)
    assert np.diff(store.episode_starts).tolist() == tiny.lengths
    for episode in read_episodes(tiny.root, tiny.name, spec_for(tiny.name)):
        start, stop = store.episode_starts[episode.index : episode.index + 2]
        np.testing.assert_array_equal(store.actions[start:stop], episode.actions)
        np.testing.assert_array_equal(store.proprio[start:stop], episode.proprio)
        assert [store.images(frame) for frame in range(start, stop)] == list(zip(*episode.images, strict=True))
        assert (store.tasks[episode.index], store.file_paths[episode.index]) == (episode.task, episode.file_path)


def test_two_builds_at_once_leave_one_store_and_nothing_unfinished(tiny_cache):
    folders = [path.name for path in tiny_cache.iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert not folders[0].startswith(".")


def test_an_existing_store_is_not_built_again(tiny, tiny_cache, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")  # a build would fail
    assert open_store(tiny.root, tiny.name, tiny_cache).num_episodes == len(tiny.lengths)


def test_changed_source_has_another_fingerprint(tiny, tmp_path):
    shutil.copytree(tiny.root / tiny.name, tmp_path / tiny.name)
    before = fingerprint(tmp_path, tiny.name)
    assert before == fingerprint(tiny.root, tiny.name)  # copytree keeps the times
    shard = sorted(dataset_dir(tmp_path, tiny.name).glob("*.tfrecord*"))[0]
    os.utime(shard, (1, 1))
    assert fingerprint(tmp_path, tiny.name) != before
    assert fingerprint(tiny.root, tiny.broken_name) != before


def test_failed_build_says_why_and_leaves_no_store(tiny, tmp_path):
    with pytest.raises(DatasetError, match="episode 0, step 2: actions has NaN"):
        open_store(tiny.root, tiny.broken_name, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_random_access_from_threads_and_after_pickling(store):
    frames = np.random.default_rng(0).permutation(np.repeat(np.arange(sum(LENGTHS)), 20))
    copy = pickle.loads(pickle.dumps(store))
    with ThreadPoolExecutor(8) as pool:
        for source in (store, copy):
            for frame, views in zip(frames, pool.map(source.images, frames), strict=True):
                episode, step = store.locate(int(frame))
                assert [decode(view)[0, 0].tolist() for view in views] == [[episode, step, 0], [episode, step, 1]]


def test_locate(store):
    places = [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]
    assert [store.locate(frame) for frame in range(store.num_frames)] == places


@pytest.mark.parametrize("frame", [-1, sum(LENGTHS)])
def test_no_such_frame(store, frame):
    with pytest.raises(IndexError, match="expected 0 to 11"):
        store.images(frame)


def test_damaged_files_are_refused(store):
    data = (store.folder / "frames.array_record").read_bytes()
    (store.folder / "frames.array_record").write_bytes(data[:-1000])
    with pytest.raises(DatasetError, match=rf"expected {len(data)} bytes, got {len(data) - 1000}; delete"):
        FrameStore(store.folder)
    (store.folder / "columns.npz").write_bytes(b"no npz")
    with pytest.raises(DatasetError, match=r"unreadable .*delete this folder"):
        FrameStore(store.folder)


def test_damaged_record_names_the_episode_and_step(store):
    path = store.folder / "frames.array_record"
    data = bytearray(path.read_bytes())
    at = data.find(store.images(6)[0][:60])
    assert at > 0
    data[at : at + 60] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="episode 2, step 1: unreadable record"):
        FrameStore(store.folder).images(6)


def test_empty_dataset(tmp_path):
    with pytest.raises(DatasetError, match="no episode"):
        write_store(iter(()), "made", tmp_path)


def test_labels_of_the_libero_sample_fit(tmp_path):
    data = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"LIBERO sample not found: {data}")
    name = "libero_goal_no_noops"
    store = open_store(data, name, tmp_path)
    labels = join_labels(import_labels(data / "substep_labels_output.json", name), store)
    assert (store.num_episodes, store.num_frames, int(labels.ends.sum())) == (36, 6149, 180)
    assert labels.ends[store.episode_starts[1:] - 1].all()  # the last step of every episode
