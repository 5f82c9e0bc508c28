"""Who may import whom, read from the sources, and what importing the buffer brings with it."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from eosjax import cli

PACKAGE = Path(__file__).parents[1] / "eosjax"

# Each layer may import from itself and from the layers before it.
LAYERS = [
    {"compiled", "config", "flags", "types"},
    {"buffer", "losses", "data", "models"},
    {"evaluation"},
    {"training.collectives", "training.metrics", "training.objectives", "training.optim", "training.state", "training.step"},
    {"training"},
    {"serving", "bench"},
    {"cli", "__main__"},
]
FORBIDDEN = {
    "data": {"jax", "flax", "optax", "orbax"},
    "compiled": {"jax", "flax", "tensorflow", "tensorflow_datasets"},
    "config": {"jax", "flax", "tensorflow", "tensorflow_datasets"},
    "flags": {"jax", "flax", "tensorflow", "tensorflow_datasets"},
    "types": {"jax", "flax", "tensorflow", "tensorflow_datasets"},
    "buffer": {"tensorflow", "tensorflow_datasets", "orbax", "grain"},
    "losses": {"tensorflow", "tensorflow_datasets", "orbax", "grain"},
    "models": {"tensorflow", "tensorflow_datasets", "orbax", "grain"},
    "evaluation": {"jax", "flax", "tensorflow", "tensorflow_datasets", "orbax"},
    "training": {"tensorflow", "tensorflow_datasets"},
    "serving": {"tensorflow", "tensorflow_datasets"},
    "bench": {"tensorflow", "tensorflow_datasets"},
    "cli": {"tensorflow", "tensorflow_datasets"},
    "__main__": {"tensorflow", "tensorflow_datasets", "jax"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def layer(name):
    """The last layer that has the module or one of its packages by name; the most specific name counts."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        for number, members in enumerate(LAYERS):
            if ".".join(parts[:length]) in members:
                return number
    raise AssertionError(f"{name} is in no layer")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_down_the_layers(path):
    name = module_name(path)
    for imported in imports(path):
        if imported.startswith("eosjax."):
            assert layer(imported.removeprefix("eosjax.")) <= layer(name), f"{name} imports {imported}"
        elif imported.split(".")[0] == "jax":
            assert "pmap" not in imported


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_forbidden_packages_stay_out(path):
    name = module_name(path)
    forbidden = FORBIDDEN[name.split(".")[0]]
    if name == "data.rlds" or name.startswith("data.demo"):
        forbidden = forbidden - {"tensorflow", "tensorflow_datasets"}
    found = {imported.split(".")[0] for imported in imports(path)}
    if name.startswith("data") and not name.startswith(("data.rlds", "data.demo")):
        forbidden = forbidden | {"tensorflow", "tensorflow_datasets"}
    assert not found & forbidden


def test_one_file_names_pmap():
    named = [module_name(path) for path in MODULES if "jax.pmap" in path.read_text()]
    assert named == ["training.parallel"]


def test_the_buffer_comes_alone():
    code = "import sys, eosjax.buffer; print([m for m in ('tensorflow', 'orbax', 'grain', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_data_commands_come_without_jax_and_tensorflow():
    heavy = ("jax", "flax", "tensorflow", "tensorflow_datasets", "matplotlib", "sklearn")
    code = f"""
import sys, importlib
from eosjax.cli import COMMANDS
assert not any(module.startswith("eosjax.cli.") for module in sys.modules), "a command is loaded before it is called"
for name in ("prepare", "inspect", "label", "score"):
    assert name in COMMANDS
    importlib.import_module("eosjax.cli." + name)
print([m for m in {heavy} if m in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_command_is_a_module_with_help():
    for name in cli.COMMANDS:
        module = importlib.import_module(f"eosjax.cli.{name.replace('-', '_')}")
        assert module.__doc__
        assert callable(module.add_flags)
        assert callable(module.run)
