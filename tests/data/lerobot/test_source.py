"""Reading LeRobot datasets of versions 3.0 and 2.1, with images and with videos, and what is refused."""

import dataclasses
import io
import json
import subprocess
import sys
import typing

import huggingface_hub
import huggingface_hub.errors
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eosjax.data import sources
from eosjax.data.episode import DatasetError
from eosjax.data.frames.store import open_store, source_fingerprint, store_folder
from eosjax.data.labels import LabelError, Segment, export_lerobot, import_labels, join_labels, make_table
from eosjax.data.lerobot import info as info_file
from eosjax.data.lerobot.episodes import read_episode_table
from eosjax.data.lerobot.info import read_info
from eosjax.data.sources import describe, find_source, own_labels
from tests.data.lerobot.builders import (
    FPS,
    FRONT,
    LENGTHS,
    TASKS,
    WRIST,
    change_frames,
    make_lerobot,
    picture,
    png,
    write_json,
    write_parquet,
    write_video,
)

KINDS = [(False, "image"), (False, "video"), (True, "image"), (True, "video")]


def read(folder, start=0, **changes):
    spec = dataclasses.replace(describe(folder.parent, folder.name), **changes)
    return [
        dataclasses.replace(episode, images=tuple(list(camera) for camera in episode.images))
        for episode in find_source(folder.parent, folder.name).read_episodes(spec, start)
    ]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A function (legacy, kind) -> the folder of a dataset, which must not be changed."""
    folders = {key: tmp_path_factory.mktemp("lerobot") / "made" for key in KINDS}
    return lambda legacy, kind: (
        folders[legacy, kind] if (folders[legacy, kind] / "meta").exists() else make_lerobot(folders[legacy, kind], legacy, kind)
    )


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), np.int32)


@pytest.mark.parametrize(("legacy", "kind"), KINDS)
def test_every_frame_is_read_as_it_was_written(made, legacy, kind):
    episodes = read(made(legacy, kind))
    assert [len(episode) for episode in episodes] == list(LENGTHS)
    assert [episode.task for episode in episodes] == [TASKS[0], TASKS[1], TASKS[0]]
    for number, episode in enumerate(episodes):
        steps = np.arange(len(episode))
        state = np.stack([number * 10 + steps / 10] * 6, axis=1).astype(np.float32)
        np.testing.assert_array_equal(episode.proprio, state)
        np.testing.assert_array_equal(episode.actions[:, :-1], state[:, :-1] + np.float32(0.5))
        np.testing.assert_array_equal(episode.actions[:, -1], steps % 2)  # per cent become 0 to 1
        for camera, images in enumerate(episode.images):
            assert len(images) == len(episode)
            for step, data in enumerate(images):
                expected = picture(number, step, camera)
                if kind == "image":
                    assert data == png(expected)
                else:
                    assert np.abs(pixels(data) - expected).mean() < 4  # another step or episode differs by 12 and more


@pytest.mark.parametrize(("legacy", "kind"), KINDS)
def test_reading_from_the_middle_gives_the_same_bytes(made, legacy, kind):
    whole = read(made(legacy, kind))
    for start in (1, 2):
        for episode, same in zip(read(made(legacy, kind), start), whole[start:], strict=True):
            assert (episode.index, episode.images, episode.task) == (same.index, same.images, same.task)
            np.testing.assert_array_equal(episode.actions, same.actions)


def test_images_that_nobody_asked_for_are_passed_over(made):
    folder = made(False, "image")
    episodes = list(find_source(folder.parent, folder.name).read_episodes(describe(folder.parent, folder.name)))
    last = [list(camera) for camera in episodes[-1].images]
    assert last == list(read(folder)[-1].images)


def test_far_ahead_in_a_video_is_reached_by_a_key_frame(tmp_path):
    """The same pictures as by decoding all before them."""
    folder = make_lerobot(tmp_path / "made", kind="video", lengths=(40, 4), cameras=(FRONT,))
    assert read(folder, 1)[0].images == read(folder)[1].images


def test_steps_that_are_left_out(made):
    (first, *_), (whole, *_) = read(made(False, "video"), skip_first=1, motion="reached_states"), read(made(False, "video"))
    assert first.images == tuple(camera[1:-1] for camera in whole.images)
    np.testing.assert_allclose(first.actions[:, :-1], 0.1, atol=1e-5)


def test_the_frame_store_is_built_once_and_without_tensorflow(made, tmp_path):
    folder = made(False, "video")
    code = f"""
