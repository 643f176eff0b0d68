"""``python -m tests.simulation.shell``: see schedules.py."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from . import aimed
from .schedules import Tally, aimed_many, replay, report, run_many

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

CHUNK = 50
"""Schedules that a process lives through before it reports."""

REPORTED = 5
"""Failures that are shrunk and shown."""


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.shell", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="random ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="so long, instead of so many")
    parser.add_argument("--pairs", action="store_true", help="also any two faults at one step, in both orders")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", metavar="SEED", help="one schedule, with a trace")
    options = parser.parse_args(arguments)
    if options.replay:
        print(replay(options.replay))
        return 0
    begun = time.monotonic()
    end = None if options.minutes is None else begun + 60 * options.minutes
    total = Tally()
    with ProcessPoolExecutor(options.jobs) as processes:
        for tally in _results(processes, options, end):
            total.add(tally)
            told = f"\r{total.schedules:,} schedules, {time.monotonic() - begun:.0f} s, {len(total.failures)} findings"
            if sys.stderr.isatty():
                print(told, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(
        f"shell: {total.schedules:,} schedules, {total.visits:,} requests, {total.steps:,} steps, "
        f"{total.seconds / 3600:,.1f} virtual hours in {time.monotonic() - begun:.0f} s; "
        f"{len(total.failures)} findings; digest {total.digest}"
    )
    print(f"answers: {dict(total.answers.most_common())}")
    print(f"known and open: {dict(total.known)}")
    for seed, findings in total.failures[:REPORTED]:
        print(report(seed, findings))
    return 1 if total.failures else 0


def _results(processes: ProcessPoolExecutor, options: argparse.Namespace, end: float | None) -> Iterator[Tally]:
    """Aimed ones first, then random ones; no more at once than there are processes to begin with them."""
    waiting: list[Future[Tally]] = []
    chunks = itertools.chain(_aims(pairs=options.pairs), _numbers(None if end else options.schedules))
    for chunk in chunks:
        work = run_many if isinstance(chunk, range) else None
        if work is None:
            waiting.append(processes.submit(aimed_many, chunk))
        else:
            waiting.append(processes.submit(run_many, options.seed, chunk))
        if len(waiting) > 2 * options.jobs:
            yield waiting.pop(0).result()
        if end is not None and time.monotonic() >= end:
            break
    for each in waiting:
        yield each.result()


def _aims(*, pairs: bool) -> Iterator[list[aimed.Aim]]:
    aims = iter(aimed.aims())
    if pairs:
        aims = itertools.chain(aims, aimed.aims(pairs=True))
    while chunk := list(itertools.islice(aims, CHUNK)):
        yield chunk


def _numbers(count: int | None) -> Iterator[range]:
    for first in itertools.count(0, CHUNK):
        if count is not None and first >= count:
            return
        yield range(first, first + CHUNK if count is None else min(first + CHUNK, count))


if __name__ == "__main__":
    sys.exit(main())
