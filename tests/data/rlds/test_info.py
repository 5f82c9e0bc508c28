"""The metadata of a dataset: what is read of them, and what is refused before TFDS sees it."""

import json

import pytest
from tensorflow_datasets.core.proto import dataset_info_pb2

from eosjax.data.episode import DatasetError
from eosjax.data.rlds.info import DATASET_INFO, SPLIT_INFO, dataset_dir, num_episodes, open_dataset

TRAIN = {"name": "train", "shardLengths": ["2"], "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
INFO = {"name": "some", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [TRAIN]}
TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
FEATURES = {
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "featuresDict": {"features": {"type": TEXT}},  # a feature may have any name
}
SHARD = "some-train.tfrecord-00000-of-00001"


@pytest.fixture
def write(tmp_path):
    """A function (info, features, files) that makes the folder of a dataset; texts are written as they are."""

    def write(info=INFO, features=FEATURES, files=(SHARD,)):
        folder = tmp_path / "some" / "1.0.0"
        folder.mkdir(parents=True)
        for name, content in (("dataset_info.json", info), ("features.json", features)):
            if content is not None:
                (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        for name in files:
            (folder / name).write_bytes(bytes(100))
        return folder

    return write


@pytest.mark.parametrize(("name", "length"), [("libero_goal_no_noops", 8), ("other", 8), ("many", 336)])
def test_announced_number_of_episodes(tiny, name, length):
    assert num_episodes(dataset_dir(tiny.root, name)) == length


def test_missing_dataset_names_what_is_there(tiny):
    with pytest.raises(DatasetError, match=r"no dataset 'libero_gaol'.*datasets found there: libero_10, libero_goal_no_noops, many, other"):
        dataset_dir(tiny.root, "libero_gaol")


def test_missing_data_root(tmp_path):
    with pytest.raises(DatasetError, match="no dataset found there"):
        dataset_dir(tmp_path / "nowhere", "libero_goal")


def test_newest_version_is_taken(tmp_path):
    for version in ("1.0.0", "10.0.0", "9.1.0"):
        (tmp_path / "some" / version).mkdir(parents=True)
        (tmp_path / "some" / version / "dataset_info.json").touch()
    assert dataset_dir(tmp_path, "some").name == "10.0.0"


def test_features_and_files(write):
    folder = write()
    features, shards = open_dataset(folder)
    assert list(features.keys()) == ["type"]
    assert shards == ([(folder / SHARD, 2)], "tfrecord", True)


def test_every_field_that_tfds_knows_has_a_treatment():
    for fields, message in ((DATASET_INFO, dataset_info_pb2.DatasetInfo), (SPLIT_INFO, dataset_info_pb2.SplitInfo)):
        assert fields.keys() == {field.json_name for field in message.DESCRIPTOR.fields}


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("{", "dataset_info.json: not JSON"),
        ("[]", "dataset_info.json: the file: expected an object, got \\[\\]"),
        ('{"name": "a", "name": "b"}', "dataset_info.json: repeated key: 'name' twice"),
        (INFO | {"disableShufling": True}, r"disableShufling: unknown field \(did you mean disableShuffling\?\)"),
        (INFO | {"isBlocked": "wrong labels"}, "isBlocked: expected '' or None, got 'wrong labels': the authors have withdrawn"),
        (INFO | {"splits": {}}, "splits: expected a list, got {}"),
        (INFO | {"splits": []}, "expected a split 'train'; found: none"),
        (INFO | {"splits": [TRAIN | {"name": "val"}]}, "expected a split 'train'; found: 'val'"),
        (INFO | {"splits": [TRAIN, TRAIN]}, r"splits\[1\].name: expected a name that no other split has, got 'train'"),
        (INFO | {"splits": [{"name": "train"}]}, "shardLengths: expected the number of episodes in each file of train, got None"),
        (INFO | {"splits": [TRAIN | {"shardLengths": ["-1"]}]}, r"shardLengths: expected .*, got \['-1'\]"),
        (INFO | {"splits": [TRAIN | {"shardLengths": ["9" * 30]}]}, "shardLengths: expected"),
        (INFO | {"splits": [TRAIN | {"shardLengths": [2.5]}]}, "shardLengths: expected"),
        (
            INFO | {"splits": [TRAIN | {"shardLengths": [101]}]},
            f"{SHARD}: expected 101 episodes in this file, as announced; found 100 bytes",
        ),
        (INFO | {"splits": [TRAIN | {"shardLengths": [1, 1]}]}, "00000-of-00002: this file of the dataset is missing"),
        (INFO | {"splits": [TRAIN | {"filepathTemplate": "../other/{SPLIT}"}]}, "filepathTemplate: expected the name of a file"),
        (INFO | {"splits": [TRAIN | {"filepathTemplate": "{SPLIT:>999999999999}"}]}, "filepathTemplate: expected the name of a file"),
        (INFO | {"splits": [TRAIN | {"filepathTemplate": "{DATASET.__class__}"}]}, "filepathTemplate: expected the name of a file"),
        (INFO | {"name": "../other"}, "splits: expected files in this folder, got .*/1.0.0/../other-train.tfrecord"),
        (INFO | {"version": "one"}, "dataset_info.json or features.json cannot be read: ValueError"),
        (INFO | {"description": 3}, "dataset_info.json or features.json cannot be read: ParseError"),
    ],
)
def test_faulty_metadata_are_named(write, info, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(write(info))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "features.json: unreadable file: No such file"),
        ("{", "features.json: not JSON"),
        ("[]", "dataset_info.json or features.json cannot be read: "),
        (
            {"pythonClassName": "this.is_imported"},
            r"pythonClassName: expected a class in tensorflow_datasets.core.features.\*, got 'this.is_imp",
        ),
        ({"type": "antigravity.Feature", "content": {}}, "pythonClassName: expected a class in tensorflow_datasets.core.features"),
        (FEATURES | {"featuresDict": {"features": {"a": {"pythonClassName": "no.Such"}}}}, "expected a class in .*, got 'no.Such'"),
        ({"pythonClassName": "tensorflow_datasets.core.features.nothing.Such"}, "cannot be read: "),
    ],
)
def test_faulty_features_are_named(write, features, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(write(features=features))
