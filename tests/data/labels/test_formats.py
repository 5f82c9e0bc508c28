"""Which format a file or folder is, and files that are of none."""

import json

import pytest

from eosjax.data.labels import FORMATS, LabelError, import_labels, join_labels
from eosjax.types import UserError
from tests.data.labels.builders import KEY, body, cyclevla, dataset, entry, language, lerobot, sarm


def files(text):
    """What the files and the folders of each format are made of: one episode of two steps that end with `text`."""
    labels = body(2, entry(0, text), entry(1, text, end=True))
    texts = {
        "original": {"any": {KEY: {"episode_0": labels}}},
        "flat": {"any_episode_0": labels},
        "cyclevla": [cyclevla(0, 2, (0, 1, text))],
    }
    folders = {
        "lerobot-3.0": {"data": {"subtask_index": [0, 0]}, "subtasks": [text]},
        "lerobot-3.1": {"data": language([2], [(0.0, text)])},
        "sarm-sparse": {"episodes": sarm([(text, 0, 1)])},
        "sarm-dense": {"episodes": sarm([(text, 0, 1)], level="dense")},
    }
    return texts, folders


JSON, FOLDERS = files("pick")


def make(folder, format, text="pick"):
    """A file or folder of the format."""
    texts, folders = files(text)
    if format in folders:
        return lerobot(folder, [2], **folders[format])
    path = folder / "labels.json"
    path.write_text(json.dumps(texts[format]))
    return path


@pytest.mark.parametrize("format", JSON)
def test_a_byte_order_mark_is_no_matter(tmp_path, format):
    path = make(tmp_path, format)
    path.write_bytes(path.read_text().encode("utf-8-sig"))
    assert import_labels(path, "any").instruction == ["pick"]


@pytest.mark.parametrize(
    ("format", "before", "after", "message"),
    [
        ("original", "is_substep_end", "is_substep_ends", r"timestep_labels\[0\]: fields: is_substep_ends: unknown field"),
        ("flat", "total_timesteps", "total_timestep", "fields: total_timestep: unknown field"),
        ("cyclevla", "subtask", "sub_task", r"chunks\[0\]: fields: sub_task: unknown field"),
        ("cyclevla", "episode_id", "episodeid", "fields: episodeid: unknown field"),
    ],
)
def test_fields_that_are_not_known_are_refused(tmp_path, format, before, after, message):
    """A misspelt field would leave its meaning out."""
    path = make(tmp_path, format)
    path.write_text(path.read_text().replace(f'"{before}"', f'"{after}"'))
    with pytest.raises(LabelError, match=message):
        join_labels(import_labels(path, "any"), dataset(2))


def test_fields_that_other_labelling_programs_write(tmp_path):
    more = {"labeled_timesteps": 2, "summary": {}, "original_instruction": "x", "substeps": []}
    labels = (
        body(2, *[entry(step, "pick", step == 1) | {"action": "pick", "cycle": 0, "APD_prep_step": "move"} for step in range(2)]) | more
    )
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"any_episode_0": labels}))
    assert join_labels(import_labels(path, "any"), dataset(2)).ends.tolist() == [False, True]


@pytest.mark.parametrize("format", FORMATS[1:])
def test_every_format_is_recognised_and_can_be_named(tmp_path, format):
    path = make(tmp_path, format)
    for table in (import_labels(path, "any"), import_labels(path, "any", format)):
        assert (table.last.tolist(), table.is_end.tolist(), table.instruction) == ([1], [True], ["pick"])
        assert table.source == str(path)


@pytest.mark.parametrize("format", FORMATS[1:])
@pytest.mark.parametrize("other", FORMATS[1:])
def test_a_name_of_another_format_is_refused(tmp_path, format, other):
    if other == format:
        return
    with pytest.raises(LabelError, match=f"unknown format: {other}: expected "):
        import_labels(make(tmp_path, format), "any", other)


def test_unknown_name_of_a_format(tmp_path):
    with pytest.raises(UserError, match="label format: expected one of auto, original, flat, .*, got 'lerobot'"):
        import_labels(make(tmp_path, "original"), "any", "lerobot")


@pytest.mark.parametrize("one", FOLDERS)
@pytest.mark.parametrize("other", FOLDERS)
def test_folders_with_several_kinds_of_labels_must_be_named(tmp_path, one, other):
    if one >= other:
        return
    both = {}
    for format in (one, other):
        for argument, value in FOLDERS[format].items():
            both[argument] = both.get(argument, {}) | value if isinstance(value, dict) else value
    folder = lerobot(tmp_path, [2], **both)
    with pytest.raises(LabelError, match=f"more than one fits: {one}, {other}|more than one fits: {other}, {one}"):
        import_labels(folder, "any")
    assert import_labels(folder, "any", one).instruction == import_labels(folder, "any", other).instruction == ["pick"]


