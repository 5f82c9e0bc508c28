"""Whatever is in a label file, reading it ends in labels or in a `UserError`."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.labels import import_labels, join_labels
from eosjax.data.labels.plans import read_plans
from tests.data.labels.builders import KEY, TASK, body, cyclevla, dataset, entry, language, lerobot, sarm, write_parquet
from tests.fuzz import JSON, damaged, damaged_bytes, in_bytes, refused_or_read

FEW, MORE = settings(max_examples=40), settings(max_examples=100)
ENTRIES = [entry(0), entry(1, end=True), entry(2, "place"), entry(3, "place", True)]
TEXTS = {
    "original": {"any": {KEY: {"episode_0": body(4, *ENTRIES), "episode_1": body(4, *ENTRIES)}}},
    "flat": {"any_episode_0": body(4, *ENTRIES), "any_episode_1": body(4, *ENTRIES)},
    "cyclevla": [cyclevla(number, 4, (0, 1, "pick"), (2, 3, "place")) | {"features": {"state_3d": [[0.0]] * 4}} for number in range(2)],
}
PLANS = [{"suite": "any", "instruction": {"raw": TASK, "plan": [{"step": number, "subgoal": "move"} for number in range(3)]}}]
LENGTHS = (4, 4)
SUBTASKS = {"subtask_index": np.array([0, 0, 1, 1] * 2)}
FOLDERS = {
    "lerobot-3.0": {"data": SUBTASKS, "subtasks": ["pick", "place"]},
    "lerobot-3.1": {"data": language(LENGTHS, *[[(0.0, "pick"), (0.2, "place")]] * 2)},
    "sarm-sparse": {"episodes": sarm(*[[("pick", 0, 1), ("place", 2, 3)]] * 2, times=10)},
}
# Columns that take the place of others: of every type, also with values that no label has.
COLUMNS = [
    [None], [0], [-1], [2**62], [True], [0.5], [float("nan")], [1e300], ["x"], [b"\xff"], [[]], [["x"]], [[1]], [[2**62, 3]],
    [[1e300, 2.0]], [[float("nan"), 1.0]], [[None, "x"]], [{"style": "subtask"}],
    [[{"style": "subtask", "content": "x", "timestamp": 1e300}]],
    [[{"style": "subtask", "content": None, "timestamp": None}]], [[{"style": 1, "content": 2, "timestamp": "x"}]], [[None]],
]  # fmt: skip


def read(path):
    with refused_or_read():
        join_labels(import_labels(path, "any"), dataset(*LENGTHS))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "labels.json"


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, tmp_path_factory):
    return lerobot(tmp_path_factory.mktemp(request.param) / "sound", LENGTHS, **FOLDERS[request.param])


@pytest.mark.parametrize("format", TEXTS)
@MORE
@given(st.data())
def test_damaged_label_files(path, format, data):
    path.write_text(json.dumps(data.draw(damaged(TEXTS[format]))))
    read(path)
    path.write_bytes(data.draw(damaged_bytes(json.dumps(TEXTS[format]).encode())))
    read(path)


@MORE
@given(JSON.map(in_bytes) | st.binary())
def test_files_that_are_no_label_files(path, content):
    path.write_bytes(content)
    read(path)
    with refused_or_read():
        read_plans(path, "any")


@MORE
@given(damaged(PLANS))
def test_damaged_plans(path, content):
    path.write_text(json.dumps(content))
    with refused_or_read():
        read_plans(path, "any")


def test_the_sound_ones_are_read(path, folder):
    assert join_labels(import_labels(folder, "any"), dataset(*LENGTHS)).ends.tolist() == [False, True, False, True] * 2
    for content in TEXTS.values():
        path.write_text(json.dumps(content))
        assert join_labels(import_labels(path, "any"), dataset(*LENGTHS)).ends.tolist() == [False, True, False, True] * 2
    path.write_text(json.dumps(PLANS))
    assert read_plans(path, "any") == {TASK: ["move"] * 3}


@FEW
@given(st.data())
def test_folders_with_other_columns(folder, data):
    """Every column of every file, replaced by one of another type or of other values; or dropped."""
    copied = shutil.copytree(folder, folder.with_name("columns"), dirs_exist_ok=True)
    files = sorted(copied.rglob("*.parquet"))
    file = data.draw(st.sampled_from(files))
    table = pa.parquet.read_table(file)
    column = data.draw(st.sampled_from(table.column_names))
    table, place = table.drop_columns([column]), table.column_names.index(column)
    values = data.draw(st.none() | st.sampled_from(COLUMNS))
    if values is not None:
        table = table.add_column(place, column, pa.array(values * table.num_rows))
    write_parquet(file, table)
    read(copied)


@FEW
@given(st.data())
def test_folders_with_damaged_bytes(folder, data):
    copied = shutil.copytree(folder, folder.with_name("bytes"), dirs_exist_ok=True)
    file = data.draw(st.sampled_from(sorted(path for path in copied.rglob("*") if path.is_file())))
    file.write_bytes(data.draw(damaged_bytes(file.read_bytes())))
    read(copied)


@FEW
@given(damaged({"codebase_version": "v3.0", "fps": 10, "data_path": None, "features": {"action": {}}}))
def test_folders_with_a_damaged_info(folder, info):
    copied = shutil.copytree(folder, folder.with_name("info"), dirs_exist_ok=True)
    (copied / "meta/info.json").write_text(json.dumps(info))
    read(copied)
