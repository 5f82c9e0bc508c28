"""Fine-tunes a policy and its EOS head. Without a flag: the built-in demo. `python train.py --help` lists the flags."""

import sys
from pathlib import Path

from eosjax import config
from eosjax.types import UserError

DEMO = Path(__file__).parent / "configs" / "demo.yaml"


def main(argv: list[str]) -> None:
    """Reads the flags and trains; what the user can mend ends in one line instead of a traceback."""
    try:
        parsed = config.parse(argv or ["--config_path", str(DEMO)])
        from eosjax.training import run  # after the flags: a wrong one is answered before JAX is loaded

        run(parsed)
    except UserError as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
