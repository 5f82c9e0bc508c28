"""What lies in the folder of a run beside its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eosjax import flags
from eosjax.config import CONFIG_FILE, TrainConfig
from eosjax.data.stats import STATS_FILE, DatasetStats, save_stats
from eosjax.runs.load import TOKENIZER_FILE


def write_run_files(folder: Path, config: TrainConfig, stats: Mapping[str, DatasetStats], tokenizer_json: bytes) -> None:
    """Writes the flags, the statistics and the tokenizer of a run."""
    flags.save(config, folder / CONFIG_FILE)
    save_stats(folder / STATS_FILE, stats)
    (folder / TOKENIZER_FILE).write_bytes(tokenizer_json)
