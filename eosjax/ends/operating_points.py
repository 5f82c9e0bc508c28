"""Where the threshold is chosen: what turns raw logits of the EOS head into decisions, and how held-out episodes determine it.

`choose` fits the calibration, counts what every threshold would fire (`eosjax.ends.sweeps`), and takes the threshold that the rule of
`--eos_operating_point` prefers. The result, an `OperatingPoint`, is stored with the checkpoint; a served policy only reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eosjax.config import TrainConfig
from eosjax.ends.calibration import Calibration, exact_calibration, sigmoid
from eosjax.ends.events import Decisions, ScoredEpisode
from eosjax.ends.protocols import ChunkedEpisode, Rule, merge_votes, replay
from eosjax.ends.sweeps import dense_sweep, option_grid, pick, tune, window_of
from eosjax.flag_values import OperatingRule

FOLDS = 5  # of the cross-fitting


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """Probabilities and thresholds, as they are stored with a checkpoint.

    Attributes:
      calibration: of raw logits into probabilities.
      rule: of the deployed protocol, on probabilities. Its options need a clock that runs on from chunk to chunk.
      plain_threshold: probability from which a step ends a sub-step where there is no such clock.
      dense_threshold: probability from which a candidate fires in the dense protocol, whose scores are means and thus differ.
      chosen_by: the rule that chose, as `--eos_operating_point` has it; `fixed` if nothing was chosen.
      episodes: held-out episodes that it was chosen, or the calibration fitted, on; 0 for none.
    """

    calibration: Calibration
    rule: Rule
    plain_threshold: float
    dense_threshold: float
    chosen_by: str = "fixed"
    episodes: int = 0

    @classmethod
    def unseen(cls, calibration: Calibration, threshold: float) -> OperatingPoint:
        """Without any held-out episodes: what is exact, and the same threshold everywhere."""
        return cls(calibration.exact, Rule(threshold), threshold, threshold)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> OperatingPoint:
        """What `to_json` made."""
        parts = {"calibration": Calibration(**content["calibration"]), "rule": Rule(**content["rule"])}
        return cls(**{**content, **parts})

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries of the attributes."""
        return dataclasses.asdict(self)

    def at(self, threshold: float) -> OperatingPoint:
        """The same probabilities and another threshold everywhere, without options, which were chosen for the old one."""
        return OperatingPoint(self.calibration, Rule(threshold), threshold, threshold, episodes=self.episodes)

    def dense(self, episode: ChunkedEpisode) -> ScoredEpisode:
        """The probability of each step: of the mean of the calibrated logits of all chunks that cover it."""
        return ScoredEpisode(episode.name, sigmoid(merge_votes(self.calibration.logits(episode.logits))), episode.ends)

    def deployed(self, episode: ChunkedEpisode) -> Decisions:
        """What fires where a robot would plan."""
        played = replay(self.calibration.probabilities(episode.logits), self.rule)
        return Decisions(played.fired, np.flatnonzero(episode.ends), episode.ends.size)

    def sentence(self) -> str:
        """Where it comes from, in words."""
        options = ["cumulative"] if self.rule.cumulative else []
        options += [f"debounce {self.rule.debounce}"] if self.rule.debounce > 1 else []
        options += [f"at least {self.rule.min_steps} steps"] if self.rule.min_steps > 1 else []
        options += [f"time-out {self.rule.time_out}"] if self.rule.time_out else []
        if options:
            options.append(f"or without a clock threshold {self.plain_threshold:.3g}")
        listed = "".join(f", {option}" for option in options)
        threshold = f"threshold {self.rule.threshold:.3g}{listed}"
        if not self.episodes:
            return f"{threshold}; no held-out episodes were looked at: only what is exact is corrected"
        how = "as given" if self.chosen_by == "fixed" else f"chosen by {self.chosen_by} on {self.episodes} held-out episodes"
        return f"{threshold}, {how}; calibration {self.calibration.note}"


@dataclasses.dataclass(frozen=True)
class Selection:
    """How an operating point is chosen.

    Attributes:
      exact: what is known from how the head was trained.
      rule: what is best.
      threshold: probability to take with the rule `fixed`.
      options: decision options to choose among, too (see `sweeps.option_grid`); none for a threshold alone.
      time_out: that is taken whatever the rule finds; None for none.
    """

    exact: Calibration
    rule: OperatingRule
    threshold: float = 0.5
    options: Sequence[Rule] = ()
    time_out: int | None = None


def selection(config: TrainConfig, share_of_ends: float, train_ends: Sequence[np.ndarray]) -> Selection:
    """How the operating point of a run is chosen.

    Args:
      config: of the run, with the counts of its draws as they were used.
      share_of_ends: in the training data, between 0 and 1.
      train_ends: for each training episode bool [t]; the lengths of their sub-steps bound the decision options.
    """
    options, time_out = option_grid(train_ends) if config.eos_tune_decision else [], None
    if options and config.operating_rule.kind == "early":
        # A recording goes on at its end whatever the head says, so that no figure there tells what a time-out is good for.
        time_out = max(each.time_out or 0 for each in options)
        options = [each for each in options if not each.time_out]
    return Selection(exact_calibration(config, share_of_ends), config.operating_rule, config.eos_threshold, options, time_out)


def choose(episodes: Sequence[ChunkedEpisode], how: Selection) -> OperatingPoint:
    """Fits the calibration on held-out episodes, and chooses where to operate.

    The calibration is fitted to what single chunks say about their steps, since that is what a running policy goes by.

    Args:
      episodes: held out, at least one.
      how: what is fitted, and picked by which rule.
    """
    logits, ends = (np.concatenate(column) for column in zip(*(each.votes for each in episodes), strict=True))
    calibration = how.exact.fit(logits, ends, distinct=int(sum(each.ends.sum() for each in episodes)))
    point = OperatingPoint(calibration, Rule(how.threshold), how.threshold, how.threshold, str(how.rule), len(episodes))
    if how.rule.kind == "fixed":
        return point
    scores = [point.calibration.probabilities(each.logits) for each in episodes]
    truth = [each.ends for each in episodes]
    plain = tune(scores, truth, how.rule, [Rule(how.threshold)])
    chosen = tune(scores, truth, how.rule, how.options) if how.options else plain
    if how.time_out is not None:
        chosen = dataclasses.replace(chosen, time_out=how.time_out)
    collar, delay = window_of(how.rule)
    dense = pick(dense_sweep([point.dense(each) for each in episodes], collar, delay=delay), how.rule).threshold
    return dataclasses.replace(point, rule=chosen, plain_threshold=plain.threshold, dense_threshold=dense)


def cross_fit(episodes: Sequence[ChunkedEpisode], how: Selection, folds: int = FOLDS) -> list[OperatingPoint]:
    """For each episode a point that was chosen without it: what the others say, fold by fold.

    Figures at these points tell what the choice promises for new episodes; those at the point that saw all of them are a little better.

    Args:
      episodes: held out, at least two.
      how: as in `choose`.
      folds: at most as many as episodes are made; an episode is in fold number modulo folds.
    """
    folds = min(folds, len(episodes))
    fold_of = np.arange(len(episodes)) % folds
    points = [choose([each for each, at in zip(episodes, fold_of, strict=True) if at != fold], how) for fold in range(folds)]
    return [points[fold] for fold in fold_of.tolist()]
