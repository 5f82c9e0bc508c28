"""What a score file may look like, and that each thing wrong in it is told by file, line and column."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.ends.score_file import ScoreFileError, read_scores
from tests.fuzz import damaged_bytes, refused_or_read

SOUND = ["episode,step,score,label", "a,0,0.25,0", "a,1,1,1", "b,0,0,0"]


def write(tmp_path, lines, encoding="utf-8"):
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_episodes_come_in_order_of_their_first_row(tmp_path):
    first, second = read_scores(write(tmp_path, SOUND))
    assert (first.name, second.name) == ("a", "b")
    np.testing.assert_array_equal(first.scores, [0.25, 1.0])
    assert first.ends.dtype == bool
    assert (first.ends.tolist(), second.ends.tolist()) == ([False, True], [False])


def test_rows_and_columns_may_come_in_any_order_with_others_beside_them(tmp_path):
    lines = ["label, score,note,step,episode", '0,0.0,"x, y",0,b', "1.0,1e0,,1,a", "", "0,0.25,,0,a"]
    second, first = read_scores(write(tmp_path, lines, encoding="utf-8-sig"))
    assert (first.name, first.scores.tolist(), first.ends.tolist()) == ("a", [0.25, 1.0], [False, True])
    assert (second.name, second.scores.tolist()) == ("b", [0.0])


@pytest.mark.parametrize(
    ("line", "text", "why"),
    [
        (1, "episode,step,score", r"line 1: expected one column label \(of episode,step,score,label\), got episode,step,score$"),
        (1, "episode,step,score,score,label", "line 1: expected one column score .* got 2 of them"),
        (1, "", "line 1: expected one column episode .* got an empty line"),
        (2, ",0,0.25,0", "line 2, column episode: expected a name, got nothing"),
        (3, "a,1.5,1,1", "line 3, column step: expected a whole number from 0 on, got '1.5'"),
        (3, "a,-1,1,1", "line 3, column step: .* got '-1'"),
        (3, "a,1,nan,1", "line 3, column score: expected a probability from 0 to 1, got 'nan'"),
        (3, "a,1,,1", "line 3, column score: .* got ''"),
        (3, "a,1,1.01,1", "line 3, column score: .* got '1.01'"),
        (3, "a,1,-0.5,1", "line 3, column score: .* got '-0.5'"),
        (3, "a,1,high,1", "line 3, column score: .* got 'high'"),
        (3, "a,1,1,2", "line 3, column label: expected 0 or 1, got '2'"),
        (3, "a,1,1,", "line 3, column label: .* got ''"),
        (3, "a,1,1,0.5", "line 3, column label: .* got '0.5'"),
        (3, "a,1,1", "line 3: expected 4 fields, got 3"),
        (3, "a,1,1,1,1", "line 3: expected 4 fields, got 5"),
        (3, "a,0,1,1", "line 3, column step: step 0 of episode 'a' came before"),
        (3, "a,2,1,1", "episode 'a': expected steps 0 to 2, step 1 is missing"),
        (2, "a,2,1,1", "episode 'a': expected steps 0 to 2, step 0 is missing"),
        (3, '"a,1,1,1', "expected CSV in UTF-8, got unexpected end of data"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, line, text, why):
    lines = list(SOUND)
    lines[line - 1] = text
    path = write(tmp_path, lines)
    with pytest.raises(ScoreFileError, match=why) as raised:
        read_scores(path)
    assert str(path) in str(raised.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ScoreFileError, match="no_such.csv: cannot be read: No such file"):
        read_scores(tmp_path / "no_such.csv")
    with pytest.raises(ScoreFileError, match="expected at least one row below the first line, got none"):
        read_scores(write(tmp_path, SOUND[:1]))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ScoreFileError, match="got an empty line"):
        read_scores(tmp_path / "empty.csv")
    with pytest.raises(ScoreFileError, match="expected CSV in UTF-8"):
        read_scores(write(tmp_path, [*SOUND, "é,0,0,0"], encoding="latin-1"))


IN_BYTES = "\n".join(SOUND).encode()
ANY = st.text("episode,stp.corlab01-+\"'\n\r\0 9é", max_size=80).map(str.encode) | st.binary(max_size=80)


@settings(max_examples=100)
@given(ANY | damaged_bytes(IN_BYTES) | ANY.map(lambda more: IN_BYTES + more) | st.just(IN_BYTES + b"\nb,%s,0,0" % (b"9" * 5000)))
def test_any_bytes_are_scores_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "scores.csv"
    path.write_bytes(content)
    with refused_or_read():
        assert read_scores(path)


LOG = [
    {"event": "episode", "episode": "a", "step": 0},
    {"event": "step", "episode": "a", "step": 0, "score": 0.25},
    {"event": "end", "episode": "a", "step": 1, "how": "seen"},
    {"event": "step", "episode": "a", "step": 1, "score": 0.75},
    {"event": "truth", "episode": "a", "step": 1},
]


def write_log(tmp_path, lines):
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_a_decision_log_has_the_scores_of_the_steps_and_the_true_ends(tmp_path):
    (episode,) = read_scores(write_log(tmp_path, LOG))
    assert (episode.name, episode.scores.tolist(), episode.ends.tolist()) == ("a", [0.25, 0.75], [False, True])


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (LOG[:-1], "episode 'a': no true end is marked"),
        ([*LOG, LOG[1]], "line 6, column step: step 0 of episode 'a' came before"),
        ([*LOG[:3], *LOG[4:], LOG[3] | {"step": "1"}], "line 5, step: expected a whole number, got '1'"),
        ([*LOG[:3], LOG[3] | {"score": None}, LOG[4]], "line 4, column score: expected a probability from 0 to 1, got 'None'"),
        ([*LOG, '{"event": "st'], "expected a JSON object a line"),
        (["[" * 100_000], "expected a JSON object a line"),
        (LOG[:1], "expected at least one row"),
    ],
)
def test_what_is_wrong_with_a_decision_log_is_named(tmp_path, lines, why):
    with pytest.raises(ScoreFileError, match=why):
        read_scores(write_log(tmp_path, lines))


def test_an_episode_in_which_somebody_saw_no_end_counts(tmp_path):
    (episode,) = read_scores(write_log(tmp_path, [*LOG[:-1], LOG[4] | {"step": None}]))
    assert episode.ends.tolist() == [False, False]
