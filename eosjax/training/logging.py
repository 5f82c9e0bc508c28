"""Where the numbers of a run go: `metrics.jsonl` always, TensorBoard by default, Weights & Biases on request, and the console."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from eosjax.config import METRICS_FILE, TrainConfig
from eosjax.flag_values import ConfigError


class MetricWriter:
    """Writes rows of numbers. Rows after `start_step`, left by a run that was cut off, are dropped first: they will come again.

    Attributes:
      wandb_id: of the run at Weights & Biases; None without one.

    Args:
      config: the run.
      run_dir: its folder.
      start_step: updates already made.
      wandb_id: of the run at Weights & Biases, to go on with it; None for a new one.
      enabled: False writes nothing (all processes but the first).
    """

    def __init__(self, config: TrainConfig, run_dir: Path, start_step: int, wandb_id: str | None = None, *, enabled: bool) -> None:
        self.wandb_id = wandb_id
        self._file = self._tensorboard = self._wandb = None
        if not enabled:
            return
        path = run_dir / METRICS_FILE
        if path.exists():
            _drop_rows_after(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        if config.use_tensorboard:
            self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1 if start_step else None)
        if config.use_wandb:
            self._wandb = _start_wandb(config, run_dir, wandb_id)
            self.wandb_id = self._wandb.id

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Appends one row; `step` is the number of updates made."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **row}) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in row.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(row), step=step)

    def close(self) -> None:
        """Flushes and closes all files."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_rows_after(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed run may be cut short
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def check_wandb(config: TrainConfig) -> None:
    """Raises `ConfigError` if the run asks for Weights & Biases and the package is not installed."""
    if config.use_wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("--use_wandb True: the package is not installed; pip install 'eosjax[wandb]' or leave the flag out")


def _start_wandb(config: TrainConfig, run_dir: Path, wandb_id: str | None) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]  # an extra

    settings = {name: str(value) for name, value in dataclasses.asdict(config).items()}
    return wandb.init(
        project=config.wandb_project,
        entity=config.wandb_entity,
        id=wandb_id,
        name=run_dir.name,
        config=settings,
        dir=str(run_dir),
        resume="allow",
    )


class Console:
    """Lines for a person, above a progress bar that is drawn only on a terminal.

    Args:
      total: updates of the whole run.
      quiet: print nothing (all processes but the first).
    """

    def __init__(self, total: int, quiet: bool) -> None:
        self._quiet, self._total = quiet, total
        self._bar: tqdm | None = None

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def advance(self, step: int) -> None:
        """Moves the bar to `step` updates."""
        if self._bar is None:
            hidden = self._quiet or not sys.stderr.isatty()
            self._bar = tqdm(total=self._total, initial=step - 1, unit="step", disable=hidden, dynamic_ncols=True)
        self._bar.update()

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def eos_line(row: Mapping[str, float]) -> str:
    """The console line of an EOS update; its last word is what the measured gradient norm of the head says.

    Args:
      row: a row with the `train/eos_…` columns.
    """
    verdict = "✓ HAS GRAD" if row["train/eos_grad_norm"] > 0 else "✗ NO GRAD"
    loss, positives, negatives = (row[f"train/eos_{name}"] for name in ("loss", "rows_positive", "rows_negative"))
    counts = f"batch = {positives + negatives:.0f}, pos = {positives:.0f}, neg = {negatives:.0f}"
    return f"[EOS UPDATE] eos_loss = {loss:.4f}, {counts}, {verdict}"


def waiting_line(row: Mapping[str, float], config: TrainConfig, steps_made: int) -> str:
    """The console line while the buffer is not ready: what is there, what is needed, and the estimated updates to go.

    Args:
      row: a row with the `train/eos_buffer_…` columns.
      config: the run.
      steps_made: updates made so far.
    """
    parts, waits = [], []
    for kind, least in (("positive", config.eos_min_positive), ("negative", config.eos_min_negative)):
        held, seen = int(row[f"train/eos_buffer_{kind}"]), row[f"train/eos_seen_{kind}"]
        parts.append(f"{kind} {held}/{least}")
        if held < least:
            waits.append((least - held) * steps_made / seen if seen else float("inf"))
    to_go = max(waits, default=0.0)
    estimate = "no estimate yet" if to_go == float("inf") else f"about {to_go:.0f} steps to go"
    return f"[EOS WAIT] {', '.join(parts)}, {estimate}"
