"""From what the EOS head says to a probability in the world.

    logit p = scale * (focal_logit(z, gamma) + shift) + bias          z: the raw logit of the head

Two steps. *Exact*: what the loss and the rows of training are known to do to the answers of a perfect head is undone (`gamma`, `shift`).
*Fitted*: what is left, since no head is perfect, is measured on episodes that were held out (`scale`, `bias`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from eosjax.config import FOCAL_GAMMA, TrainConfig

MIN_ENDS = 10  # to fit on: five for each of the two parameters (Vittinghoff, McCulloch 2007, American Journal of Epidemiology 165(6))
_ITERATIONS = 100
_LARGEST = 30.0  # exponents from here on change nothing in double precision


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
    return _log_odds("true_prior", true_prior) - _log_odds("trained_prior", trained_prior)


def weight_shift(positive_weight: float) -> float:
    """What to add to a raw logit if the cross-entropy of ends counted `positive_weight` times that of other steps: -log(positive_weight).

    A weight does to the answers what that many copies of each end would do. It is the ratio of the weights of the two classes, however
    they came about: torch's `pos_weight`, or a focal loss's alpha / (1 - alpha).

    Raises:
      ValueError: a weight that is not above 0 and finite.
    """
    if not 0 < positive_weight < np.inf:
        raise ValueError(f"positive_weight: expected a number above 0, got {positive_weight}")
    return float(-np.log(positive_weight))


def adjustment_shift(prior: float) -> float:
    """What to add to a raw logit z if the loss was the cross-entropy of z + logit(prior): the same (Menon et al. 2021, arXiv:2007.07314).

    Raises:
      ValueError: a share that is not between 0 and 1.
    """
    return _log_odds("prior", prior)


def focal_logit(logits: np.ndarray, gamma: float) -> np.ndarray:
    """Logits of the probabilities that a head meant if it was trained with the focal loss of this gamma.

    The focal loss is not proper: its minimiser is less sure than the truth. With q = sigmoid(z) and
    phi(q) = (1 - q)^gamma - gamma (1 - q)^(gamma - 1) q log q, setting the derivative of the expected loss to zero gives

        p / (1 - p) = q phi(1 - q) / ((1 - q) phi(q))

    (Charoenphakdee et al. 2021, On focal loss for class-posterior probability estimation, CVPR), in logits

        logit p = (1 + gamma) z + log(1 + gamma e^-z log(1 + e^z)) - log(1 + gamma e^z log(1 + e^-z)),

    which rises with z and is z itself at gamma 0.

    Args:
      logits: raw, of any shape.
      gamma: 0 or more.

    Returns:
      f64 of the same shape.
    """
    raw = np.asarray(logits, np.float64)
    if not 0 <= gamma < np.inf:
        raise ValueError(f"gamma: expected a number from 0 on, got {gamma}")
    return (1 + gamma) * raw + np.log1p(gamma * _odds_times_surprise(-raw)) - np.log1p(gamma * _odds_times_surprise(raw))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Turns raw logits into probabilities: see the formula of this module.

    Attributes:
      shift, gamma: exact, from how the head was trained.
      scale, bias: fitted; 1 and 0 if nothing was.
      note: in words, what was fitted on, or why nothing was.
    """

    shift: float = 0.0
    gamma: float = 0.0
    scale: float = 1.0
    bias: float = 0.0
    note: str = "not fitted"

    def logits(self, raw: np.ndarray) -> np.ndarray:
        """f64 of the shape of `raw`: logits of the probabilities."""
        return self.scale * (focal_logit(raw, self.gamma) + self.shift) + self.bias

    def probabilities(self, raw: np.ndarray) -> np.ndarray:
        """f64 of the shape of `raw`, between 0 and 1."""
        return sigmoid(self.logits(raw))

    @property
    def exact(self) -> Calibration:
        """Without what was fitted."""
        return Calibration(self.shift, self.gamma)

    def fit(self, raw: np.ndarray, ends: np.ndarray, distinct: int | None = None) -> Calibration:
        """With scale and bias of maximum likelihood on held-out rows, on top of what is exact (Platt 1999, without his priors).

        Both and not a temperature alone: a temperature turns around the probability one half, which a head of rare ends hardly ever
        says, so that it cannot sharpen the answers and keep their mean at once. With a bias the mean probability of the rows is their
        share of ends. Two parameters for hundreds of ends do not overfit.

        Args:
          raw: f[n], raw logits.
          ends: bool [n].
          distinct: how many ends there are where several rows are about the same one; None: as many as rows.

        Returns:
          A calibration. Where no fit can be trusted it is the exact part alone, and its note says why: fewer than 10 ends (or other
          rows), scores of the two classes that do not overlap (the likelihood has no maximum), or scores that fall where ends are.
        """
        exact, ends = self.exact, np.asarray(ends, bool)
        found = int(ends.sum()) if distinct is None else distinct
        if min(found, ends.size - int(ends.sum())) < MIN_ENDS:
            return dataclasses.replace(exact, note=f"not fitted: {found} ends in {ends.size:,} rows, {MIN_ENDS} of each class are needed")
        scores = exact.logits(raw)
        if scores[ends].min() >= scores[~ends].max() or scores[ends].max() <= scores[~ends].min():
            return dataclasses.replace(exact, note="not fitted: the scores of ends and of other steps do not overlap")
        scale, bias = _fit_line(scores, ends)
        if scale <= 0:
            return dataclasses.replace(exact, note="not fitted: scores are lower where ends are")
        return dataclasses.replace(exact, scale=scale, bias=bias, note=f"fitted on {found} ends in {ends.size:,} rows")

    def to_json(self) -> dict[str, Any]:
        """The attributes."""
        return dataclasses.asdict(self)


