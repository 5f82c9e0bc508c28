"""Whatever is in the files of a LeRobot dataset, reading it ends in episodes or in a `UserError`."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.lerobot.info import INFO
from eosjax.data.sources import describe, find_source
from tests.data.lerobot.builders import FRONT, make_lerobot, write_parquet
from tests.fuzz import damaged, damaged_bytes, refused_or_read

FEW, MORE = settings(max_examples=30), settings(max_examples=80)
VALUES = [None, 0, -1, 2**62, True, 0.5, float("nan"), 1e300, "x", b"\xff", [], ["x"], [1], [1e300, 2.0], {"bytes": 1}, {"bytes": b"x"}]
FILES = ["meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet", "data/chunk-000/file-000.parquet"]
LEGACY_FILES = ["meta/episodes.jsonl", "meta/tasks.jsonl", f"videos/chunk-000/{FRONT}/episode_000000.mp4"]


def read(folder):
    with refused_or_read():
        for episode in find_source(folder.parent, "made").read_episodes(describe(folder.parent, "made")):
            for camera in episode.images:
                list(camera)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """By version: a sound dataset, and a copy to be damaged."""
    made = {}
    for legacy in (False, True):
        sound = make_lerobot(
            tmp_path_factory.mktemp("sound") / "made", legacy, "video" if legacy else "image", lengths=(2, 2), cameras=(FRONT,)
        )
        made[legacy] = sound, shutil.copytree(sound, tmp_path_factory.mktemp("damaged") / "made")
    return made


@pytest.mark.parametrize("legacy", [False, True])
@MORE
@given(data=st.data())
def test_damaged_info(datasets, legacy, data):
    sound, folder = datasets[legacy]
    (folder / INFO).write_text(json.dumps(data.draw(damaged(json.loads((sound / INFO).read_text())))))
    read(folder)
    shutil.copyfile(sound / INFO, folder / INFO)


@pytest.mark.parametrize(("legacy", "name"), [*((False, name) for name in FILES), *((True, name) for name in LEGACY_FILES)])
@FEW
@given(data=st.data())
def test_damaged_files(datasets, legacy, name, data):
    sound, folder = datasets[legacy]
    (folder / name).write_bytes(data.draw(damaged_bytes((sound / name).read_bytes())))
    read(folder)
    shutil.copyfile(sound / name, folder / name)


@pytest.mark.parametrize("name", FILES)
@MORE
@given(data=st.data())
def test_columns_of_another_kind(datasets, name, data):
    sound, folder = datasets[False]
    table = pq.read_table(sound / name)
    column = data.draw(st.sampled_from(table.column_names))
    value = data.draw(st.sampled_from(VALUES))
    rows = data.draw(st.sampled_from([[value] * len(table), [value] + [None] * (len(table) - 1)]))
    write_parquet(folder / name, table.set_column(table.schema.get_field_index(column), column, pa.array(rows)))
    read(folder)
    shutil.copyfile(sound / name, folder / name)
