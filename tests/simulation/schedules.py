"""Random schedules against the gate: many small worlds, each grown from one seed, each checked at every step.

A schedule draws its own sizes, settings and temperament, then lets borrowers ask, wait, leave, die and return in
any order, connections fail and be checked, time pass and stall, the database go away, the pool drain and close. It
keeps its own books, which know nothing of how the gate decides, and compares them with the gate after every event.

    python -m tests.simulation --schedules 100000 --seed 1
    python -m tests.simulation --replay 1:17
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from aiohttp_poolscope.gate import Gate, Overload
from tests.kit.traced import Step, Traced

from .world import World

CHUNK = 200
"""Schedules a process runs before it reports."""


@dataclass
class Tally:
    """What happened, so that a run can show it was not trivial."""

    schedules: int = 0
    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    stood: int = 0
    steps: set[Step] = field(default_factory=set)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add another one's numbers."""
        self.schedules += other.schedules
        self.events += other.events
        self.outcomes += other.outcomes
        self.stood += other.stood
        self.steps |= other.steps
        self.failures += other.failures


Kind = type[Gate[int]] | type[Overload]


def run(seed: str, kind: Kind = Traced, trace: list[str] | None = None) -> Tally:
    """One schedule, with a kind of gate or of overload policy. What is wrong with it is in the tally's failures."""
    world = World(seed, policy=kind, trace=trace) if issubclass(kind, Overload) else World(seed, kind, trace=trace)
    tally = Tally(schedules=1)
    try:
        world.run()
    except Exception as error:  # noqa: BLE001 - whatever a broken gate does is a finding
        tally.failures.append((seed, f"{type(error).__name__}: {error}"))
    tally.events = world.events
    tally.stood = world.stood
    if isinstance(world.gate, Traced):
        tally.steps = world.gate.seen
    tally.outcomes = Counter({outcome.value: count for outcome, count in world.outcomes.items()})
    return tally


def run_many(seed: int | str, numbers: range, kind: Kind = Traced) -> Tally:
    """Many schedules, up to the first failure: ``<seed>:<number>`` is the seed of each."""
    tally = Tally()
    for number in numbers:
        tally.add(run(f"{seed}:{number}", kind))
        if tally.failures:
            break
    return tally


def replay(seed: str, kind: Kind = Traced) -> str:
    """The trace of one schedule, the verdict last."""
    trace: list[str] = []
    failures = run(seed, kind, trace).failures
    return "\n".join([*trace, *(problem for _, problem in failures)] or ["nothing happened"])


def report(failures: list[tuple[str, str]]) -> str:
    """What failed and how to see it again."""
    return "\n".join(
        f"{problem}\n  again, with a trace: python -m tests.simulation --replay {seed}" for seed, problem in failures
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", metavar="SEED", help="one schedule, with a trace of its events")
    options = parser.parse_args(arguments)
    if options.replay:
        print(replay(options.replay))
        return 0
    begun = time.perf_counter()
    total = Tally()
    chunks = [range(first, min(first + CHUNK, options.schedules)) for first in range(0, options.schedules, CHUNK)]
    with ProcessPoolExecutor(options.jobs) as processes:
        for tally in processes.map(run_many, [options.seed] * len(chunks), chunks):
            total.add(tally)
            progress = f"\r{total.schedules:,} of {options.schedules:,}, {time.perf_counter() - begun:.0f} s"
            print(progress, end="", file=sys.stderr, flush=True)
            if total.failures:
                processes.shutdown(cancel_futures=True)
                break
    print(file=sys.stderr)
    print(f"{total.schedules:,} schedules, {total.events:,} events, {time.perf_counter() - begun:.0f} s")
    print(f"borrows: {sum(total.outcomes.values()):,}, {dict(total.outcomes)}; queues that stood: {total.stood:,}")
    if total.failures:
        print(report(total.failures))
        print(replay(total.failures[0][0]))
        return 1
    return 0
