"""What client/pyproject.toml installs on a robot is enough, and nothing else: no JAX, and Python 3.8 reads it."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = [name.removesuffix(".__init__") for name in PROJECT["tool"]["setuptools"]["py-modules"]]
ALLOWED = {"eosjax", "numpy", "msgpack", "websockets"}


def source(module):
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_is_installed(module):
    tree = ast.parse(source(module).read_text(encoding="utf-8"), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported = str(node.module)
        elif isinstance(node, ast.Import):
            imported = node.names[0].name
        else:
            continue
        assert imported.split(".")[0] in ALLOWED | sys.stdlib_module_names
        assert not imported.startswith("eosjax") or imported in MODULES
