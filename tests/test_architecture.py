"""Who may import whom, read from the sources, and what importing the buffer brings with it."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from eosjax import cli

PACKAGE = Path(__file__).parents[1] / "eosjax"

BASE = {"flag_values", "types", "config", "flags", "njit", "extras", "fields", "names", "documents", "runtime", "hub"}
CORE = BASE | {"buffer", "losses", "models", "data", "ends", "demo", "runs"}
# Which rooms each room may import, beside itself.
MAY_IMPORT = {
    "types": set(),
    "config": {"flag_values", "names", "types"},
    "flag_values": {"names", "types"},
    "flags": {"config", "flag_values", "documents", "fields", "types"},
    "njit": set(),
    "runtime": {"types"},
    "hub": {"types"},
    "extras": {"types"},
    "fields": {"types"},
    "names": {"types"},
    "documents": {"fields", "types"},
    "buffer": {"types"},
    "losses": BASE,
    "models": BASE | {"losses"},
    "data": BASE,
    "ends": BASE,
    "demo": BASE | {"data"},
    "runs": CORE,
    "training": CORE,
    "serving": BASE | {"models", "data", "ends", "runs"},
    "reports": CORE,
    "bench": CORE | {"training", "reports"},
    "envs": CORE | {"serving"},
    "cli": CORE | {"training", "serving", "reports", "bench", "envs"},
    "__main__": {"cli"},
}
TENSORFLOW, JAX = {"tensorflow", "tensorflow_datasets"}, {"jax", "flax", "optax", "orbax"}
FORBIDDEN = {
    **dict.fromkeys(MAY_IMPORT, TENSORFLOW),
    **dict.fromkeys(
        (
            "types",
            "config",
            "flags",
            "njit",
            "extras",
            "fields",
            "names",
            "documents",
            "hub",
            "data",
            "ends",
            "demo",
            "reports",
            "__main__",
        ),
        TENSORFLOW | JAX,
    ),
    "buffer": TENSORFLOW | {"orbax", "grain"},
    "losses": TENSORFLOW | {"orbax", "grain"},
    "models": TENSORFLOW | {"orbax", "grain"},
    "data.rlds": JAX,
    "demo": JAX,
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_rooms_import_what_they_may(path):
    name = module_name(path)
    room = name.split(".")[0]
    for imported in imports(path):
        if imported.startswith("eosjax."):
            other = imported.split(".")[1]
            assert other == room or other in MAY_IMPORT[room], f"{name} imports {imported}"
        elif imported.split(".")[0] == "jax":
            assert "pmap" not in imported


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_forbidden_packages_stay_out(path):
    name = module_name(path)
    most_specific = next(key for key in (".".join(name.split(".")[:2]), name.split(".")[0]) if key in FORBIDDEN)
    assert not {imported.split(".")[0] for imported in imports(path)} & FORBIDDEN[most_specific]


def texts_of_the_locale(path):
    """The lines of calls that open a text without saying in what encoding: the locale would decide."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if is_method else getattr(node.func, "id", "")
        texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        mode = next((text for text in texts if set(text) <= set("rwax+bt")), None if is_method else "r")
        of_module = is_method and getattr(node.func.value, "id", "") in ("common", "documents")
        if (
            (name == "open" and mode is not None and "b" not in mode)
            or (name in ("read_text", "write_text") and is_method and not of_module)
            or any(keyword.arg == "text" for keyword in node.keywords)
        ):
            yield node.lineno


@pytest.mark.parametrize("path", [*MODULES, *sorted((PACKAGE.parent / "benchmarks").glob("*.py"))], ids=lambda path: path.name)
def test_texts_do_not_depend_on_the_locale(path):
    assert not list(texts_of_the_locale(path))


def test_one_file_names_pmap():
    named = [module_name(path) for path in MODULES if "jax.pmap" in path.read_text()]
    assert named == ["training.parallel"]


# What importing the buffer, and a policy to be served, may load beside the standard library.
BUFFER_LOADS = (
    "absl cloudpickle eosjax etils filelock flatbuffers flax jax jaxlib ml_dtypes msgpack numpy opt_einsum pygments rich treescope "
    "typing_extensions yaml"
).split()
SERVING_LOADS = [
    *BUFFER_LOADS,
    *"PIL google humanize llvmlite numba optax orbax safetensors scipy simplejson tensorstore tokenizers tqdm uvloop".split(),
]


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        ("eosjax.buffer", BUFFER_LOADS),
        ("eosjax.serving, eosjax.serving.policy", SERVING_LOADS),
        ("eosjax.serving.hosted, eosjax.serving.server", [*SERVING_LOADS, "websockets", "prometheus_client"]),
        ("eosjax.serving.broker, eosjax.serving.client", ["eosjax", "numpy", "msgpack", "websockets"]),
        ("eosjax.ends.protocols, eosjax.ends.operating_points", ["eosjax", "numpy"]),
    ],
)
def test_what_an_import_loads(modules, allowed):
    code = f"""
import sys
before = set(sys.modules)
import {modules}
from importlib.metadata import packages_distributions
print(*sorted({{name.split(".")[0] for name in set(sys.modules) - before}} & set(packages_distributions())))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) - set(allowed) == set()


def test_data_commands_come_without_jax_and_tensorflow():
    heavy = ("jax", "flax", "tensorflow", "tensorflow_datasets", "matplotlib", "jinja2", "sklearn")
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


@pytest.mark.parametrize("modules", ["eosjax.reports.tables", "eosjax.cli.prepare, eosjax.cli.label, eosjax.cli.plan"])
def test_tables_come_without_plots_and_pages(modules):
    code = f"import sys, {modules}; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_command_is_a_module_with_help():
    for name in cli.COMMANDS:
        module = importlib.import_module(f"eosjax.cli.{name.replace('-', '_')}")
        assert module.__doc__
        assert callable(module.add_flags)
        assert callable(module.run)
