"""Confidence intervals of any figures, by drawing whole episodes again with replacement."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

REPLICATES = 1000  # draws


class Measured(NamedTuple):
    """Figures by name; NaN where one is not defined."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # 95 %; empty if none were asked for, or of fewer than two episodes


def bootstrap(
    metrics: Iterable[Callable[[np.ndarray], dict[str, float]]], episodes: int, replicates: int = REPLICATES, seed: int = 0
) -> Measured:
    """Figures with 95 % percentile intervals over episodes drawn with replacement (Efron 1979, Annals of Statistics 7(1)).

    Steps of one episode depend on each other, episodes do not: so whole episodes are drawn.

    Args:
      metrics: functions of the weights i64 [e], how often each episode counts.
      episodes: e.
      replicates: draws; 0 for no intervals.
      seed: of the draws.
    """
    from tqdm import tqdm

    functions = list(metrics)

    def figures(weights: np.ndarray) -> dict[str, float]:
        return {name: value for function in functions for name, value in function(weights).items()}

    values = figures(np.ones(episodes, np.int64))
    if episodes < 2 or not replicates:
        return Measured(values, {})
    draws = np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), size=replicates)
    shown = tqdm(draws, desc="bootstrap", unit="draw", delay=1, leave=False, disable=not sys.stderr.isatty())
    rows = np.array([list(figures(weights).values()) for weights in shown])
    defined = [column[~np.isnan(column)] for column in rows.T]  # a draw without any end has no recall
    bounds = [np.percentile(column, (2.5, 97.5)).tolist() if column.size else [float("nan")] * 2 for column in defined]
    return Measured(values, {name: (low, high) for name, (low, high) in zip(values, bounds, strict=True)})
