"""From a score on balanced draws to a probability in the world."""

from __future__ import annotations

import numpy as np


def prior_shift(trained_prior: float, true_prior: float) -> float:
    """What to add to a raw logit, so that its sigmoid is the probability at the true share of ends.

        logit p = logit p_raw + logit(true_prior) - logit(trained_prior)

    A head trained on 15 ends and 20 others answers for a world in which 42.9 % of the steps are ends; at a true share of 1.24 % its raw
    0.5 means 1.65 %. Exact where only the class shares differ (Saerens et al. 2002, Neural Computation 14(1), eq. 2.4).

    Args:
      trained_prior: share of ends among the rows the head was trained on, between 0 and 1.
      true_prior: share of ends where it is used, between 0 and 1.

    Raises:
      ValueError: a share is not between 0 and 1.
    """
    for name, share in (("trained_prior", trained_prior), ("true_prior", true_prior)):
        if not 0 < share < 1:
            raise ValueError(f"{name}: expected a share between 0 and 1, got {share}")
    return float(np.log(true_prior / (1 - true_prior)) - np.log(trained_prior / (1 - trained_prior)))


def corrected_probability(logits: np.ndarray, trained_prior: float, true_prior: float) -> np.ndarray:
    """Probabilities at the true share of ends from raw logits (same shape, f64); arguments as in `prior_shift`."""
    return 1 / (1 + np.exp(-(np.asarray(logits, np.float64) + prior_shift(trained_prior, true_prior))))
