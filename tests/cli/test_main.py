import io
import os
import subprocess
import sys

import pytest

from eosjax import cli
from eosjax.cli import common, inspect, prepare
from eosjax.reports.tables import table
from eosjax.types import UserError


def test_help_lists_the_commands(run):
    status, out, _ = run("--help")
    assert status == 0
    for name, summary in cli.COMMANDS.items():
        assert name in out
        assert summary in " ".join(out.split())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_explains_itself_and_its_flags(run, name):
    status, out, _ = run(name, "--help")
    assert status == 0
    assert "--" in out.replace("--help", "")
    for flag in ("--data_root_dir", "--dataset_specs") if name in ("prepare", "inspect", "label") else ():
        assert flag in out


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "COMMAND"),
        (["no_such"], "no_such"),
        (["inspect"], "--dataset_name"),
        (["inspect", "--dataset_name", "x", "--no_such", "1"], "--no_such"),
        (["inspect", "--dataset_name", "x", "--episodes", "1;2"], "separated by commas; got '1;2'"),
        (["inspect", "--dataset_name", "x", "--allow", "all"], "--allow: expected some of these, separated by commas (unlabelled: "),
        (["inspect", "--dataset_name", "x", "--substep_labels_path", ""], "--substep_labels_path: expected a path, got an empty text"),
        (["export", "--torch", "perhaps"], "expected True or False, got 'perhaps'"),
    ],
)
def test_wrong_flags_are_status_2(run, argv, why):
    status, _, err = run(*argv)
    assert status == 2
    assert why in err


def test_texts_are_printed_in_an_ascii_locale(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii", write_through=True))
    monkeypatch.setattr(prepare, "run", lambda args: print("pick up the Schüssel") or 0)
    assert cli.main(["prepare", "--dataset_name", "x"]) == 0
    assert out.getvalue() == b"pick up the Sch?ssel\n"


def test_user_errors_are_one_line_and_status_2(run, tmp_path):
    status, out, err = run("prepare", "--dataset_name", "no_such_dataset", "--data_root_dir", tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("eosjax prepare: ")
    assert "no_such_dataset" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "tells"),
    [(KeyboardInterrupt, 130, "interrupted"), (RuntimeError("a defect"), 70, "Traceback"), (UserError("why"), 2, "why")],
)
def test_exit_status_of_what_goes_wrong(run, monkeypatch, error, status, tells):
    def fail(args):
        raise error

    monkeypatch.setattr(prepare, "run", fail)
    got, _, err = run("prepare", "--dataset_name", "eosjax_demo")
    assert got == status
    assert tells in err


def test_python_m_eosjax_is_the_same_command():
    child = subprocess.run([sys.executable, "-m", "eosjax", "prepare"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert child.returncode == 2
    assert "eosjax prepare: error: the following arguments are required: --dataset_name" in child.stderr


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        common.write_text(tmp_path / "file" / "report.json", "{}")


def test_columns_of_a_table_are_aligned():
    assert table([("a", 1, ""), ("bcd", 20, "x")], right=" r") == "a     1\nbcd  20  x"


def test_inspect_has_its_own_status_for_labels_that_do_not_fit():
    assert "1 they do not" in inspect.__doc__
