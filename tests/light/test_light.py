"""What a robot installs is enough for the buffer and for serving. `.ci/run` runs this in an environment without the extra `train`."""

import importlib.util
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eosjax
from eosjax.buffer import BalancedBuffer
from eosjax.cli import COMMANDS, WITHOUT_EXTRA
from eosjax.extras import TRAIN_MODULES

# The modules of the package that serving stands on; with those that they import.
NEEDED = (
    "buffer config losses types data.specs data.stats data.images.transforms data.samples.tokens models ends.calibration ends.protocols "
    "ends.operating_points runs.load serving"
).split()
SENTENCE = "needs the extra `train`: pip install 'eosjax[train]'\n"


def test_nothing_of_the_extra_is_installed():
    assert [name for name in TRAIN_MODULES if importlib.util.find_spec(name)] == []


def test_the_buffer_fills_and_is_drawn_from():
    buffer = BalancedBuffer(capacity=4, sample_positive=2, sample_negative=3, min_positive=2, min_negative=3)
    state = buffer.init(jax.ShapeDtypeStruct((7, 16), jnp.bfloat16))
    rows = jnp.arange(12.0)[:, None, None] * jnp.ones((7, 16))
    add = jax.jit(buffer.add, donate_argnums=0)
    state = add(state, rows.astype(jnp.bfloat16), jnp.arange(12) % 4 == 0, jnp.ones(12, bool))
    sample = jax.jit(buffer.sample)(state, jax.random.key(0))
    drawn = np.asarray(sample.items[:, 0, 0], np.float32)
    np.testing.assert_array_equal(drawn % 4 == 0, sample.labels)
    assert (sample.labels.sum(), sample.weights.sum()) == (2, 5)


def modules(name):
    module = importlib.import_module(f"eosjax.{name}")
    yield module
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
        yield importlib.import_module(found.name)


@pytest.mark.parametrize("name", NEEDED)
def test_what_serving_stands_on_can_be_imported(name):
    assert all(module.__name__.startswith(eosjax.__name__) for module in modules(name))


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT_EXTRA))
def test_other_commands_say_what_to_install(name):
    child = subprocess.run([sys.executable, "-m", "eosjax", name, "--help"], capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (2, f"eosjax {name}: {SENTENCE}")


def test_training_says_what_to_install():
    child = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (2, f"train.py: {SENTENCE}")
