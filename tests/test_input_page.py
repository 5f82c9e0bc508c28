"""docs/input.md says what the code does with each field of a file from outside."""

import importlib
from pathlib import Path

import eosjax
from eosjax.fields import Field, table
from tests.input_page import PAGE, TABLES, field_table, places, with_tables

PACKAGE = Path(eosjax.__path__[0])


def test_the_page_is_what_the_code_gives():
    text = PAGE.read_text(encoding="utf-8")
    assert with_tables(text) == text, "docs/input.md is out of date: python -m tests.input_page"


def test_every_table_of_the_code_is_on_the_page():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if "eosjax.fields import" not in path.read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        for name, value in vars(module).items():
            if isinstance(value, dict) and value and all(isinstance(each, Field) for each in value.values()):
                found[id(value)] = f"{module.__name__}.{name}"
    missing = found.keys() - {id(fields) for fields in TABLES.values()}
    assert not missing, f"add to TABLES in tests/input_page.py: {[found[each] for each in missing]}"
    assert sorted(places(PAGE.read_text(encoding="utf-8"))) == sorted(TABLES)


def test_a_table_in_words():
    fields = table(
        Field("kind", "refused", "another one", accepts=("a|b", None, [])),
        Field("made_by", "harmless", "for people"),
        Field("when", "harmless", "for people"),
        Field("size", "honoured", "width"),
        Field("bias", "refused", "no bias"),
    )
    assert field_table(fields).splitlines()[2:] == [
        "| `size` | honoured | width |",
        r'| `kind` | refused except for `"a\|b"`, `null`, `[]` | another one |',
        "| `bias` | refused | no bias |",
        "| `made_by`, `when` | harmless | for people |",
    ]
