"""``python -m tests.simulation``: the gate (schedules.py), then the whole pool in virtual time (shell/)."""

from __future__ import annotations

import argparse
import os
import sys

from . import schedules
from .shell.__main__ import main as shell

SHARE = 20
"""Schedules of the gate for each one of the shell, which has as many steps in it."""


def main(arguments: list[str] | None = None) -> int:
    """Both, or one of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000, help=f"of the gate; of the shell 1/{SHARE} of it")
    parser.add_argument("--minutes", type=float, help="of the shell, instead of so many schedules")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--pairs", action="store_true", help="of the shell: any two faults at each step, in both orders"
    )
    parser.add_argument("--gate-only", action="store_true")
    parser.add_argument("--shell-only", action="store_true")
    parser.add_argument("--replay", metavar="SEED", help="one schedule of the gate, with a trace of its events")
    options = parser.parse_args(arguments)
    if options.replay:
        return schedules.main(["--replay", options.replay])
    common = [f"--seed={options.seed}", f"--jobs={options.jobs}"]
    failed = 0
    if not options.shell_only:
        failed |= schedules.main([*common, f"--schedules={options.schedules}"])
    if not options.gate_only:
        length = (
            f"--schedules={options.schedules // SHARE}" if options.minutes is None else f"--minutes={options.minutes}"
        )
        failed |= shell([*common, length, *["--pairs"] * options.pairs])
    return failed


if __name__ == "__main__":
    sys.exit(main())
