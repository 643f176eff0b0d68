"""A short run of the simulation of the shell, which ends with its first finding: ``python -m tests.mutants.shell``."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

from tests.simulation.shell import aimed
from tests.simulation.shell.schedules import Tally, aimed_many, run_many

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = 10
"""Of so many aimed schedules one is lived through."""

RANDOM = 120
"""Random schedules."""

CHUNK = 20


def main() -> int:
    """0: nothing was found."""
    for tally in itertools.chain(_random(), _aimed()):
        if tally.failures:
            print(*tally.failures[0])
            return 1
    return 0


def _random() -> Iterator[Tally]:
    for first in range(0, RANDOM, CHUNK):
        yield run_many("mutants", range(first, first + CHUNK))


def _aimed() -> Iterator[Tally]:
    chosen = itertools.islice(aimed.aims(), None, None, EVERY)
    while chunk := list(itertools.islice(chosen, CHUNK)):
        yield aimed_many(chunk)


if __name__ == "__main__":
    sys.exit(main())
