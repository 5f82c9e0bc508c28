import dataclasses
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eosjax.data.episode import DatasetError
from eosjax.data.frames.build import finished_episodes, write_store
from eosjax.data.frames.store import FrameStore, open_store, source_fingerprint, store_folder
from eosjax.data.images.transforms import decode
from eosjax.data.rlds.episodes import read_episodes
from eosjax.data.rlds.info import dataset_dir
from eosjax.data.rlds.tfrecord import masked_crc32c
from eosjax.data.specs import DatasetSpec, spec_for

LIBERO = DatasetSpec()
LENGTHS = (4, 1, 7)
SMALL = 4000  # a part of some episodes of the tiny dataset


@pytest.fixture
def store(make_store) -> FrameStore:
    return make_store(LENGTHS)


@pytest.fixture(scope="session")
def tiny_cache(tiny, shared_folder, once) -> Path:
    """A cache folder with the store of the tiny dataset, built by two processes at once beside the leftover of a killed one."""
    cache = shared_folder / "cache"
    code = (
        "import sys; from eosjax.data.frames.store import open_store; from eosjax.data.specs import spec_for; "
        f"open_store({str(tiny.root)!r}, {tiny.name!r}, spec_for({tiny.name!r}), {str(cache)!r}).images(0); "
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    with once("cache") as folder:
        if folder:
            leftover = cache / f".{tiny.name}-{source_fingerprint(tiny.root, tiny.name, LIBERO)[:16]}.building"
            leftover.mkdir(parents=True)
            (leftover / "part-00000.array_record").write_bytes(b"half")
            children = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
            for child in children:
                _, errors = child.communicate()
                assert child.returncode == 0, errors
    return cache


@pytest.fixture
def copy(tiny, tmp_path):
    """(root, folder) of a copy of the tiny dataset, with other times of change."""
    shutil.copytree(tiny.root / tiny.name, tmp_path / "copy" / tiny.name, copy_function=shutil.copyfile)
    return tmp_path / "copy", dataset_dir(tmp_path / "copy", tiny.name)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_store_holds_what_the_dataset_holds(tiny, tiny_cache):
    store = open_store(tiny.root, tiny.name, LIBERO, tiny_cache)
    assert_holds_the_dataset(store, tiny)


def assert_holds_the_dataset(store, tiny):
    assert np.diff(store.episode_starts).tolist() == tiny.lengths
    for episode in read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO):
        start, stop = store.episode_starts[episode.index : episode.index + 2]
        np.testing.assert_array_equal(store.actions[start:stop], episode.actions)
        np.testing.assert_array_equal(store.proprio[start:stop], episode.proprio)
        assert [store.images(frame) for frame in range(start, stop)] == list(zip(*episode.images, strict=True))
        assert (store.tasks[episode.index], store.file_paths[episode.index]) == (episode.task, episode.file_path)


