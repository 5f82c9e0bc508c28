"""Format 5: CycleVLA."""

import json

import pytest

from eosjax.data.labels import import_labels
from tests.data.labels.builders import TASK, cyclevla, dataset, ends_of, kinds, rows_of

CHUNKS = [(0, 3, "pick"), (4, 9, "place")]


def one_list(folder, *episodes):
    path = folder / "labels.json"
    path.write_text(json.dumps(list(episodes)))
    return path


def test_the_end_is_inclusive(tmp_path):
    table = import_labels(one_list(tmp_path, cyclevla(1, 5, (0, 4, "lift")), cyclevla(0, 10, *CHUNKS)), "any")
    assert rows_of(table, 0) == [(0, 3, True, "pick"), (4, 9, True, "place")]
    assert (table.lengths, table.tasks) == ({0: 10, 1: 5}, {0: TASK, 1: TASK})
    assert ends_of(table, dataset(10, 5)) == [3, 9, 14]


def test_chunks_without_sub_step_are_gaps(tmp_path):
    table = import_labels(
        one_list(tmp_path, cyclevla(0, 10, (0, 2, None), (3, 5, "pick"), (6, 9, None)), cyclevla(1, 4, (0, 3, None))), "any"
    )
    assert rows_of(table, 0) == [(3, 5, True, "pick")]
    assert kinds(table, dataset(10, 4)) == [("episode without labels", 1)]


def test_the_same_sub_step_twice_in_a_row(tmp_path):
    table = import_labels(one_list(tmp_path, cyclevla(0, 6, (0, 2, "pick"), (3, 5, "pick"))), "any")
    assert rows_of(table) == [(0, 2, True, "pick"), (3, 5, True, "pick")]


@pytest.mark.parametrize("layout", ["episode_{}/chunks_summary.json", "episode_{}_llm/chunks_summary.json", "{}.json"])
def test_folders(tmp_path, layout):
    for number in range(3):
        file = tmp_path / layout.format(number)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(cyclevla(number, 10 + number, *CHUNKS)))
    if "/" in layout:
        (tmp_path / "all_episodes_summary.json").write_text('{"total_episodes": 3}')
    assert import_labels(tmp_path, "any").lengths == {0: 10, 1: 11, 2: 12}


def test_one_episode_alone(tmp_path):
    path = tmp_path / "chunks_summary.json"
    path.write_text(json.dumps(cyclevla(0, 10, *CHUNKS)))
    assert import_labels(path, "any").lengths == {0: 10}


def test_the_place_in_the_dataset_goes_before_the_number_of_the_source(tmp_path):
    assert import_labels(one_list(tmp_path, cyclevla(731, 10, *CHUNKS, episode_id_pseudo="0")), "any").lengths == {0: 10}


def test_a_tail_that_was_cut_off_the_number_of_steps(tmp_path):
    cut = cyclevla(0, 10, *CHUNKS) | {"features": {"state_3d": [[0.0] * 3] * 14}}
    assert ends_of(import_labels(one_list(tmp_path, cut), "any"), dataset(14)) == [3, 9]


@pytest.mark.parametrize(
    ("episode", "expected"),
    [
        (cyclevla(0, 9, *CHUNKS), [("length mismatch", 0)]),
        (cyclevla(0, 10, *CHUNKS, task="open it"), [("instruction mismatch", 0)]),
        (cyclevla(0, 10, (0, 10, "pick")), [("end outside the episode", 0)]),
        (cyclevla(0, 10, (0, 4, "pick"), (4, 9, "place")), [("overlap", 0)]),
        (cyclevla(0, 10, (5, 4, "pick")), [("empty segment", 0)]),
        (cyclevla(0, 10, (0, 4.0, "pick")), [("wrong shape", 0)]),
        (cyclevla(0, 10, (0, 4, 3)), [("wrong shape", 0)]),
        (cyclevla("x", 10, *CHUNKS), [("wrong shape", None), ("episode without labels", 0)]),
        (cyclevla(0, "10", *CHUNKS), [("wrong shape", None), ("episode without labels", 0)]),
        ({"metadata": None, "chunks": []}, [("wrong shape", None), ("episode without labels", 0)]),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, episode, expected):
    assert kinds(import_labels(one_list(tmp_path, episode), "any"), dataset(10)) == expected


def write_in(folder, **texts):
    """A folder with an episode of one sub-step, of this text, in each of some folders."""
    for name, text in texts.items():
        (folder / name).mkdir()
        (folder / name / "chunks_summary.json").write_text(json.dumps(cyclevla(0, 10, (0, 9, text))))
    return folder


@pytest.mark.parametrize(
    "folders",
    [["episode_0", "episode_0_manual"], ["episode_0_llm", "episode_0_manual"], ["episode_0", "episode_0_llm", "episode_0_manual"]],
)
def test_of_several_folders_of_an_episode_the_one_that_cyclevla_takes(tmp_path, folders):
    """Its builder of datasets looks for `episode_N`, `episode_N_llm` and `episode_N_manual`, in this order."""
    table = import_labels(write_in(tmp_path, **{name: name for name in folders}), "any")
    assert (table.instruction, table.problems) == ([folders[0]], ())


def test_an_episode_in_two_files(tmp_path):
    table = import_labels(write_in(tmp_path, episode_0="pick", other="pick"), "any")
    assert kinds(table, dataset(10)) == [("overlap", 0)]
    assert "episode_0/chunks_summary.json and in other/chunks_summary.json" in table.problems[0].what