def trained_prior(config: TrainConfig, share_of_ends: float) -> float:
    """Share of ends for which the head answers: that of the draws (`buffer_fresh` corrects its fresh rows to it), or that of the data."""
    if not config.uses_buffer:
        return share_of_ends
    return config.eos_sample_positive / (config.eos_sample_positive + config.eos_sample_negative)


def exact_calibration(config: TrainConfig, share_of_ends: float) -> Calibration:
    """The probabilities of a perfect head that was trained as the configuration says.

    Args:
      config: of the run, with the counts of its draws as they were used.
      share_of_ends: in the training data, between 0 and 1.
    """
    drawn = prior_shift(trained_prior(config, share_of_ends), share_of_ends)
    match config.eos_loss:
        case "pos_weight":  # the odds against an end
            return Calibration(shift=weight_shift((1 - share_of_ends) / share_of_ends))
        case "logit_adjust":
            return Calibration(shift=adjustment_shift(share_of_ends))
        case "focal":
            return Calibration(gamma=FOCAL_GAMMA)
        case _:
            return Calibration(shift=drawn)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-z), without overflow."""
    odds = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, odds) / (1 + odds)


def _log_odds(name: str, share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"{name}: expected a share between 0 and 1, got {share}")
    return float(np.log(share) - np.log1p(-share))


def _odds_times_surprise(logits: np.ndarray) -> np.ndarray:
    """e^z log(1 + e^-z), in (0, 1)."""
    z = np.minimum(logits, _LARGEST)
    return np.exp(z) * np.logaddexp(0, -z)


def _fit_line(scores: np.ndarray, ends: np.ndarray) -> tuple[float, float]:
    """Scale and bias of maximum likelihood, by Newton's method with halved steps. The likelihood is concave and has a maximum here."""
    middle, spread = scores.mean(), scores.std()
    x = np.stack([(scores - middle) / spread, np.ones(scores.size)])  # standardised, so that the equations are well-conditioned
    share = ends.mean()
    line = np.array([0.0, np.log(share / (1 - share))])

    def loss(line: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0, np.where(ends, -1, 1) * (line @ x))))

    now = loss(line)
    for _ in range(_ITERATIONS):
        p = sigmoid(line @ x)
        gradient, curvature = x @ (p - ends) / ends.size, (x * (p * (1 - p))) @ x.T / ends.size
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while (then := loss(line - step)) > now and np.abs(step).max() > 1e-12:
            step /= 2
        line, now = line - step, then
        if np.abs(step).max() <= 1e-10:
            break
    scale = line[0] / spread
    return float(scale), float(line[1] - scale * middle)