def test_two_builds_at_once_leave_one_store_and_nothing_unfinished(tiny_cache):
    folders = [path.name for path in tiny_cache.iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert not folders[0].startswith(".")


def test_an_existing_store_is_not_built_again(tiny, tiny_cache, copy, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")  # a build would fail
    assert open_store(tiny.root, tiny.name, LIBERO, tiny_cache).num_episodes == len(tiny.lengths)
    assert open_store(copy[0], tiny.name, LIBERO, tiny_cache).num_episodes == len(tiny.lengths)
    with pytest.raises(FileNotFoundError):
        open_store(tiny.root, tiny.name, dataclasses.replace(LIBERO, gripper="as_stored"), tiny_cache)


def test_the_description_reaches_the_build(tiny, tmp_path):
    spec = dataclasses.replace(LIBERO, image_keys=("wrist_image",), gripper="as_stored")
    store = open_store(tiny.root, "many", spec, tmp_path)
    assert store.num_episodes == len(tiny.many)
    assert store.file_paths == tiny.many
    assert len(store.images(3)) == 1
    assert set(store.actions[:, 6]) == {-1.0}


def test_a_store_of_several_parts(tiny, tmp_path):
    write_store(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO), tiny.name, tmp_path, SMALL)
    assert len(list(tmp_path.glob("*.array_record"))) > 2
    store = FrameStore(tmp_path)
    assert_holds_the_dataset(store, tiny)
    assert_holds_the_dataset(pickle.loads(pickle.dumps(store)), tiny)


def test_the_fingerprint_is_that_of_the_content(tiny, tiny_cache, tmp_path):
    """However the store is cut into parts and wherever the source files said they were; any other value, image or task makes another."""
    episodes = list(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO))

    def stored(changed, part_bytes=SMALL):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        write_store(iter(changed), tiny.name, folder, part_bytes)
        return FrameStore(folder).fingerprint

    same = open_store(tiny.root, tiny.name, LIBERO, tiny_cache).fingerprint
    assert stored(episodes) == stored([dataclasses.replace(each, file_path="elsewhere") for each in episodes], 1 << 30) == same
    first, *others = episodes
    action, state = first.actions.copy(), first.proprio.copy()
    action[-1, 0] += 1e-6
    state[0, -1] += 1e-3
    view = [bytes([*first.images[0][0][:-1], first.images[0][0][-1] ^ 1]), *first.images[0][1:]]
    changes = ({"actions": action}, {"proprio": state}, {"task": first.task + " "}, {"images": (view, *first.images[1:])})
    found = [stored([dataclasses.replace(first, **change), *others]) for change in changes]
    found += [stored(others), stored([*others, first]), same]
    assert len(set(found)) == len(found)


def test_a_killed_build_is_taken_up_and_gives_the_same_store_byte_by_byte(tiny, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    write_store(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO), tiny.name, whole, SMALL)
    code = f"""
import os, signal
from pathlib import Path
from eosjax.data.frames.build import write_store
from eosjax.data.rlds.episodes import read_episodes
from eosjax.data.rlds.info import dataset_dir
from eosjax.data.specs import DatasetSpec

def dying(episodes):
    for episode in episodes:
        if episode.index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield episode

episodes = read_episodes(dataset_dir({str(tiny.root)!r}, {tiny.name!r}), DatasetSpec())
write_store(dying(episodes), {tiny.name!r}, Path({str(killed)!r}), {SMALL})
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    unfinished = set(files_of(killed)) - set(files_of(whole))
    assert not (killed / "store.json").exists()

    start = finished_episodes(killed)
    assert 0 < start < 6
    assert not unfinished & set(files_of(killed))
    write_store(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO, start), tiny.name, killed, SMALL)
    assert files_of(killed) == files_of(whole)


def test_finished_parts_after_a_damaged_one_are_made_again(tiny, tmp_path):
    write_store(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO), tiny.name, tmp_path, SMALL)
    before = files_of(tmp_path)
    (tmp_path / "part-00001.npz").write_bytes(b"half")
    start = finished_episodes(tmp_path)
    assert set(files_of(tmp_path)) == {"part-00000.array_record", "part-00000.npz", "part-00000.json"}
    write_store(read_episodes(dataset_dir(tiny.root, tiny.name), LIBERO, start), tiny.name, tmp_path, SMALL)
    assert files_of(tmp_path) == before


def test_a_builder_whose_starter_dies_keeps_the_others_out(tiny, tmp_path):
    """The lock belongs to the process that writes, not to the one that asked for the store."""
    folder = tmp_path / "store"
    builder = f"""
import sys
from pathlib import Path
from eosjax.data.frames import build
from eosjax.data.rlds import source
from eosjax.data.specs import DatasetSpec

read = source.RldsSource.read_episodes

def pausing(*args):
    for episode in read(*args):
        if episode.index == 3:
            print("reading", flush=True)
            sys.stdin.readline()
        yield episode

