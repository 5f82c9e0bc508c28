"""Checkpoints come back bit for bit, on any number of devices, and damage is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from eosjax.runs.checkpoint import CheckpointError, Checkpoints
from eosjax.training.parallel import DataParallel
from tests.training.conftest import build, jitted_step


@pytest.fixture
def trained(batches):
    """(state after three updates, its shapes)."""
    learner, state, frozen = build()
    for batch in batches[:3]:
        state, _ = jitted_step(learner)(state, frozen, batch)
    return state


@pytest.fixture
def here():
    return SingleDeviceSharding(jax.devices()[0])


def bits(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    data = {jax.tree_util.keystr(p): jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for p, x in leaves}
    return {name: (str(x.dtype), x.shape, np.asarray(x).tobytes()) for name, x in data.items()}


def save(folder, states, scores=None, keep=3):
    checkpoints = Checkpoints(folder, keep)
    for number, state in enumerate(states, start=1):
        checkpoints.save(number * 10, state, {"samples": number}, scores[number - 1] if scores else None)
    checkpoints.wait()
    return checkpoints


def test_everything_comes_back_bit_for_bit(tmp_path, trained, here):
    state, record = save(tmp_path / "c", [trained]).restore(trained, here)
    assert bits(state) == bits(trained)
    assert record == {"samples": 1}


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_checkpoint_of_two_devices_goes_on_any_number(tmp_path, trained, devices):
    learner, _, _ = build()
    saved = DataParallel(learner, jax.devices()[:2]).replicate(trained)
    sharding = DataParallel(learner, jax.devices()[:devices]).replicated
    state, _ = save(tmp_path / "c", [saved]).restore(trained, sharding)
    assert bits(state) == bits(trained)
    assert state.step.sharding == sharding


def test_the_newest_and_the_best_are_kept(tmp_path, trained):
    checkpoints = save(tmp_path / "c", [trained] * 6, scores=[0.1, 0.9, 0.2, None, 0.3, None], keep=2)
    assert checkpoints.steps() == [20, 50, 60]


def damage(folder):
    """Flips one bit in the middle of the largest file."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x10
    largest.write_bytes(content)


def truncate(folder):
    """Keeps half of the largest file: its end alone may be an index that nothing points to any more."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


@pytest.mark.parametrize("harm", [damage, truncate])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, trained, here, caplog, harm):
    older = trained.replace(step=jnp.array(7, jnp.int32))
    save(tmp_path / "c", [older, trained]).close()
    harm(tmp_path / "c" / "20")
    state, record = Checkpoints(tmp_path / "c", 3).restore(trained, here)
    assert (int(state.step), record) == (7, {"samples": 1})
    assert f"checkpoint {tmp_path / 'c' / '20'} is damaged" in caplog.text
    assert (tmp_path / "c_damaged" / "20").is_dir()
    assert Checkpoints(tmp_path / "c", 3).steps() == [10]


def test_when_all_are_damaged_each_is_named(tmp_path, trained, here):
    save(tmp_path / "c", [trained] * 2).close()
    for step in ("10", "20"):
        damage(tmp_path / "c" / step)
    with pytest.raises(CheckpointError, match=r"no checkpoint can be restored:(?s:.)*c/20: (?s:.)*c/10: "):
        Checkpoints(tmp_path / "c", 3).restore(trained, here)


def test_no_checkpoint_at_all(tmp_path, trained, here):
    with pytest.raises(CheckpointError, match="there is no checkpoint in .*without --resume"):
        Checkpoints(tmp_path / "c", 3).restore(trained, here)
