"""The environment of JAX, which it reads once."""

import subprocess
import sys

import pytest

from eosjax import runtime
from eosjax.types import UserError

NAMES = (runtime.COMPILE_CACHE, *runtime.MEMORY_FRACTIONS, "XLA_FLAGS", "EOSJAX_CACHE")


@pytest.fixture
def environment(monkeypatch):
    """An environment without a word about JAX, in a process that has not loaded it."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime.os, "environ", {"HOME": "/home/me"})
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    return runtime.os.environ


def test_defaults(environment):
    runtime.prepare()
    cache = str(runtime.cache_root() / "xla")
    assert {name: environment[name] for name in NAMES if name in environment} == {
        runtime.COMPILE_CACHE: cache,
        runtime.MEMORY_FRACTIONS[0]: "0.92",
    }


def test_what_the_user_has_set_stays(environment):
    environment |= {runtime.COMPILE_CACHE: "/mine", runtime.MEMORY_FRACTIONS[1]: "0.5", "XLA_FLAGS": "--xla_something=1"}
    runtime.prepare(deterministic=True)
    assert environment[runtime.COMPILE_CACHE] == "/mine"
    assert runtime.MEMORY_FRACTIONS[0] not in environment
    assert environment["XLA_FLAGS"] == "--xla_something=1 " + runtime.DETERMINISTIC


def test_a_flag_is_more_than_the_environment(environment, tmp_path):
    environment[runtime.COMPILE_CACHE] = "/mine"
    runtime.prepare(tmp_path)
    assert environment[runtime.COMPILE_CACHE] == str(tmp_path)


def test_too_late(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    with pytest.raises(UserError, match="--deterministic True: JAX is loaded already"):
        runtime.prepare(deterministic=True)


def test_flags_do_not_load_jax():
    """So that they are read before JAX is."""
    program = "import sys; from eosjax import cli, flags, runtime; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