source.RldsSource.read_episodes = pausing
build.build_store({str(tiny.root)!r}, {tiny.name!r}, DatasetSpec(), Path({str(folder)!r}))
"""
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {builder!r}])"
    with subprocess.Popen([sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"reading\n"
        child.kill()
        child.wait()
        with open(tmp_path / "store.lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.stdin.write(b"go on\n")
        child.stdin.flush()
        assert child.stdout.read() == b""  # comes when the builder has ended
    assert_holds_the_dataset(FrameStore(folder), tiny)


def test_a_copy_has_the_fingerprint_of_the_dataset(tiny, copy):
    root, folder = copy
    assert source_fingerprint(root, tiny.name, LIBERO) == source_fingerprint(tiny.root, tiny.name, LIBERO)
    (folder / "dataset_statistics_0.json").write_text("{}")  # OpenVLA writes such files there
    assert source_fingerprint(root, tiny.name, LIBERO) == source_fingerprint(tiny.root, tiny.name, LIBERO)


def test_other_contents_of_the_same_size_and_time_have_another_fingerprint(tmp_path):
    folder = tmp_path / "some" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()

    def framed(contents: bytes) -> bytes:
        header = len(contents).to_bytes(8, "little")
        return header + masked_crc32c(header).to_bytes(4, "little") + contents + masked_crc32c(contents).to_bytes(4, "little")

    def write(contents: bytes) -> str:
        shard = folder / "some-train.tfrecord-00000-of-00001"
        shard.write_bytes(framed(contents) + framed(bytes(2 << 20)))
        os.utime(shard, (1, 1))
        return source_fingerprint(tmp_path, "some", LIBERO)

    contents = np.random.default_rng(0).bytes(1 << 20)
    changed = bytearray(contents)
    changed[300_000] ^= 1
    assert write(contents) == write(contents)
    assert write(contents) != write(bytes(changed))


def test_an_edit_in_place_of_another_format_is_noticed_by_its_time(tmp_path):
    folder = tmp_path / "some" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    shard = folder / "some-train.array_record-00000-of-00001"
    contents = bytearray(1 << 20)

    def write(time: int) -> str:
        shard.write_bytes(contents)
        os.utime(shard, (time, time))
        return source_fingerprint(tmp_path, "some", LIBERO)

    before = write(1)
    assert write(1) == before
    contents[300_000] ^= 1  # between the samples
    assert write(2) != before


@pytest.mark.parametrize("change", ["features.json", "dataset_info.json", "rename", "array_record"])
def test_a_changed_dataset_has_another_fingerprint(tiny, tmp_path, copy, change):
    root, folder = copy
    name = tiny.name
    if change == "array_record":
        name = "other"
        shutil.copytree(tiny.root / name, root / name)
        folder = dataset_dir(root, name)
    before = source_fingerprint(root, name, LIBERO)
    if change == "rename":
        shard = sorted(folder.glob("*.tfrecord*"))[-1]
        shard.rename(shard.with_name(shard.name + "x"))
    elif change == "array_record":
        shard = sorted(folder.glob("*.array_record*"))[0]
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    else:
        (folder / change).write_text((folder / change).read_text() + "\n")
    assert source_fingerprint(root, name, LIBERO) != before


def test_only_what_is_stored_of_a_description_counts(tiny):
    same = dataclasses.replace(LIBERO, chunk=5, normalisation="bounds", control_hz=5.0, action_mask=(True,) * 7)
    assert source_fingerprint(tiny.root, tiny.name, same) == source_fingerprint(tiny.root, tiny.name, LIBERO)
    others = [{"gripper": "binarised"}, {"image_keys": ("image",)}, {"state_keys": ("joint_state",)}, {"skip_first": 1}]
    found = {source_fingerprint(tiny.root, tiny.name, dataclasses.replace(LIBERO, **other)) for other in others}
    assert len(found | {source_fingerprint(tiny.root, tiny.name, LIBERO)}) == 5


def test_failed_build_says_why_and_leaves_no_store(tiny, tmp_path):
    with pytest.raises(DatasetError, match="episode 0, step 2: actions has NaN"):
        open_store(tiny.root, tiny.broken_name, spec_for(tiny.broken_name), tmp_path)
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


@pytest.mark.parametrize("kind", ["array_record", "npz"])
def test_damaged_files_are_refused(store, kind):
    path = store.folder / f"part-00000.{kind}"
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(DatasetError, match=rf"part-00000.{kind}: expected {len(data)} bytes, got {len(data) - 10}.; delete"):
        FrameStore(store.folder)
    path.unlink()
    with pytest.raises(DatasetError, match=rf"part 0 is unreadable .*part-00000.{kind}.*delete this folder"):
        FrameStore(store.folder)


def test_columns_that_were_written_over_are_refused(store):
    path = store.folder / "part-00000.npz"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DatasetError, match="part 0 is unreadable .*delete this folder"):
        FrameStore(store.folder)


@pytest.mark.parametrize("below", ["", "below"])
def test_a_cache_folder_that_cannot_be_made(tiny, tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="--cache_dir .*/file.*: cannot be made: (File exists|Not a directory)"):
        open_store(tiny.root, tiny.name, LIBERO, tmp_path / "file" / below)


def test_a_dataset_that_may_not_be_read(tiny, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("eosjax.data.rlds.source.record_checksums", refuse)
    with pytest.raises(DatasetError, match="libero_goal_no_noops-train.tfrecord-00000-of-00002: cannot be read: Permission denied"):
        open_store(tiny.root, tiny.name, LIBERO, tmp_path)


def test_a_store_that_cannot_be_written(tiny, tmp_path):
    folder = store_folder(tiny.root, tiny.name, LIBERO, tmp_path)
    folder.with_name(folder.name + ".lock").mkdir()  # as good as a disk without space
    with pytest.raises(DatasetError, match=f"the frame store {folder} cannot be built: .*Is a directory"):
        open_store(tiny.root, tiny.name, LIBERO, tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"name": 3, "parts": "all", "bytes": 1}', b"\xff"])
@pytest.mark.parametrize("name", ["store.json", "part-00000.json"])
def test_damaged_texts_are_refused(store, name, content):
    (store.folder / name).write_bytes(content)
    with pytest.raises(DatasetError, match=r"frame store .* unreadable .*delete this folder"):
        FrameStore(store.folder)


def test_damaged_record_names_the_episode_and_step(store):
    path = store.folder / "part-00000.array_record"
    data = bytearray(path.read_bytes())
    at = data.find(store.images(6)[0][:60])
    assert at > 0
    data[at : at + 60] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="episode 2, step 1: unreadable record"):
        FrameStore(store.folder).images(6)


def test_episodes_without_steps_keep_their_number(make_store):
    store = make_store((0, 2, 0, 0, 3, 0))
    assert np.diff(store.episode_starts).tolist() == [0, 2, 0, 0, 3, 0]
    assert [store.locate(frame) for frame in range(5)] == [(1, 0), (1, 1), (4, 0), (4, 1), (4, 2)]
    assert decode(store.images(2)[0])[0, 0].tolist() == [4, 0, 0]
    with pytest.raises(DatasetError, match="no step in it"):
        make_store((0, 0))


def test_empty_dataset(tmp_path):
    with pytest.raises(DatasetError, match="no step in it"):
        write_store(iter(()), "made", tmp_path)


def test_labels_of_the_libero_sample_fit(tmp_path):
    from eosjax.data.labels import import_labels, join_labels

    data = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"LIBERO sample not found: {data}")
    name = "libero_goal_no_noops"
    store = open_store(data, name, spec_for(name), tmp_path)
    labels = join_labels(import_labels(data / "substep_labels_output.json", name), store)
    assert (store.num_episodes, store.num_frames, int(labels.ends.sum())) == (36, 6149, 180)
    assert labels.ends[store.episode_starts[1:] - 1].all()  # the last step of every episode
