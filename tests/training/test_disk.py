"""A disk that is full, or cannot be written to any more, in the middle of a run."""

import errno

import pytest

from eosjax.runs.checkpoint import Checkpoints
from eosjax.runs.faults import FileSystemError, file_system_fault
from eosjax.training.run import run as train
from tests.cli.conftest import labels, run_config  # noqa: F401  # `labels`: a fixture


def test_what_the_system_says():
    assert file_system_fault(PermissionError(errno.EACCES, "no", "frames/part-0")) == "Permission denied (frames/part-0)"
    full = OSError(errno.ENOSPC, "no space")
    assert file_system_fault(full) == "No space left on device"
    wrapped = RuntimeError("a thread has failed")
    wrapped.__cause__ = full
    assert file_system_fault(wrapped) == "No space left on device"
    assert file_system_fault(ValueError("INTERNAL: Error writing [source locations=…; os_error_code='30']")) == "Read-only file system"
    assert file_system_fault(ValueError("os_error_code='2'")) is file_system_fault(KeyError("x")) is None


def test_a_full_disk_ends_the_run_with_what_is_left_of_it(data, labels, tmp_path, monkeypatch):  # noqa: F811
    save = Checkpoints.save

    def full(self, state, record):
        if record.step > 2:
            raise OSError(errno.ENOSPC, "no space")
        save(self, state, record)

    monkeypatch.setattr(Checkpoints, "save", full)
    config = run_config(data, labels, tmp_path, "--max_steps", "4", "--use_val_set", "False")
    with pytest.raises(FileSystemError, match="run: the run has ended: No space left on device; the newest checkpoint is of step 2; go on"):
        train(config)
