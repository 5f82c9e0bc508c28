"""Which way to train the EOS head is best? Makes the tables and curves of docs/bench-demo.md and docs/bench-libero.md.

    python benchmarks/eos_methods.py --out bench                                      (the demo)
    python benchmarks/eos_methods.py --out bench --libero DIR                         (and LIBERO: DIR holds libero_goal_no_noops/ and
                                                                                       substep_labels_output.json)
    python benchmarks/eos_methods.py --out bench --datasets libero --libero DIR       (LIBERO alone)

    python benchmarks/eos_methods.py --out bench --trained                            (each method trained together with the policy)

For each dataset: trains a policy by its recipe with 30 % of the episodes held out, stores the hidden states of all episodes, and compares
the methods on them. With --trained: trains a new policy with each method and seed, and measures it (hours). An interrupted comparison is
continued by the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eosjax import cli, flags
from eosjax.bench import full
from eosjax.config import CONFIG_FILE
from eosjax.training.run import run as train

RECIPES = Path(__file__).parents[1] / "configs"
RUN, CACHE, RESULTS = "run", "hidden", "results"
# Changes to the recipe: enough held-out episodes for two halves, hidden states that learned from the actions alone, and on LIBERO enough
# updates for useful ones.
SETTINGS = {
    "demo": ("demo.yaml", ("--val_share=0.3", "--eos_loss=balanced_buffer")),
    "libero": ("libero_small.yaml", ("--val_share=0.3", "--max_steps=1500", "--num_steps_before_decay=1000", "--val_freq=500")),
}
# The same for policies that are trained together with each method: shorter, because there are many.
TRAINED = {
    "demo": ("demo.yaml", ("--val_share=0.2", "--max_steps=1200", "--num_steps_before_decay=800", "--log_freq=20")),
    "libero": ("libero_small.yaml", ("--val_share=0.3", "--max_steps=1200", "--num_steps_before_decay=800")),
}


def train_policy(dataset: str, folder: Path, places: list[str]) -> None:
    """Trains the policy that provides the hidden states, unless it exists."""
    recipe, settings = SETTINGS[dataset]
    config = flags.parse(
        ["--config_path", str(RECIPES / recipe), *settings, *places, f"--run_root_dir={folder}", f"--run_id_override={RUN}"]
    )
    saved = sorted(int(path.name) for path in (folder / RUN / "checkpoints").glob("[0-9]*"))
    if saved and saved[-1] == config.max_steps:
        return
    resume = ["--resume=True"] if saved else []
    train(flags.parse(["--config_path", str(folder / RUN / CONFIG_FILE), *resume]) if resume else config)


def compare(dataset: str, folder: Path, places: list[str], more: list[str]) -> int:
    """Trains, caches and compares; returns the exit status of a failed command, or 0."""
    train_policy(dataset, folder, places)
    if not (folder / CACHE).exists():
        status = cli.main(["cache-hidden", "--checkpoint", str(folder / RUN), "--out", str(folder / CACHE)])
        if status:
            return status
    if (folder / RESULTS / "results.json").exists():
        print((folder / RESULTS / "summary.md").read_text(encoding="utf-8"))
        return 0
    return cli.main(["bench", "eos", "--cache", str(folder / CACHE), "--out", str(folder / RESULTS), *more])


def compare_trained(dataset: str, folder: Path, places: list[str], seeds: int) -> None:
    """Trains a new policy with each method and seed, and compares."""
    recipe, settings = TRAINED[dataset]
    base = flags.parse(["--config_path", str(RECIPES / recipe), *settings, *places])
    full.compare(base, list(full.FULL_METHODS), range(seeds), folder / "trained")


def main() -> int:
    """Compares on all requested datasets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; a folder a dataset")
    parser.add_argument("--datasets", nargs="+", choices=SETTINGS, help="(the demo, and LIBERO if --libero says where it is)")
    parser.add_argument("--libero", type=Path, metavar="DIR", help="where the LIBERO data are")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="runs of each method (%(default)s)")
    parser.add_argument("--trained", action="store_true", help="train each method together with the policy")
    args, more = parser.parse_known_args()
    if args.trained and more:
        parser.error(f"unknown with --trained: {' '.join(more)}")
    places = {"demo": [f"--data_root_dir={args.out / 'datasets'}"]}
    if args.libero:
        labels = args.libero / "substep_labels_output.json"
        places["libero"] = [f"--data_root_dir={args.libero}", f"--substep_labels_path={labels}"]
    for dataset in args.datasets or places:
        if dataset not in places:
            parser.error(f"--datasets {dataset} needs --libero")
        if args.trained:
            compare_trained(dataset, args.out / dataset, places[dataset], args.seeds)
            continue
        status = compare(dataset, args.out / dataset, places[dataset], [f"--seeds={args.seeds}", *more])
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
