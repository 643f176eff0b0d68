"""``python -m tests.simulation``: see schedules.py."""

import sys

from .schedules import main

if __name__ == "__main__":
    sys.exit(main())
