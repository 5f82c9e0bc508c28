"""Whatever is in the files of a dataset or in its description, reading ends in episodes or in a `UserError`."""

import itertools
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.rlds.episodes import read_episodes
from eosjax.data.rlds.info import dataset_dir, open_dataset
from eosjax.data.rlds.tfrecord import masked_crc32c, read_records
from eosjax.data.specs import DatasetSpec, spec_for
from tests.fuzz import JSON, damaged, damaged_bytes, in_bytes, refused_or_read

LIBERO = DatasetSpec()
FEW = settings(max_examples=40)
SPECS = """
my_robot: &robot
  image_keys: [top, side]
  state_keys: [joints]
  gripper: as_stored
  action_mask: [true, true, false]
  action_size: 3
  proprio_size: 4
  control_hz: 15
other: {<<: *robot, chunk: 3}
"""


@pytest.fixture(scope="module")
def copied(tiny, tmp_path_factory):
    """(root, folder, first record) of a copy of the tiny dataset."""
    root = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(tiny.root / tiny.name, root / tiny.name)
    folder = dataset_dir(root, tiny.name)
    return root, folder, next(read_records(next(folder.glob("*.tfrecord*"))))


def read(root):
    """The first episode of the dataset under `root`."""
    with refused_or_read():
        list(itertools.islice(read_episodes(dataset_dir(root, next(root.iterdir()).name), LIBERO), 1))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@FEW
@given(st.data())
def test_damaged_metadata(copied, name, data):
    root, folder, _ = copied
    path = folder / name
    sound = path.read_bytes()
    try:
        path.write_bytes(data.draw((damaged(json.loads(sound)) | JSON).map(in_bytes) | damaged_bytes(sound)))
        read(root)
    finally:
        path.write_bytes(sound)


@FEW
@given(st.data())
def test_damaged_episodes(copied, data):
    """The record of an episode with other bytes, and their checksum."""
    root, folder, record = copied
    content = data.draw(damaged_bytes(record) | st.binary(max_size=50))
    header = len(content).to_bytes(8, "little")
    framed = header + masked_crc32c(header).to_bytes(4, "little") + content + masked_crc32c(content).to_bytes(4, "little")
    shard = sorted(folder.glob("*.tfrecord*"))[0]
    shard.write_bytes(framed)
    read(root)


TEXTS = st.text("abc:-[]{}&*<!|'\"# \n0.", max_size=60).map(str.encode)


@settings(max_examples=100)
@given(damaged_bytes(SPECS.encode()) | TEXTS | JSON.map(in_bytes))
def test_damaged_descriptions(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "specs.yaml"
    path.write_bytes(content)
    with refused_or_read():
        spec_for("other", path)


def test_the_sound_ones_are_read(copied, tmp_path):
    _, folder, _ = copied
    path = tmp_path / "specs.yaml"
    path.write_text(SPECS)
    assert spec_for("other", path).chunk == 3
    assert open_dataset(folder)[1].in_turn
