"""Control steps a second of the simulated table, with and without pictures, on one core.

python benchmarks/tables.py [--tables 64]
"""

import argparse
import time

import numpy as np

from eosjax.envs.demo import DemoWorlds


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=64, metavar="N", help="that step at once (%(default)s)")
    args = parser.parse_args()
    rows = list(range(args.tables))
    worlds = DemoWorlds([(0, row) for row in rows])
    actions = np.random.default_rng(0).uniform(-1, 1, (args.tables, 7)).astype(np.float32)
    for name, steps, look in (("without pictures", 200, False), ("with both cameras", 20, True)):
        rates = []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(steps):
                worlds.step(rows, list(actions))
                if look:
                    worlds.observe(rows)
            rates.append(steps * args.tables / (time.perf_counter() - began))
        spread = f"{min(rates):,.0f} to {max(rates):,.0f} in {len(rates)} runs"
        print(f"{name:18}  median {np.median(rates):8,.0f} steps/s, {spread}")


if __name__ == "__main__":
    main()
