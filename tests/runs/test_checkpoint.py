"""Checkpoints come back bit for bit, on any number of devices, and damage is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from eosjax.config import TrainConfig
from eosjax.flag_values import ConfigError
from eosjax.runs.checkpoint import CheckpointError, Checkpoints, CheckpointVersionError, fetch_fingerprints
from eosjax.runs.faults import UnreadableError
from eosjax.runs.record import CheckpointRecord, Validation
from eosjax.training.parallel import DataParallel
from tests.saved_runs import run_record
from tests.training.conftest import TINY, build_stub, jitted_step

RUN = run_record(TrainConfig(vla_path="demo", use_lora=False), TINY, b"{}", {})


@pytest.fixture
def trained(batches):
    """(state after three updates, its shapes)."""
    learner, state, frozen = build_stub(eos_hidden_dim=256)  # so that most bytes of a checkpoint are numbers
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


def record_of(step, state, score=None):
    """A record of a checkpoint that was validated if there is a score."""
    validation = None if score is None else Validation(step, {"val/action_loss": 1.0, "val/frame/average_precision": score}, None)
    return CheckpointRecord(RUN, step, validation, None, fetch_fingerprints(state))


def save(folder, states, scores=None, keep=3):
    checkpoints = Checkpoints(folder, keep)
    for number, state in enumerate(states, start=1):
        checkpoints.save(state, record_of(number * 10, state, scores[number - 1] if scores else None))
    checkpoints.wait()
    return checkpoints


def accept(record):
    """Finds nothing wrong with a record."""


def test_everything_comes_back_bit_for_bit(tmp_path, trained, here):
    state, record = save(tmp_path / "c", [trained]).restore(trained, here, accept)
    assert bits(state) == bits(trained)
    assert record.to_json() == record_of(10, trained).to_json()


def test_a_save_says_nothing_to_the_preemption_service(tmp_path, trained, monkeypatch):
    """It would take the step of a save that ends late for the one at which the process is: processes then stopped at different updates."""
    asked = []
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", asked.append)
    save(tmp_path / "c", [trained])
    assert not asked


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_checkpoint_of_two_devices_goes_on_any_number(tmp_path, trained, devices):
    learner, _, _ = build_stub(eos_hidden_dim=256)  # so that most bytes of a checkpoint are numbers
    saved = DataParallel(learner, jax.devices()[:2]).replicate(trained)
    sharding = DataParallel(learner, jax.devices()[:devices]).replicated
    state, _ = save(tmp_path / "c", [saved]).restore(trained, sharding, accept)
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


def harm_record(folder):
    """Keeps half of the record."""
    path = folder / "record" / "metadata"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter_record(folder):
    """Another number in the record."""
    path = folder / "record" / "metadata"
    path.write_text(path.read_text().replace('"share_of_ends": 0.02', '"share_of_ends": 0.03'))


@pytest.mark.parametrize("harm", [damage, truncate, harm_record, alter_record])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, trained, here, caplog, harm):
    older = trained.replace(step=jnp.array(7, jnp.int32))
    save(tmp_path / "c", [older, trained]).close()
    harm(tmp_path / "c" / "20")
    state, record = Checkpoints(tmp_path / "c", 3).restore(trained, here, accept)
    assert (int(state.step), record.step) == (7, 10)
    assert f"{tmp_path / 'c' / '20'}: damaged: " in caplog.text
    assert (tmp_path / "c_damaged" / "20").is_dir()
    assert Checkpoints(tmp_path / "c", 3).steps() == [10]


def deny(path):
    """A file that nobody can read, not even root."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["record/metadata", "state/_METADATA"])
def test_a_file_that_cannot_be_read_is_no_damage(tmp_path, trained, here, name):
    save(tmp_path / "c", [trained] * 2).close()
    deny(tmp_path / "c" / "20" / name)
    with pytest.raises(UnreadableError, match="c/20: cannot be read, which shows no damage.*Is a directory"):
        Checkpoints(tmp_path / "c", 3).restore(trained, here, accept)
    assert Checkpoints(tmp_path / "c", 3).steps() == [10, 20]
    assert not (tmp_path / "c_damaged").exists()


def test_changed_arrays_are_named_with_what_was_expected_and_what_came(tmp_path, trained, here):
    checkpoints = Checkpoints(tmp_path / "c", 3)
    record = record_of(10, trained)
    record.fingerprints[".step"] += 1
    checkpoints.save(trained, record)
    checkpoints.close()
    with pytest.raises(CheckpointError) as raised:
        Checkpoints(tmp_path / "c", 3).restore(trained, here, accept)
    expected = record.fingerprints[".step"]
    found = f"1 of {len(record.fingerprints)} arrays are not what was saved: .step: expected fingerprint {expected}, got {expected - 1}"
    assert f"c/10: damaged: {found}" in str(raised.value)


def test_a_damaged_checkpoint_that_cannot_be_moved_is_told(tmp_path, trained, here):
    save(tmp_path / "c", [trained] * 2).close()
    damage(tmp_path / "c" / "20")
    (tmp_path / "c_damaged").write_text("in the way")
    with pytest.raises(UnreadableError, match="c/20: damaged, and cannot be moved to .*c_damaged/20: "):
        Checkpoints(tmp_path / "c", 3).restore(trained, here, accept)


def test_when_all_are_damaged_each_is_named(tmp_path, trained, here):
    save(tmp_path / "c", [trained] * 2).close()
    for step in ("10", "20"):
        damage(tmp_path / "c" / step)
    with pytest.raises(CheckpointError, match=r"no checkpoint can be restored:(?s:.)*c/20: (?s:.)*c/10: "):
        Checkpoints(tmp_path / "c", 3).restore(trained, here, accept)


def test_no_checkpoint_at_all(tmp_path, trained, here):
    with pytest.raises(CheckpointError, match="there is no checkpoint in .*without --resume"):
        Checkpoints(tmp_path / "c", 3).restore(trained, here, accept)


def test_a_record_that_does_not_fit_is_raised_and_no_checkpoint_moved(tmp_path, trained, here):
    """What the check raises is not taken for damage, even where the state would not fit either."""
    save(tmp_path / "c", [trained] * 2).close()

    def refuse(record):
        raise ConfigError(f"step {record.step} is another run")

    smaller = trained.replace(step=jnp.zeros((2,), jnp.int32))
    with pytest.raises(ConfigError, match="step 20 is another run"):
        Checkpoints(tmp_path / "c", 3).restore(smaller, here, refuse)
    assert Checkpoints(tmp_path / "c", 3).steps() == [10, 20]
    assert not (tmp_path / "c_damaged").exists()


def test_another_version_is_refused_and_not_taken_for_damage(tmp_path, trained, here):
    save(tmp_path / "c", [trained] * 2).close()
    (tmp_path / "c" / "20" / "record" / "metadata").write_text('{"version": 99}')
    with pytest.raises(CheckpointVersionError, match="c/20: written by another version of eosjax: .* got 99"):
        Checkpoints(tmp_path / "c", 3).restore(trained, here, accept)
    assert Checkpoints(tmp_path / "c", 3).steps() == [10, 20]
