import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.fields import Field, check_fields, same_json, show, table
from eosjax.types import UserError


class FileError(UserError):
    pass


FIELDS = table(
    Field("rank", "honoured", "size of the branch"),
    Field("task", "harmless", "a name for people"),
    Field("use_dora", "refused", "another formula", accepts=(False, None)),
    Field("layers", "refused", "layers that the model lacks", accepts=([], {})),
    Field("weights", "refused", "nothing reads them"),
)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-1, 1) | st.text(max_size=2), lambda inner: (
    st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)), max_leaves=4)  # fmt: skip


def test_known_fields_of_accepted_values_pass():
    content = {"rank": 4, "task": {"any": "thing"}, "use_dora": False, "layers": []}
    assert check_fields(content, FIELDS, "a.json", FileError) is content
    assert check_fields({"use_dora": None, "layers": {}}, FIELDS, "a.json", FileError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"use_dora": True}, "a.json: x.use_dora: expected False or None, got True: another formula"),
        ({"use_dora": 0}, "a.json: x.use_dora: expected False or None, got 0: another formula"),
        ({"layers": [0]}, "a.json: x.layers: expected [] or {}, got [0]: layers that the model lacks"),
        ({"weights": None}, "a.json: x.weights: expected no such field, got None: nothing reads them"),
        ({"use_dorra": 1}, "a.json: x.use_dorra: unknown field (did you mean use_dora?), which may change the meaning of the file; got 1"),
        ({"q": []}, "a.json: x.q: unknown field, which may change the meaning of the file; got []"),
        ([1], "a.json: x: expected an object, got [1]"),
    ],
)
def test_what_is_refused_is_named(content, message):
    with pytest.raises(FileError) as caught:
        check_fields(content, FIELDS, "a.json", FileError, "x.")
    assert str(caught.value) == message


def test_all_faults_are_named_at_once():
    with pytest.raises(FileError, match=r"a.json: q: unknown.*\na.json: use_dora: expected"):
        check_fields({"q": 1, "rank": 2, "use_dora": True}, FIELDS, "a.json", FileError)
    with pytest.raises(FileError, match="a.json: the file: expected an object, got None"):
        check_fields(None, FIELDS, "a.json", FileError)


@settings(max_examples=50)
@given(JSON, JSON)
def test_values_are_the_same_when_they_are_the_same_json(a, b):
    def canonical(value):
        numbers = json.loads(json.dumps(value), parse_int=float)
        return json.dumps(numbers, sort_keys=True).replace("-0.0", "0.0")

    assert same_json(a, b) == (canonical(a) == canonical(b))
    assert same_json(a, json.loads(json.dumps(a)))


def test_values_are_shown_short():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert max(len(show(value)) for value in (deep, "x" * 10**6, 10**4000, {str(i): i for i in range(10**4)})) < 200


@pytest.mark.parametrize("fields", [[Field("a", "honoured", ""), Field("a", "refused", "")], [Field("a", "harmless", "", accepts=(1,))]])
def test_a_table_has_each_name_once_and_accepts_only_what_it_would_refuse(fields):
    with pytest.raises(ValueError, match="fields: a"):
        table(*fields)
