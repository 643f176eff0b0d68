"""``make mutants``: the package is broken in many small ways, one at a time, and something must find each.

A mutant is tried against the simulations and, if they find nothing, against the tests. The exit code is 1 if one is
found by nothing.

    python -m tests.mutants --list
    python -m tests.mutants --only queue-cancelled-place-stays
    python -m tests.mutants --write
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from . import connection, gate, pool, table, upkeep, web
from .trial import Finding, find, lying_simulations, lying_tests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .mutant import Mutant

MUTANTS = (*gate.MUTANTS, *pool.MUTANTS, *upkeep.MUTANTS, *connection.MUTANTS, *web.MUTANTS)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="the mutants, and the promises they break")
    parser.add_argument("--only", metavar="NAME", nargs="+", default=(), help="mutants whose names begin so")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants tried at once")
    parser.add_argument("--write", action="store_true", help="put what is found into docs/guarantees.md")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"there is no mutant {' or '.join(options.only)}")
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:<44} {mutant.promise:<4} {mutant.breaks}")
        return 0
    # A shell's background job ignores it, and so would every test, some of which send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if liars := lying_simulations():
        print(f"finds something where nothing is wrong: the simulation of the {', '.join(liars)}")
        return 1
    begun = time.perf_counter()
    found = _try_all(chosen, options.jobs, write=options.write)
    missed = [name for name, finding in found.items() if finding == Finding()]
    print(f"{len(chosen)} mutants, {len(missed)} found by nothing, {time.perf_counter() - begun:.0f} s")
    return 1 if missed else 0


def _try_all(mutants: Sequence[Mutant], jobs: int, *, write: bool) -> dict[str, Finding]:
    """What finds each. A test that fails without the mistake as well has found nothing, and is not asked again."""
    found: dict[str, Finding] = {}
    excused: set[str] = set()
    untold = list(mutants)
    with ThreadPoolExecutor(jobs) as threads:
        while untold:
            for mutant, finding in zip(untold, threads.map(find, untold, [excused] * len(untold)), strict=True):
                found[mutant.name] = finding
                print(f"{mutant.name:<44} {finding}", flush=True)
                if write:
                    table.put(MUTANTS, table.known() | {name: str(finding) for name, finding in found.items()})
            tests = {found[mutant.name].test for mutant in untold} - {""}
            liars = set(lying_tests(tests))
            excused |= liars
            untold = [mutant for mutant in untold if found[mutant.name].test in liars]
            print(f"{len(tests)} tests pass where nothing is wrong, but for {len(liars)}")
    return found
