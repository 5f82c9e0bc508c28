"""What a robot decided, as JSON lines: `eosjax score` reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from eosjax.types import UserError


class DecisionLog:
    """A file to which each decision is appended at once, so that nothing is lost when the robot stops.

    Args:
      path: of the file; None to keep nothing.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, path: Path | str | None) -> None:
        self._path = path
        try:
            self._file = None if path is None else open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  # open as long as the robot runs
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error

    def write(self, event: str, **fields: Any) -> None:
        """Appends one line; numbers that are not finite become null."""
        if self._file is not None:
            plain = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()}
            self._file.write(json.dumps({"event": event, **plain}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
