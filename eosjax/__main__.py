"""`python -m eosjax` is the command `eosjax`."""

import sys

from eosjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
