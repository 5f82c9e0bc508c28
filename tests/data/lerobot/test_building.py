"""Building the frame store of a dataset with videos: by several threads, and again after the builder was killed."""

import signal
import subprocess
import sys
import threading

import pytest

from eosjax.data.frames import build
from eosjax.data.lerobot import source, video
from eosjax.data.sources import describe, find_source
from tests.data.lerobot.builders import LENGTHS, make_lerobot


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset with two episodes in its first video."""
    return make_lerobot(tmp_path_factory.mktemp("lerobot") / "made", kind="video")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_build_goes_on_in_the_middle_of_a_video_and_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    child = f"""
import os, signal
from pathlib import Path
from eosjax.data.frames import build
from eosjax.data.sources import describe

class Dying(build.EpisodeDigest):
    steps = 0

    def add(self, record):
        Dying.steps += 1
        if Dying.steps == {LENGTHS[0] + 3 + 2}:  # the second step of the second episode; actions, state and task of the first came before
            os.kill(os.getpid(), signal.SIGKILL)
        super().add(record)

build.EpisodeDigest = Dying
build.write_store.__defaults__ = (1,)  # a part ends with each episode
build.build_store({str(folder.parent)!r}, "made", describe({str(folder.parent)!r}, "made"), Path({str(killed)!r}))
"""
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == -signal.SIGKILL
    building = tmp_path / ".killed.building"
    assert not killed.exists()
    assert (building / "part-00000.json").exists()  # and an unfinished second part
    assert (building / "part-00001.array_record").exists()
    monkeypatch.setattr(build.write_store, "__defaults__", (1,))
    spec = describe(folder.parent, "made")
    starts = []
    read_episodes = source.LeRobotSource.read_episodes
    monkeypatch.setattr(source.LeRobotSource, "read_episodes", lambda self, *given: starts.append(given[1]) or read_episodes(self, *given))
    for target in (killed, whole):
        build.build_store(folder.parent, "made", spec, target)
    assert starts == [1, 0]
    assert files_of(killed) == files_of(whole)
    assert not building.exists()


def test_frames_are_encoded_by_several_threads_and_stay_in_order(folder, monkeypatch):
    met = threading.Barrier(2, timeout=20)
    encode = video.to_jpeg

    def together(frame):
        met.wait()  # until another thread encodes, too
        return encode(frame)

    def pictures():
        episodes = find_source(folder.parent, "made").read_episodes(describe(folder.parent, "made"))
        return [list(zip(*episode.images, strict=True)) for episode in episodes]

    expected = pictures()
    monkeypatch.setattr(source, "_ENCODERS", 2)
    monkeypatch.setattr(video, "to_jpeg", together)
    assert len(expected[0]) == LENGTHS[0]
    assert pictures() == expected  # two cameras: an even number of frames
