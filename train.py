"""Fine-tunes a policy and its EOS head. Without a flag: the built-in demo. `python train.py --help` lists the flags."""

import sys
from pathlib import Path

from eosjax import config, training

DEMO = Path(__file__).parent / "configs" / "demo.yaml"

if __name__ == "__main__":
    try:
        training.run(config.parse(sys.argv[1:] or ["--config_path", str(DEMO)]))
    except config.ConfigError as error:
        sys.exit(f"train.py: {error}")
