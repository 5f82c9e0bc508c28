"""How much of the ends is told by what a policy gets beside its pictures? The table of docs/bench.md, "Why trees win".

    python benchmarks/without_pictures.py --data_root_dir datasets --val_share 0.2 --seed 0                     (the demo)
    python benchmarks/without_pictures.py --config_path configs/libero_small.yaml --data_root_dir DIR \\
        --substep_labels_path DIR/substep_labels_output.json --val_share 0.3 --seed 0                           (LIBERO)

Takes the flags of `train.py`; the seed counts up from `--seed` five times, and chooses the held-out episodes. Boosted trees and a small
network get the state of the robot at the step itself and the sub-step that runs; other trees what the state has changed by, too. All
are fitted on the training episodes.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from eosjax import flags
from eosjax.config import TrainConfig
from eosjax.data.samples.source import SampleSource
from eosjax.ends.baselines import boosted_scores, past_differences, places
from eosjax.ends.comparison import FIGURES, compare
from eosjax.ends.events import ScoredEpisode
from eosjax.reports.tables import markdown
from eosjax.runs.data import open_data
from eosjax.runs.policy_source import PolicySource

SEEDS = 5
EPOCHS = (20, 200)
RECIPE = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main() -> None:
    """Prints the table."""
    arguments = sys.argv[1:]
    base = flags.parse(arguments if "--config_path" in arguments else ["--config_path", str(RECIPE), *arguments])
    rows = [measure(dataclasses.replace(base, seed=base.seed + seed)) for seed in range(SEEDS)]
    table: list[tuple[str, ...]] = [("fitted to", "frame AP", "event AP ±2", "F1 ±2")]
    for name in rows[0]:
        columns = ([row[name][figure] for row in rows] for figure in FIGURES)
        table.append((name, *(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" for values in columns)))
    print(markdown(table))


def measure(config: TrainConfig) -> dict[str, dict[str, float]]:
    """The figures of each model on the held-out episodes, by its name."""
    data = open_data(config, PolicySource.open(config))
    assert data.val is not None
    spans = [slice(*data.val.data.episode_starts[[number, number + 1]].tolist()) for number in data.val.episodes.tolist()]
    ends = data.val.data.labels.ends.astype(bool)
    methods = {
        name: [ScoredEpisode(str(span.start), values[span], ends[span]) for span in spans] for name, values in scores(data.train).items()
    }
    return {name: dict(each.values) for name, each in compare(methods, replicates=0).measured.items()}


def scores(train: SampleSource) -> dict[str, np.ndarray]:
    """The probability of an end at every frame of the store, f64 [N], by model; `train`: what they are fitted on."""
    data, fitted = train.data, np.zeros(train.data.num_frames, bool)
    fitted[train.anchors] = True
    ends, starts = data.labels.ends.astype(bool), data.episode_starts
    place = places(ends, starts)
    now = np.column_stack([data.proprio, np.eye(place.max() + 1)[place]])
    found = {
        "state and its changes, sub-step: trees": boosted_scores(
            np.column_stack([data.proprio, past_differences(data.proprio, starts), place]), ends, fitted
        ),
        "state, sub-step: trees": boosted_scores(np.column_stack([data.proprio, place]), ends, fitted),
    }
    for epochs in EPOCHS:
        settings: dict[str, Any] = {"alpha": 1e-3, "max_iter": epochs, "batch_size": 128, "random_state": 0}
        network = MLPClassifier((256, 128), **settings)
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # so many epochs are meant
            said = np.asarray(network.fit(now[fitted], ends[fitted]).predict_proba(now))
        found[f"state, sub-step: a network, {epochs} epochs"] = said[:, 1]
    return found


if __name__ == "__main__":
    main()