import sys
from pathlib import Path
from eosjax.data.frames.build import build_store
from eosjax.data.sources import describe
build_store({str(folder.parent)!r}, "made", describe({str(folder.parent)!r}, "made"), Path({str(tmp_path / "built")!r}))
assert not {{"tensorflow", "tensorflow_datasets", "jax"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    spec = describe(folder.parent, "made")
    child = (
        f"import sys; from eosjax.data.sources import describe; describe({str(folder.parent)!r}, 'made'); assert 'av' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", child], check=True)  # FFmpeg is for the process that builds
    store = open_store(folder.parent, "made", spec, tmp_path / "cache")
    assert (store.num_episodes, store.num_frames, store.tasks[1]) == (3, sum(LENGTHS), TASKS[1])
    assert store.images(sum(LENGTHS) - 1) == tuple(camera[-1] for camera in read(folder)[-1].images)
    built = {path.name: path.read_bytes() for path in (tmp_path / "built").iterdir()}
    assert built == {path.name: path.read_bytes() for path in store.folder.iterdir()}


def test_the_fingerprint_changes_with_the_files_that_are_read(tmp_path):
    folder = make_lerobot(tmp_path / "made", kind="video", lengths=(2,))
    spec = dataclasses.replace(describe(tmp_path, "made"), image_keys=(FRONT,))
    before = source_fingerprint(tmp_path, "made", spec)
    (folder / "meta/stats.json").write_text("{}")
    (folder / "README.md").write_text("of no account")
    write_video(folder / f"videos/{WRIST}/chunk-000/file-000.mp4", [picture(3, 3, 1)] * 2)
    assert source_fingerprint(tmp_path, "made", spec) == before
    write_video(folder / f"videos/{FRONT}/chunk-000/file-000.mp4", [picture(3, 3, 1)] * 2)
    assert source_fingerprint(tmp_path, "made", spec) != before


def test_missing_dataset_names_those_of_both_formats(made):
    with pytest.raises(DatasetError, match="no dataset 'mode' in .*datasets found there: made"):
        find_source(made(False, "image").parent, "mode")


def test_fifty_thousand_episodes_open_in_seconds_and_little_memory(tmp_path):
    """The metadata only; statistics of the episodes, which take most of the bytes, are not read."""
    count, cameras = 50_000, (FRONT, WRIST)
    features = {key: {"dtype": "float32", "shape": [6], "names": None} for key in ("observation.state", "action")}
    features |= {camera: {"dtype": "video", "shape": [48, 64, 3], "names": None} for camera in cameras}
    content = {"codebase_version": "v3.0", "fps": FPS, "features": features, "total_episodes": count, "total_frames": 100 * count}
    write_json(tmp_path / "many/meta/info.json", content)
    numbers, zeros = np.arange(count), np.zeros(count, np.int64)
    columns = {"episode_index": numbers, "length": zeros + 100, "data/chunk_index": zeros, "data/file_index": numbers // 1000}
    for camera in cameras:
        start = numbers % 50 * 10.0
        times = {"from_timestamp": start, "to_timestamp": start + 10}
        columns |= {f"videos/{camera}/{key}": value for key, value in (times | {"chunk_index": zeros, "file_index": numbers // 50}).items()}
    columns |= {f"stats/{key}/mean": list(np.zeros((count, 6))) for key in ("observation.state", "action")}
    write_parquet(tmp_path / "many/meta/episodes/chunk-000/file-000.parquet", columns)
    write_parquet(tmp_path / "many/meta/tasks.parquet", {"task_index": [0], "task": ["Do it"]})
    code = f"""
import resource, sys
from pathlib import Path
from eosjax.data.lerobot.info import read_info
from eosjax.data.lerobot.episodes import read_episode_table
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime
table = read_episode_table(read_info(Path({str(tmp_path / "many")!r})), {cameras!r})
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_maxrss - before, after.ru_utime - cpu, table.row[1999], table.video_file({FRONT!r}, 49_999).name)
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert printed[2:] == ["99900", "file-999.mp4"]
    assert float(printed[0]) < 150_000  # kB
    assert float(printed[1]) < 5  # seconds of a processor


# What is wrong with a dataset: how it is made so, and what the error says.


def edit(folder, **changes):
    path = folder / info_file.INFO
    write_json(path, json.loads(path.read_text()) | changes)


def edit_feature(folder, key, **changes):
    content = json.loads((folder / info_file.INFO).read_text())
    content["features"][key] |= changes
    write_json(folder / info_file.INFO, content)


def edit_episodes(folder, **columns):
    change_frames(folder / "meta/episodes/chunk-000/file-000.parquet", **columns)


def put(at, value):
    return lambda values: [*values[:at], value, *values[at + 1 :]]


FAULTS = {
    "another version": (
        lambda f: edit(f, codebase_version="v1.6"),
        r"info.json: codebase_version: expected v3.x, v2.1 or v2.0, got 'v1.6'",
    ),
    "an unknown field": (lambda f: edit(f, speed=2), "info.json: speed: unknown field"),
    "other file names": (lambda f: edit(f, data_path="{}.parquet"), "info.json: data_path: expected 'data/chunk-"),
    "no frame rate": (lambda f: edit(f, fps=0), "info.json: fps: expected a number above 0, got 0"),
    "fewer episodes": (lambda f: edit(f, total_episodes=4), "total_episodes: expected 3, as meta/episodes has them, got 4"),
    "fewer frames": (lambda f: edit(f, total_frames=13), "total_frames: expected 12, as meta/episodes has them, got 13"),
    "a feature that leads away": (lambda f: edit(f, features={"a/b": {"dtype": "image", "shape": [1]}}), "expected a name without /"),
    "a camera of another kind": (
        lambda f: edit_feature(f, FRONT, dtype="float32"),
        "image_keys: observation.images.front: expected a video or images, got float32",
    ),
    "a number too few": (
        lambda f: edit_feature(f, "action", shape=[7]),
        r"episode 0: column action: expected vectors of 7 numbers, got 6 in",
    ),
    "an episode twice": (lambda f: edit_episodes(f, episode_index=put(1, 0)), "expected the episodes 0 to 2, got 0 in place of 1"),
    "an episode that is longer": (
        lambda f: (edit_episodes(f, length=put(1, 4)), edit(f, total_frames=13)),
        r"file-000.parquet: expected 9 frames up to episode 1, as the metadata have them, got 8 rows",
    ),
    "an episode that is shorter": (
        lambda f: edit_episodes(f, length=lambda _: [4, 4, 4]),
        r"file-000.parquet: episode 1: expected its frames in these rows, got one of episode 0 as frame 0",
    ),
    "another data file": (lambda f: edit_episodes(f, **{"data/file_index": put(2, 7)}), "file-007.parquet: this file .* missing .1 of 2"),
    "a file that comes back": (lambda f: edit_episodes(f, **{"data/file_index": lambda _: [0, 1, 0]}), "a file comes back after another"),
    "a negative index": (lambda f: edit_episodes(f, **{"data/chunk_index": put(2, -1)}), "episode 2: data/chunk_index: expected a number"),
    "frames out of order": (
        lambda f: change_frames(f / "data/chunk-000/file-001.parquet", frame_index=lambda v: [v[1], v[0], *v[2:]]),
        "file-001.parquet: episode 2: frame_index: expected 0 to 3 in order, got 1 as frame 0",
    ),
    "a variable frame rate": (
        lambda f: change_frames(f / "data/chunk-000/file-001.parquet", timestamp=put(2, 0.23)),
        "file-001.parquet: episode 2, step 2: timestamp: expected 0.2000 s at fps 10, got 0.2300 s",
    ),
    "an unknown task": (
        lambda f: change_frames(f / "data/chunk-000/file-001.parquet", task_index=put(0, 9)),
        "file-001.parquet: episode 2: task_index: expected one of meta/tasks, got 9",
    ),
    "two tasks": (
        lambda f: change_frames(f / "data/chunk-000/file-001.parquet", task_index=put(0, 1)),
        "file-001.parquet: episode 2: expected one task instruction, got .'Open the drawer', 'Put the cup away'",
    ),
    "NaN": (
        lambda f: change_frames(f / "data/chunk-000/file-001.parquet", action=put(1, [np.nan] * 6)),
        "file-001.parquet: episode 2, step 1: actions has NaN or infinity",
    ),
    "a number that is missing": (
        lambda f: change_frames(f / "data/chunk-000/file-001.parquet", timestamp=put(1, None)),
        "file-001.parquet: episode 2: column timestamp: expected numbers .* 1 values are missing",
    ),
    "a gripper in another unit": (
        lambda f: change_frames(f / "data/chunk-000/file-001.parquet", action=put(1, [0.0] * 5 + [3000.0])),
        "file-001.parquet: episode 2: actions: gripper: percent_open expects stored values from 0 to 100, got 0 to 3000",
    ),
    "no image": (
        lambda f: change_frames(f / "data/chunk-000/file-001.parquet", **{FRONT: put(1, {"bytes": None, "path": "a.png"})}),
        "file-001.parquet: episode 2, observation.images.front, step 1: expected the bytes of an image, got .*a.png",
    ),
    "half an image": (
        lambda f: change_frames(
            f / "data/chunk-000/file-001.parquet", **{WRIST: put(1, {"bytes": png(picture(2, 1, 1))[:90], "path": ""})}
        ),
        "file-001.parquet: episode 2, observation.images.wrist, step 1: 90 bytes that are no whole JPEG or PNG",
    ),
    "a truncated data file": (
        lambda f: (f / "data/chunk-000/file-001.parquet").write_bytes((f / "data/chunk-000/file-001.parquet").read_bytes()[:-9]),
        "file-001.parquet: expected a Parquet file",
    ),
    "no tasks": (lambda f: (f / "meta/tasks.parquet").unlink(), "tasks.parquet: this file of the dataset is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_dataset_is_refused_by_file_and_episode(tmp_path, fault):
    folder = make_lerobot(tmp_path / "made")
    spec = describe(tmp_path, "made")
    change, message = FAULTS[fault]
    change(folder)
    with pytest.raises(DatasetError, match=message):
        read_all(folder, spec)


def read_all(folder, spec):
    for episode in find_source(folder.parent, folder.name).read_episodes(spec):
        for camera in episode.images:
            list(camera)


def front(folder, name="file-001.mp4"):
    return folder / f"videos/{FRONT}/chunk-000/{name}"


def pictures(count, episode=2):
    return [picture(episode, step, 0) for step in range(count)]


VIDEO_FAULTS = {
    "missing": (lambda f: front(f).unlink(), r"file-001.mp4: this file of the dataset is missing \(1 of 6 files are\)"),
    "truncated": (lambda f: front(f).write_bytes(front(f).read_bytes()[:300]), "file-001.mp4: expected an MP4 file.*truncated"),
    "no video": (lambda f: front(f).write_bytes(b"text"), "file-001.mp4: expected an MP4 file"),
    "shorter": (lambda f: write_video(front(f), pictures(3)), "file-001.mp4: observation.images.front: expected 4 frames, .* got 3"),
    "another rate": (
        lambda f: write_video(front(f), pictures(8), fps=2 * FPS),
        "file-001.mp4: episode 2, observation.images.front, step 1: a frame at 0.0500 s that no step has: .* variable",
    ),
    "a gap": (
        lambda f: write_video(front(f), pictures(4), times=[0, 1, 3, 4]),
        "file-001.mp4: episode 2, observation.images.front, step 2: expected a frame at 0.2000 s, and the next one is at 0.3000 s",
    ),
    "late": (
        lambda f: write_video(front(f), pictures(5), times=[1, 2, 3, 4, 5]),
        "file-001.mp4: episode 2, observation.images.front, step [04]: expected a frame at 0.[04]000 s",
    ),
    "another size": (
        lambda f: write_video(front(f), [p[:32] for p in pictures(4)]),
        "file-001.mp4: episode 2, .*, step 0: expected a picture of 48 x 64 pixels, got 32 x 64",
    ),
    "greyscale": (
        lambda f: write_video(front(f), [p[..., 0] for p in pictures(4)], codec="png", pix_fmt="gray"),
        "three colours of eight bits, got the",
    ),
    "ten bits": (lambda f: write_video(front(f), pictures(4), pix_fmt="yuv420p10le"), "eight bits, got the pixel format yuv420p10le"),
    "depth": (lambda f: edit_feature(f, FRONT, info={"video.is_depth_map": True}), "observation.images.front is a depth map"),
    "another place in the video": (
        lambda f: edit_episodes(f, **{f"videos/{FRONT}/from_timestamp": put(1, 0.3)}),
        "episode 1, observation.images.front: the time in the video and the length do not agree: 0.3 s to 0.8 s for 3 frames",
    ),
    "another file": (lambda f: edit_episodes(f, **{f"videos/{FRONT}/file_index": put(2, 9)}), "file-009.mp4: this file of the dataset is"),
}


@pytest.mark.parametrize("fault", VIDEO_FAULTS)
def test_a_faulty_video_is_refused_by_file_and_episode(tmp_path, fault):
    folder = make_lerobot(tmp_path / "made", kind="video")
    spec = describe(tmp_path, "made")
    change, message = VIDEO_FAULTS[fault]
    change(folder)
    with pytest.raises(DatasetError, match=message):
        read_all(folder, spec)


def test_a_damaged_video_is_refused(tmp_path):
    folder = make_lerobot(tmp_path / "made", kind="video")
    data = bytearray(front(folder).read_bytes())
    at = data.index(b"mdat") + 700  # behind the name of the encoder
    data[at : at + 200] = bytes(200)
    front(folder).write_bytes(data)
    with pytest.raises(DatasetError, match=r"file-001.mp4: episode 2, observation.images.front, step \d"):
        read_all(folder, describe(tmp_path, "made"))


LEGACY_FAULTS = {
    "an episode out of order": ('{"episode_index": 1, "tasks": ["a"], "length": 3}\n', "episodes in order; got 1 in place of 0"),
    "no JSON": ("{\n", "episodes.jsonl, line 1: expected JSON"),
    "no length": ('{"episode_index": 0}\n', "episode 0: length: expected a whole number, got None"),
}


@pytest.mark.parametrize("fault", LEGACY_FAULTS)
def test_faulty_metadata_of_version_2(tmp_path, fault):
    folder = make_lerobot(tmp_path / "made", legacy=True)
    text, message = LEGACY_FAULTS[fault]
    (folder / "meta/episodes.jsonl").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_episode_table(read_info(folder))


def test_a_video_of_version_2_that_goes_on(tmp_path):
    folder = make_lerobot(tmp_path / "made", legacy=True, kind="video")
    write_video(folder / f"videos/chunk-001/{FRONT}/episode_000002.mp4", pictures(5))
    with pytest.raises(
        DatasetError, match="episode_000002.mp4: observation.images.front: expected 4 frames, as the metadata have them, got 5"
    ):
        read_all(folder, describe(tmp_path, "made"))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_the_codecs_of_the_field(tmp_path, codec):
    folder = make_lerobot(tmp_path / "made", kind="video", lengths=(3,), cameras=(FRONT,), codec=codec)
    for step, data in enumerate(read(folder)[0].images[0]):
        assert np.abs(pixels(data) - picture(0, step, 0)).mean() < 4


def test_the_colour_range_that_a_video_states_is_honoured(tmp_path):
    """Black and white are 16 and 235 in most videos, 0 and 255 in some."""
    folder = make_lerobot(tmp_path / "made", kind="video", lengths=(2,), cameras=(FRONT,))
    board = np.zeros((48, 64, 3), np.uint8)
    board[:, 32:] = 255
    for pix_fmt in ("yuv420p", "yuvj420p"):
        write_video(front(folder, "file-000.mp4"), [board, board], pix_fmt=pix_fmt)
        found = pixels(read(folder)[0].images[0][0])
        assert np.abs(found[:, 4:28]).max() <= 3
        assert np.abs(found[:, 36:60] - 255).max() <= 3


def test_columns_of_vectors_of_one_number(tmp_path):
    """Numbers that the writer stored as they are, or as lists of one."""
    folder = make_lerobot(tmp_path / "made", lengths=(3,))
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    write_parquet(path, table.append_column("finger", [[0.0, 0.5, 1.0]]).append_column("light", [[[1.0], [2.0], [3.0]]]))
    content = json.loads((folder / info_file.INFO).read_text())
    content["features"] |= {key: {"dtype": "float32", "shape": [1], "names": None} for key in ("finger", "light")}
    write_json(folder / info_file.INFO, content)
    episode = read(folder, state_keys=("observation.state", "finger", "light"), proprio_size=8)[0]
    np.testing.assert_array_equal(episode.proprio[:, 6:], [[0, 1], [0.5, 2], [1, 3]])


def test_labels_of_its_own_are_found_without_a_flag(tmp_path):
    folder = make_lerobot(tmp_path / "plain")
    assert own_labels(tmp_path, "plain") is None
    assert own_labels(tmp_path, "elsewhere") is None
    make_lerobot(tmp_path / "old", legacy=True)
    assert own_labels(tmp_path, "old") is None
    export_lerobot(make_table({0: [Segment(0, 2, True, "reach")]}, "made", {0: 5}, {0: TASKS[0]}), folder, tmp_path / "labelled")
    assert own_labels(tmp_path, "labelled") == tmp_path / "labelled"
    table = join_labels(import_labels(tmp_path / "labelled", "labelled"), _Store(), ["unlabelled"])
    assert (table.ends.nonzero()[0].tolist(), table.labelled.tolist()) == ([2], [True, False, False])
    sarm = {f"sparse_subtask_{key}": [value] * 3 for key, value in (("names", ["reach"]), ("start_frames", [0]), ("end_frames", [2]))}
    path = tmp_path / "labelled/meta/episodes/chunk-000/file-000.parquet"
    columns = pq.read_table(path).to_pydict()
    write_parquet(path, columns | sarm)
    with pytest.raises(LabelError, match=r"more than one fits: lerobot-3.0, sarm-sparse; name the one to read \(--substep_labels_format\)"):
        import_labels(own_labels(tmp_path, "labelled"), "labelled")
    assert import_labels(own_labels(tmp_path, "labelled"), "labelled", "sarm-sparse").last.tolist() == [2, 2, 2]


def test_labels_of_its_own_count_all_stored_frames(tmp_path):
    """Also those that the description leaves out; written from labels of the kept steps, they come back."""
    folder = make_lerobot(tmp_path / "made")
    spec = dataclasses.replace(describe(tmp_path, "made"), skip_first=1, motion="reached_states")
    kept = make_table({0: [Segment(0, 0, True, "reach"), Segment(1, 2, True, "grasp")]}, "made", {0: 3}, {0: TASKS[0]})
    export_lerobot(kept, folder, tmp_path / "labelled", spec.kept_steps)
    whole = import_labels(tmp_path / "labelled", "labelled")
    assert (whole.first.tolist(), whole.last.tolist(), whole.lengths[0]) == ([0, 2], [1, 4], 5)
    store = open_store(tmp_path, "labelled", spec, tmp_path / "cache")
    labels = join_labels(import_labels(tmp_path / "labelled", "labelled", kept=spec.kept_steps), store, ["unlabelled"])
    assert np.diff(store.episode_starts).tolist() == [3, 1, 2]
    assert (labels.ends.nonzero()[0].tolist(), labels.labelled.tolist()) == ([0, 2], [True, False, False])


class _Store:
    name = "labelled"
    episode_starts = np.cumsum([0, *LENGTHS])
    tasks: typing.ClassVar = [TASKS[0], TASKS[1], TASKS[0]]


def test_a_dataset_on_the_hub_comes_through_its_cache(tmp_path, monkeypatch):
    calls = []

    def download(name, **options):
        calls.append((name, options["repo_type"], options["allow_patterns"]))
        return str(make_lerobot(tmp_path / "cache") if name == "owner/made" else tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    sources._from_hub.cache_clear()
    spec = describe(tmp_path, "owner/made")
    assert find_source(tmp_path, "owner/made").num_episodes() == 3
    assert calls == [("owner/made", "dataset", ["meta/*", "data/*", "videos/*"])]  # once
    assert store_folder(tmp_path, "owner/made", spec, tmp_path / "stores").name.startswith("owner--made-")
    with pytest.raises(DatasetError, match="--dataset_name owner/other: expected a LeRobot dataset on the hub, found no meta/info.json"):
        find_source(tmp_path, "owner/other")
    make_lerobot(tmp_path / "data/owner/other")  # a folder of one's own comes first
    assert find_source(tmp_path / "data", "owner/other").num_episodes() == 3
    sources._from_hub.cache_clear()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The cache of the hub without a network, with two commits of owner/made: of one episode (tag v1), and of two (main)."""
    repository = tmp_path / "hub/datasets--owner--made"
    for reference, commit, lengths in (("v1", "1" * 40, (4,)), ("main", "2" * 40, (4, 3))):
        make_lerobot(repository / "snapshots" / commit, lengths=lengths)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))  # of the process that builds the store
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sources._from_hub.cache_clear()
    yield tmp_path
    sources._from_hub.cache_clear()


def test_a_revision_on_the_hub(cached):
    specs = cached / "specs.yaml"
    specs.write_text("owner/made:\n  chunk: 3\n")
    for name, episodes in (("owner/made", 2), ("owner/made@v1", 1), (f"owner/made@{'1' * 40}", 1), ("owner/made@main", 2)):
        assert find_source(cached, name).num_episodes() == episodes
        assert describe(cached, name, specs).chunk == 3
    specs.write_text("owner/made:\n  chunk: 3\nowner/made@v1:\n  chunk: 4\n")
    assert describe(cached, "owner/made@v1", specs).chunk == 4
    store = open_store(cached, "owner/made@v1", describe(cached, "owner/made@v1"), cached / "stores")
    assert (store.name, store.num_episodes) == ("owner/made@v1", 1)
    assert store.folder.name.startswith("owner--made@v1-")
    with pytest.raises(DatasetError, match="--dataset_name owner/made, revision v9: no such folder, not in the cache, and the hub"):
        describe(cached, "owner/made@v9")


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    def refuse(name, **_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = "--dataset_name owner/made: no such folder, not in the cache, and the hub cannot be reached .no network"
    with pytest.raises(DatasetError, match=message):
        describe(tmp_path, "owner/made")
