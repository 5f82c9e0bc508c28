"""Recognises the format of a label file or folder by its content, and reads it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from eosjax.data.labels import cyclevla, lerobot, lerobot_folder, original, sarm
from eosjax.data.labels.files import read_json
from eosjax.data.labels.kept import Kept, count_kept_steps
from eosjax.data.labels.table import SegmentTable, refused
from eosjax.names import split_revision
from eosjax.types import UserError


class _Format(NamedTuple):
    mismatch: Callable[[Any], str | None]  # why the content is not of this format; None if it is
    read: Callable[[object, Any, str], SegmentTable]  # (source, what was read, dataset)


_FORMATS = {
    "original": _Format(original.suites_mismatch, original.read_suites),
    "flat": _Format(original.flat_mismatch, original.read_flat),
    "lerobot-3.0": _Format(lerobot.index_mismatch, lerobot.read_indices),
    "lerobot-3.1": _Format(lerobot.language_mismatch, lerobot.read_language),
    "sarm-sparse": _Format(functools.partial(sarm.mismatch, level="sparse"), functools.partial(sarm.read_subtasks, level="sparse")),
    "sarm-dense": _Format(functools.partial(sarm.mismatch, level="dense"), functools.partial(sarm.read_subtasks, level="dense")),
    "cyclevla": _Format(cyclevla.mismatch, cyclevla.read_episodes),
}
FORMATS = ("auto", *_FORMATS)


def import_labels(path: str | Path, name: str, format: str = "auto", kept: Kept | None = None) -> SegmentTable:
    """Reads the sub-step labels of dataset `name`.

    Args:
        path: a JSON file (`original`, `flat`, `cyclevla`), a folder of JSON files (`cyclevla`) or the folder of a LeRobot
            dataset (`lerobot-3.0`, `lerobot-3.1`, `sarm-sparse`, `sarm-dense`).
        name: the dataset; `original` and `flat` files may have several, without revisions.
        format: one of `FORMATS`; "auto" takes the one that the content has.
        kept: which steps of an episode the description keeps; labels in the folder of a LeRobot dataset count all. None: all are kept.

    Raises:
        LabelError: unreadable or damaged, of no format or of several, or without labels of this dataset. Faults within single
            episodes are kept in the table; `join_labels` raises them.
        UserError: `format` is none of `FORMATS`.
    """
    if format not in FORMATS:
        raise UserError(f"label format: expected one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    try:
        content = _read(path)
    except OSError as error:  # such as a folder that may not be entered
        raise refused(path, "unreadable file", error.strerror or str(error)) from error
    reasons = {key: known.mismatch(content) for key, known in _FORMATS.items() if format in (key, "auto")}
    fitting = [key for key, reason in reasons.items() if reason is None]
    if not fitting:
        raise refused(path, "unknown format", "; ".join(f"{key}: {reason}" for key, reason in reasons.items()))
    if len(fitting) > 1:
        raise refused(path, "unknown format", f"more than one fits: {', '.join(fitting)}; name the one to read (--substep_labels_format)")
    table = _FORMATS[fitting[0]].read(path, content, split_revision(name)[0])
    return count_kept_steps(table, kept) if kept and isinstance(content, lerobot_folder.Dataset) else table


def formats_of(path: Path) -> list[str]:
    """The formats of the labels in a file or folder: none, one or several. Errors of damaged files as of `import_labels`."""
    content = _read(path)
    return [key for key, known in _FORMATS.items() if known.mismatch(content) is None]


def _read(path: Path) -> Any:
    """The content to recognise: parsed JSON, `cyclevla.EpisodeFiles` or `lerobot_folder.Dataset`."""
    if (path / "meta" / "info.json").is_file():
        return lerobot_folder.open_dataset(path)
    if path.is_dir():
        return cyclevla.read_folder(path)
    if path.suffix == ".parquet":
        raise refused(path, "unknown format", "a Parquet file; expected the folder of the LeRobot dataset, with meta/info.json in it")
    return read_json(path)
