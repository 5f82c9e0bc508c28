"""Training: `run(config)` is the whole of `train.py`."""

from eosjax.training.loop import run

__all__ = ["run"]
