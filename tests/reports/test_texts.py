"""Texts from outside on a terminal, in a table and in Markdown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax import cli
from eosjax.reports.tables import markdown, table
from eosjax.reports.texts import literal, literal_lines
from eosjax.types import UserError


@given(st.text())
def test_a_text_is_one_line_that_any_terminal_and_file_can_hold(text):
    shown = literal(text)
    assert len(shown) == len(text)
    assert all(new == old or (new == " " and not old.isprintable()) for old, new in zip(text, shown, strict=True))
    assert len(shown.splitlines()) <= 1
    assert shown.encode().decode() == literal(shown) == shown
    assert not {chr(code) for code in [*range(32), 127, *range(0x80, 0xA0), 0x202E, 0x2066]} & set(shown)


@pytest.mark.parametrize("text", ["pick $5 \\frac", "größer", "碗 🥣", "a\N{NO-BREAK SPACE}b", "<b>&amp;"])
def test_what_can_be_seen_stays(text):
    assert literal(text) == text


def test_lines_stay_lines():
    assert literal_lines("a\x1b[2J\n  b\r\nc\rd") == "a [2J\n  b\nc d"


def test_a_row_of_a_table_is_a_line():
    assert table([("in\nstruction", 1), ("\x1b]0;title\x07", 22)], right="lr") == "in struction   1\n ]0;title     22"
    assert markdown([("a", "b"), ("one|two", "x\ny")]) == "| a | b |\n| --- | --- |\n| one\\|two | x y |"


def test_an_error_commands_no_terminal(monkeypatch, capsys):
    def fail(args):
        raise UserError("pla\x1b[2Jin\n  second line")

    monkeypatch.setattr("eosjax.cli.show.run", fail)
    assert cli.main(["show", "run"]) == 2
    assert capsys.readouterr().err == "eosjax show: pla [2Jin\n  second line\n"