def test_a_file_of_two_formats_must_be_named(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(JSON["original"] | JSON["flat"]))
    with pytest.raises(LabelError, match="more than one fits: original, flat"):
        import_labels(path, "any")


def test_the_error_says_what_was_looked_for_and_found(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text('{"a": 1}')
    with pytest.raises(LabelError) as raised:
        import_labels(path, "any")
    text = str(raised.value)
    for expected in (
        "original: a: expected tasks, got 1",
        "flat: expected keys <dataset>_episode_N with timestep_labels, got keys a",
        "cyclevla: expected metadata and chunks, got keys a",
        "lerobot-3.0: expected a LeRobot folder",
    ):
        assert expected in text


@pytest.mark.parametrize("format", FORMATS[1:])
@pytest.mark.parametrize("text", ["", " \t", "?!"])
def test_instructions_that_say_nothing_are_refused(tmp_path, format, text):
    """They would be trained on as "take to ?"."""
    table = import_labels(make(tmp_path, format, text), "any")
    assert [(problem.kind, problem.episode) for problem in table.problems] == [("unusable instruction", 0)]
    assert "segment 0, steps 0 to 1: expected a text with a letter or digit" in table.problems[0].what
    assert not table.lengths


@pytest.mark.parametrize("format", JSON)
def test_instructions_that_are_no_unicode_are_refused(tmp_path, format):
    """JSON can hold half of a surrogate pair, which no tokenizer takes."""
    path = make(tmp_path, format)
    path.write_text(path.read_text().replace("pick", "\\ud800 a"))
    assert [problem.kind for problem in import_labels(path, "any").problems] == ["unusable instruction"]


def test_a_lerobot_folder_without_labels(tmp_path):
    with pytest.raises(LabelError) as raised:
        import_labels(lerobot(tmp_path, [2]), "any")
    text = str(raised.value)
    assert "lerobot-3.0: expected meta/subtasks.parquet, found none" in text
    assert "lerobot-3.1: expected the column language_persistent in data, found episode_index, frame_index" in text
    assert "sarm-dense: expected the column dense_subtask_names in meta/episodes, found episode_index, length, tasks" in text
    assert "original: expected an object of suites, got the folder of a LeRobot dataset" in text


def test_a_folder_of_an_older_lerobot(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text('{"fps": 10, "codebase_version": "v2.1"}')
    with pytest.raises(LabelError, match="codebase_version: expected v3, got 'v2.1'"):
        import_labels(tmp_path, "any")
    (tmp_path / "meta/info.json").write_text('{"fps": 10, "codebase_version": "v3.0"}')
    with pytest.raises(LabelError, match=r"expected meta/episodes/chunk-\*/file-\*.parquet \(LeRobot 3.0\), found none"):
        import_labels(tmp_path, "any")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(LabelError, match=r"looked for meta/info.json \(LeRobot\), .*; found notes.txt"):
        import_labels(tmp_path, "any")


def test_one_file_of_a_folder_is_something_else(tmp_path):
    (tmp_path / "0.json").write_text(json.dumps(JSON["cyclevla"][0]))
    (tmp_path / "1.json").write_text('{"metadata": {}}')
    with pytest.raises(LabelError, match="cyclevla: 1.json: expected metadata and chunks, got keys metadata"):
        import_labels(tmp_path, "any")


def test_a_parquet_file_alone(tmp_path):
    path = make(tmp_path, "lerobot-3.0") / "data/chunk-000/file-000.parquet"
    with pytest.raises(LabelError, match="a Parquet file; expected the folder of the LeRobot dataset"):
        import_labels(path, "any")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"libero_goal": {\n "a": oops}}', "not JSON: Expecting value at line 2, column 7"),
        ("[1, 2]", r"expected an object of suites, got \[1, 2\]"),
        ('{"libero_10": {}}', r"no such suite: expected one for dataset 'libero_goal', found \[\] among: libero_10"),
        ('{"libero_goal": [1]}', r"libero_goal: expected tasks, got \[1\]"),
        ('{"libero_goal": {"a": 3}}', "a: expected episodes, got 3"),
        ('{"libero_goal": {"a": {"episode_1": {}, "episode_1": {}}}}', "repeated key: 'episode_1' twice"),
        (b"\xff\xfe{", "not UTF-8"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"libero_goal": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
    ],
)
def test_files_that_are_no_label_files(tmp_path, content, message):
    path = tmp_path / "labels.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelError, match=rf"(?s){path}.*{message}"):
        import_labels(path, "libero_goal")


def test_a_path_that_cannot_be_looked_at(tmp_path):
    with pytest.raises(LabelError, match="unreadable file: File name too long"):
        import_labels(tmp_path / ("a" * 300), "libero_goal")


def test_missing_file(tmp_path):
    with pytest.raises(LabelError, match=r"labels\.json: labels refused(?s:.*)unreadable file: No such file"):
        import_labels(tmp_path / "labels.json", "libero_goal")
