"""Which texts can name a folder, and which say something."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.names import (
    LONGEST_INSTRUCTION,
    check_dataset_name,
    check_name,
    folder_name,
    instruction_fault,
    is_blank,
    is_unicode,
    split_revision,
)
from eosjax.types import UserError


@given(st.text(max_size=300))
def test_a_plain_name_is_one_part_of_a_path_that_can_be_made(name):
    try:
        check_name("--flag", name, UserError)
    except UserError:
        return
    assert os.path.basename(name) == name
    assert os.path.normpath(os.path.join("/runs", name)) == f"/runs/{name}"
    assert 0 < len(name.encode()) <= 255
    assert "\0" not in name


def test_what_is_wrong_is_said_with_the_flag():
    with pytest.raises(UserError, match="--flag: expected a plain name, which becomes part of the name of a folder; got '../x': a / leads"):
        check_name("--flag", "../x", UserError)


@pytest.mark.parametrize(
    ("dataset", "parts"),
    [("owner/name@main", ("owner/name", "main")), ("owner/name", ("owner/name", None)), ("a@b", ("a@b", None)), ("@", ("@", None))],
)
def test_a_revision_belongs_to_a_name_with_an_owner(dataset, parts):
    assert split_revision(dataset) == parts


def test_a_dataset_may_have_an_owner():
    for name in ("libero_goal", "owner/name"):
        check_dataset_name("--flag", name, UserError)
    for name in ("a/b/c", "/a", "a/", "../a", "a/.."):
        with pytest.raises(UserError, match="--flag: expected a plain name"):
            check_dataset_name("--flag", name, UserError)
    assert folder_name("owner/name") == "owner--name"


@pytest.mark.parametrize("name", ["libero_goal_no_noops", "run-1", "größe", "a..b", "a b", "n" * 255])
def test_usual_names_are_plain(name):
    check_name("--flag", name, UserError)


@pytest.mark.parametrize(
    ("text", "blank", "unicode"), [("open", False, True), ("?!", True, True), ("開ける", False, True), ("a\udc00", False, False)]
)
def test_what_says_something(text, blank, unicode):
    assert (is_blank(text), is_unicode(text)) == (blank, unicode)


def test_instructions_that_can_be_followed():
    assert instruction_fault("a" * LONGEST_INSTRUCTION) is None
    assert instruction_fault("a" * (LONGEST_INSTRUCTION + 1)) == "expected at most 1,000 characters, not 1,001"
    for text in ("?!", "half a pair \ud800"):
        assert instruction_fault(text) == "expected a text with a letter or digit, in Unicode"
