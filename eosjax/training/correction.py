"""What the loss of the EOS head and the rows that it saw do to its answers, to be undone exactly."""

from __future__ import annotations

from collections.abc import Sequence

from eosjax.config import BALANCED_BUFFER, TrainConfig
from eosjax.data.loader import SampleSource
from eosjax.evaluation.calibration import Calibration, adjustment_shift, prior_shift, weight_shift
from eosjax.evaluation.decision import Selection
from eosjax.evaluation.operating import option_grid
from eosjax.evaluation.protocols import Rule
from eosjax.losses import FOCAL_GAMMA


def trained_prior(config: TrainConfig, share_of_ends: float) -> float:
    """Share of ends among the rows that the head learns from: that of the draws, or with fresh rows that of the data."""
    if config.eos_loss != BALANCED_BUFFER:
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


def selection(config: TrainConfig, share_of_ends: float, train: SampleSource) -> Selection:
    """How the operating point of a run is chosen.

    Args:
      config, share_of_ends: as in `exact_calibration`.
      train: the training split, whose sub-steps bound the decision options.
    """
    options: Sequence[Rule] = ()
    if config.eos_tune_decision:
        ends, starts = train.data.labels.ends, train.data.episode_starts
        options = option_grid([ends[starts[number] : starts[number + 1]] for number in train.episodes])
    return Selection(exact_calibration(config, share_of_ends), config.operating_rule, config.eos_threshold, options)
