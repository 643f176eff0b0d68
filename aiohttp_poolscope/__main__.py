"""`python -m aiohttp_poolscope` is the command `aiohttp-poolscope`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
