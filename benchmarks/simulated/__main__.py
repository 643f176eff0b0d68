"""The gate's overload policy over load patterns, simulated: tables on the standard output, plots on request.

    python -m benchmarks.simulated                        # all tables, about two minutes
    python -m benchmarks.simulated --only limits          # one of them
    python -m benchmarks.simulated --plots docs/images    # the plots only

The simulation drives the real Gate (``world.py``), so a change of the gate changes these tables. It knows no network
and, unless told so, no processor: what it shows is what the decision costs, and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .tables import TABLES, markdown

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulated", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=TABLES, help="one table")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each case; their mean is shown")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write the plots there instead")
    options = parser.parse_args(arguments)
    if options.plots:
        from .plots import draw

        draw(options.plots)
        return 0
    for name, table in TABLES.items():
        if options.only in (None, name):
            print(markdown(table(range(1, options.seeds + 1))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
