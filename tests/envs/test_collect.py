import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from eosjax.demo.dataset import LUCK
from eosjax.demo.recordings import replay
from eosjax.envs import collect as module
from eosjax.envs.attempts import FAILURES, DemoSource
from eosjax.envs.collect import ATTEMPTS_FILE, LABELS_FILE, Settings, collect, kind_of
from eosjax.types import UserError

SOURCE = DemoSource()
DATASET_NAME = SOURCE.dataset
SETTINGS = Settings("demo", 2, 4, 0.0, False)


@pytest.fixture
def in_process(monkeypatch):
    """Makes the episodes in threads of this process, and writes the dataset in it."""
    monkeypatch.setattr(
        module, "run_module", lambda name, folder, parts, dataset, size, count: module._write(folder, parts, dataset, int(size), int(count))
    )
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda processes, mp_context: ThreadPoolExecutor(processes))


def read(folder):
    """The actions of each episode by its name, as TFDS reads them, and whether the last step was rewarded."""
    import tensorflow_datasets as tfds

    found = {}
    for episode in tfds.builder(DATASET_NAME, data_dir=folder).as_dataset(split="train"):
        steps = [(step["action"], step["reward"]) for step in tfds.as_numpy(episode["steps"])]
        name = episode["episode_metadata"]["file_path"].numpy().decode()
        found[name] = (np.stack([action for action, _ in steps]), steps[-1][1])
    return found


def test_a_collection_goes_on_after_an_interruption_and_is_the_same(tmp_path, monkeypatch, in_process):
    make = module._make

    def interrupted(parts, settings, source, number):
        if number == 1:
            raise KeyboardInterrupt
        make(parts, settings, source, number)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(tmp_path / "a", SETTINGS, SOURCE, 1)
    assert not (tmp_path / "a" / LABELS_FILE).exists()
    made = []
    monkeypatch.setattr(module, "_make", lambda *args: (made.append(args[-1]), make(*args)))
    assert collect(tmp_path / "a", SETTINGS, SOURCE, 1) == {"demonstration": 2, "missed": 0, "lost": 0, "beside": 0}
    assert 1 in made
    assert 0 not in made
    collect(tmp_path / "b", SETTINGS, SOURCE, 2)
    one, other = read(tmp_path / "a"), read(tmp_path / "b")
    assert sorted(one) == [f"{DATASET_NAME}/4/{number:05d}.hdf5" for number in range(2)]
    for name, (actions, reward) in one.items():
        np.testing.assert_array_equal(actions, other[name][0])
        assert reward == 1.0
        number = int(name.removesuffix(".hdf5")[-5:])
        again = replay((4, number), LUCK, actions)
        assert again.success
        assert again.end.sum() == 5
    assert (tmp_path / "a" / LABELS_FILE).read_text() == (tmp_path / "b" / LABELS_FILE).read_text()
    made.clear()
    collect(tmp_path / "a", SETTINGS, SOURCE, 1)  # is there already
    assert made == []
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(["collect.json", DATASET_NAME, ATTEMPTS_FILE, LABELS_FILE])


def test_attempts_that_go_wrong_are_marked(tmp_path, in_process):
    settings = Settings("demo", 3, 0, 1.0, False)
    counts = collect(tmp_path / "out", settings, SOURCE, 1)
    attempts = json.loads((tmp_path / "out" / ATTEMPTS_FILE).read_text())
    kinds = [kind_of(settings, number)[0] for number in range(3)]
    assert [each["kind"] for each in attempts.values()] == kinds
    assert counts["demonstration"] == 0
    assert sum(counts.values()) == 3
    for name, (_, reward) in read(tmp_path / "out").items():
        assert attempts[name]["kind"] in name
        assert attempts[name]["success"] == bool(reward)


def test_each_kind_of_failure_occurs_and_most_fail():
    settings = Settings("demo", 30, 1, 1.0, False)
    drawn = [kind_of(settings, number) for number in range(16)]
    assert {kind for kind, _ in drawn} == set(FAILURES)
    found = [SOURCE.make((1, number), kind, rng, "") for number, (kind, rng) in enumerate(drawn)]
    assert np.mean([success for success, _ in found]) < 0.3


def test_a_process_that_dies_leaves_what_is_finished(tmp_path, monkeypatch, in_process):
    make = module._make

    def died(*args):
        if args[-1] == 1:
            raise BrokenProcessPool
        make(*args)

    monkeypatch.setattr(module, "_make", died)
    with pytest.raises(UserError, match="finished episodes are kept, and the same command goes on"):
        collect(tmp_path / "out", SETTINGS, SOURCE, 1)
    assert (tmp_path / "out" / ".episodes" / "00000.npz").exists()


def test_another_collection_is_kept(tmp_path, in_process):
    collect(tmp_path / "out", Settings("demo", 1, 0, 0.0, False), SOURCE, 1)
    with pytest.raises(UserError, match="another collection"):
        collect(tmp_path / "out", Settings("demo", 2, 0, 0.0, False), SOURCE, 1)
    shutil.rmtree(tmp_path / "out" / DATASET_NAME)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="new or empty"):
        collect(tmp_path / "mine", SETTINGS, SOURCE, 1)
