"""What needs the extra `train` says so in one line, and what the package imports is declared."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import train
from eosjax import cli, extras

ROOT = Path(__file__).parents[1]
NEEDING = [name for name in cli.COMMANDS if name not in cli.WITHOUT_EXTRA]
# Imported where they are asked for, with an error of their own where they are not installed.
OPTIONAL = {"torch", "wandb"}


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setattr(extras, "TRAIN_MODULES", ("draccus", "no_such_module", "another"))


@pytest.mark.parametrize("argv", [*([name, "--help"] for name in NEEDING), [NEEDING[0], "--no_such_flag"]], ids=" ".join)
def test_a_command_without_the_extra_says_what_to_install(capsys, without, argv):
    status = cli.main(argv)
    sentence = "needs the extra `train`: pip install 'eosjax[train]' (not installed: no_such_module, another)"
    assert (status, *capsys.readouterr()) == (2, "", f"eosjax {argv[0]}: {sentence}\n")


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in sorted(cli.WITHOUT_EXTRA))], ids=" ".join)
def test_the_rest_works_without_it(without, argv):
    with pytest.raises(SystemExit, match="^0$"):
        cli.main(argv)


def test_training_without_the_extra_says_what_to_install(without, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([])
    assert stop.value.code == 2
    assert "train.py: needs the extra `train`: pip install 'eosjax[train]'" in capsys.readouterr().err


def imported_modules():
    for path in (*(ROOT / "eosjax").rglob("*.py"), ROOT / "train.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module).split(".")[0]


def declared(requirements):
    return {re.split(r"[^\w-]", text)[0].lower().replace("-", "_") for text in requirements}


def test_what_is_imported_is_declared_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    light, extra = declared(project["dependencies"]), declared(project["optional-dependencies"]["train"])
    brought_by = packages_distributions()
    modules = {name for name in imported_modules() if name in brought_by} - OPTIONAL - {"eosjax"}
    distributions = {name: {each.lower().replace("-", "_") for each in brought_by[name]} for name in modules}
    assert {name for name in modules if not distributions[name] & (light | extra)} == set(), "imported, but not declared"
    needed = {name for name in modules if distributions[name] & extra}
    assert {*needed, "tensorflow"} == set(extras.TRAIN_MODULES)  # which tensorflow_datasets imports
    used = set().union(*distributions.values())
    assert light - used == set(), "declared, but not imported"
