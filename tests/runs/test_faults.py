"""What counts as damage of a checkpoint: texts as Orbax and TensorStore have been seen to raise them."""

import errno
import json

import jax
import pytest

from eosjax.runs.checkpoint import CheckpointError
from eosjax.runs.faults import UnreadableError, damage_in

SPEC = " [tensorstore_spec=...]"


def not_json():
    try:
        json.loads("{")
    except ValueError as error:
        return error


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError('DATA_LOSS: Error opening "zarr" driver: checksum verification failed' + SPEC), "verification failed"),
        (ValueError('NOT_FOUND: Metadata at "step/.zarray" does not exist' + SPEC), "does not exist"),
        (ValueError("OUT_OF_RANGE: Requested byte range [1034, 2980) is not valid for value of size 0"), "value of size 0"),
        (ValueError("FAILED_PRECONDITION: Truncated Zstd-compressed stream; at byte 0"), "stream; at byte 0"),
        (ValueError("NOT_FOUND: Failed to open: No such file [os_error_code='2']"), "os_error_code='2']"),
        (caused(Exception("Encountered error while reading array index"), ValueError("DATA_LOSS: x")), "DATA_LOSS: x"),
        (ValueError("pytree structure error: different types at key path\n  tree"), "different types at key path"),
        (FileNotFoundError("File c/10/record/metadata not found."), "metadata not found."),
        (not_json(), "line 1 column 2 (char 1)"),
        (KeyError("value_metadata"), "'value_metadata'"),
        (CheckpointError("1 of 9 arrays are not what was saved"), "arrays are not what was saved"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_the_files_hold_or_lack_is_damage(tmp_path, error, shown):
    assert damage_in(error, tmp_path).endswith(shown)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "metadata"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."),
        ValueError('PERMISSION_DENIED: Error reading local file "manifest.ocdbt": Permission denied' + SPEC),
        ValueError("RESOURCE_EXHAUSTED: Too many open files [os_error_code='24']" + SPEC),
        ValueError("ABORTED: Stale file handle [os_error_code='116']" + SPEC),
        ValueError("UNKNOWN: Input/output error [os_error_code='5']" + SPEC),
        ValueError("FAILED_PRECONDITION: Is a directory [os_error_code='21']" + SPEC),
        caused(Exception("Encountered error while reading array index"), ValueError("PERMISSION_DENIED: x")),
        caused(ValueError("could not read"), PermissionError(errno.EACCES, "Permission denied")),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:60],
)
def test_what_may_be_over_tomorrow_is_no_damage(tmp_path, error):
    with pytest.raises(UnreadableError, match=rf"^{tmp_path}: cannot be read, which shows no damage") as raised:
        damage_in(error, tmp_path)
    assert raised.value.__cause__ is error
    assert "tensorstore_spec" not in str(raised.value)


def test_a_folder_that_is_gone_is_no_damage(tmp_path):
    with pytest.raises(UnreadableError, match="gone: cannot be read: the folder is gone"):
        damage_in(FileNotFoundError("metadata"), tmp_path / "gone")


@pytest.mark.parametrize("error", [TypeError("x"), AttributeError("x"), AssertionError("x"), RuntimeError("x")])
def test_a_defect_is_no_damage(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        damage_in(error, tmp_path)
    assert raised.value is error
