"""The readers of JSON and YAML against those of the libraries, and what they refuse."""

import json
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.documents import DocumentError, read_json, read_yaml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("documents") / "file"


@settings(max_examples=50)
@given(VALUES, st.sampled_from(["utf-8", "utf-8-sig"]))
def test_json_is_read_as_it_was_written(path, value, encoding):
    path.write_bytes(json.dumps(value, ensure_ascii=False).encode(encoding))
    assert read_json(path) == value


@settings(max_examples=50)
@given(VALUES, st.sampled_from(["utf-8", "utf-8-sig"]))
def test_yaml_is_read_as_it_was_written(path, value, encoding):
    path.write_bytes(yaml.safe_dump(value, allow_unicode=True).encode(encoding))
    assert read_yaml(path) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"not JSON: Expecting property name .* at line 1, column 2"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "repeated key: 'b' twice in one object"),
        (b'{"a": "\xe9"}', "not UTF-8: invalid continuation byte at byte 7"),
        (b"9" * 5000, r"not JSON: Exceeds the limit \(4300 digits\)"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b"", "not JSON: Expecting value"),
    ],
)
def test_faulty_json_is_named(path, content, message):
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=f"^{path}: {message}"):
        read_json(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "not YAML: while parsing a flow node"),
        (b"a:\n  b: 1\n  'b': 2\n", "repeated key: 'b' twice in one object"),
        (b"a: {b: 1, b: 1}", "repeated key: 'b' twice in one object"),
        (b"a: 2001-99-99", "not YAML: month must be in 1..12"),
        (b"a: !!bool maybe", "not YAML"),
        (b"a: 0x" + b"f" * 6000, r"not YAML: Exceeds the limit \(4300 digits\)"),
        (b"a: !!python/object/apply:os.system [ls]", "not YAML: could not determine a constructor"),
        (b"? [1]\n: 2", "not YAML: .*unhashable"),
        (b"[" * 3000, "not YAML: nested too deeply"),
        (b"a: \xff", "not UTF-8: invalid start byte at byte 3"),
    ],
)
def test_faulty_yaml_is_named(path, content, message):
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=f"(?s)^{path}: {message}"):
        read_yaml(path)


def test_a_merged_mapping_may_be_overridden(path):
    path.write_text("a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  x: 3\nc:\n  <<: *b\n  x: 4\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 4, "y": 2}}


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_no_file_is_named(tmp_path, read):
    with pytest.raises(DocumentError, match="unreadable file: Is a directory"):
        read(tmp_path)
    with pytest.raises(DocumentError, match="unreadable file: No such file"):
        read(tmp_path / "nowhere")


@settings(max_examples=50)
@given(st.binary() | st.text("[]{}:,-&*!<>|'\"#?@ \n\tab01").map(str.encode))
def test_any_bytes_are_read_or_refused(path, content):
    path.write_bytes(content)
    for read in (read_json, read_yaml):
        try:
            read(path)
        except DocumentError:
            continue


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "labels.json")
    with pytest.raises(DocumentError, match="labels.json: unreadable file: not a regular file"):
        read_json(tmp_path / "labels.json")
