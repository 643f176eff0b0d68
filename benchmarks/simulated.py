"""The gate's overload policy over load patterns, simulated: tables on the standard output, plots on request.

    python -m benchmarks.simulated                        # all tables, about two minutes
    python -m benchmarks.simulated --only limits          # one of them
    python -m benchmarks.simulated --plots docs/images    # the plots only

The simulation drives the real Gate (``simulated_world.py``), so a change of the gate changes these tables. It knows
no network and, unless told so, no processor: what it shows is what the decision costs, and nothing else.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .simulated_policies import FOR_EVER, POLICIES, play
from .simulated_world import Draw, Load, Result

BEFORE = 2.0
"""Seconds of calm before an overload, so that the gate knows its leases."""

FIRST = 4.0
"""Seconds from the beginning of an overload in which its goodput is taken."""

AFTER = 5.0
"""Seconds of calm after it."""

Table = tuple[str, Sequence[str], list[list[str]]]


def exponential(mean: float) -> Draw:
    """Most are short."""
    return lambda rng: rng.expovariate(1.0 / mean)


def lognormal(mean: float, sigma: float = 1.5) -> Draw:
    """A long tail: with sigma 1.5 the mean is three times the median."""
    mu = math.log(mean) - sigma * sigma / 2
    return lambda rng: rng.lognormvariate(mu, sigma)


def bimodal(quick: float = 0.005, slow: float = 1.0, share: float = 0.05) -> Draw:
    """Quick queries and a few reports."""
    return lambda rng: slow if rng.random() < share else quick


def overload(multiple: float, *, seconds: float = 10.0, **more: Any) -> Load:
    """Calm at 0.6 of the capacity, overload, calm at 0.45."""
    phases = ((BEFORE, 0.6), (seconds, multiple), (AFTER, 0.45))
    return Load(f"{multiple:g} times the capacity", phases, **more)


def overloads() -> list[Load]:
    """Load that cannot be served."""
    return [overload(multiple) for multiple in (1.2, 2.0, 3.0, 10.0)]


def fitting() -> list[Load]:
    """Load that can be served: whatever is refused here is refused for nothing, or for a moment's sake."""
    mixed = 0.95 * 0.005 + 0.05 * 1.0
    return [
        *(Load(f"steady {share:g}, 10 ms", ((30.0, share),), service=exponential(0.01)) for share in (0.5, 0.9, 0.99)),
        Load("steady 0.9, 1 ms", ((5.0, 0.9),), 0.001, service=exponential(0.001)),
        Load("steady 0.9, 100 ms", ((100.0, 0.9),), 0.1, 2.0, exponential(0.1)),
        Load("steady 0.9, 300 ms, 5 % leave", ((200.0, 0.9),), 0.3, 3.0, exponential(0.3), strays=0.05),
        Load("steady 0.6, 1 s, 5 % leave", ((400.0, 0.6),), 1.0, 5.0, exponential(1.0), strays=0.05),
        Load("30 at once, 1 s, on 10", ((1.0, 0.0),), 1.0, 5.0, burst=30),
        Load("lognormal 0.9, 10 ms", ((60.0, 0.9),), 0.01, 2.0, lognormal(0.01)),
        Load("lognormal 0.9, 100 ms", ((100.0, 0.9),), 0.1, 2.0, lognormal(0.1)),
        Load("5 ms, and 5 % of 1 s, 0.6", ((100.0, 0.6),), mixed, 2.0, bimodal()),
        Load("5 ms, and 5 % of 1 s, 0.9", ((100.0, 0.9),), mixed, 2.0, bimodal()),
        Load("a stall of 0.3 s at 0.3", ((10.0, 0.3),), patience=2.0, stalls=(5.0,)),
        Load("a stall of 0.3 s at 0.6", ((10.0, 0.6),), patience=2.0, stalls=(5.0,)),
        Load("spikes of 5.0 in 0.4, 10 ms", ((1.8, 0.4), (0.2, 5.0)) * 10, patience=2.0),
        Load("spikes of 5.0 in 0.4, 100 ms", ((1.8, 0.4), (0.2, 5.0)) * 10, 0.1, 2.0),
        Load("slow database: 10 times for 10 s", ((20.0, 0.6),), slow=(5.0, 15.0, 10.0)),
        Load("no connections for 2 s", ((15.0, 0.6),), patience=5.0, away=(5.0, 7.0)),
    ]


def limits() -> list[Load]:
    """Long leases and impatient clients, at three times the capacity."""
    pairs = [(0.001, 0.5), (0.01, 0.5), (0.03, 0.5), (0.1, 0.5), (0.1, 1.0), (0.3, 0.5), (0.3, 1.0), (0.3, 2.0)]
    pairs += [(1.0, 2.0), (1.0, 5.0)]
    # One that takes 1 ms is one of ten thousand a second.
    loads = [
        replace(
            overload(3.0, seconds=1.0 if lease < 0.01 else FIRST, lease=lease, patience=patience),
            name=f"{1000 * lease:g} ms, patience {patience:g} s",
        )
        for lease, patience in pairs
    ]
    loads += [
        replace(
            overload(3.0, seconds=FIRST, lease=0.1, patience=0.5, maxsize=size), name=f"100 ms, 0.5 s, {size} conn."
        )
        for size in (1, 50)
    ]
    loads += [
        replace(overload(3.0, seconds=FIRST, lease=lease, maxsize=size, servers=5), name=f"{name}, {size} on 5 servers")
        for lease, name in ((0.01, "10 ms"), (0.03, "30 ms"), (0.1, "100 ms"))
        for size in (5, 30)
    ]
    return loads


VARIANTS: dict[str, dict[str, Any]] = {
    **{f"queue_target {target:g}": {"queue_target": target} for target in (0.02, 0.05, 0.1, 0.2, 0.5)},
    **{f"normal: {leases} leases": {"leases": leases} for leases in (1, 2, 3, 4, 6, 8)},
    **{f"late for {again:g} times that": {"again": again} for again in (0.0, 0.5, 1.0, 2.0)},
    **{f"{count} gave up": {"given_up": count} for count in (1, 2, 10)},
    "who gives up is not heeded": {"given_up": FOR_EVER},
    **{f"a crowd: {room} for each connection": {"room": room} for room in (1, 2, 4, 10)},
    "a crowd makes no room": {"room": FOR_EVER},
    "stands until the oldest is young": {"calm": 1.0},
}
"""One constant changed at a time."""


def mean(measure: Callable[[Result], float], results: Iterable[Result]) -> float:
    """The mean over the seeds."""
    return statistics.fmean(measure(result) for result in results)


def share(value: float) -> str:
    return f"{value:.2f}"


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def seconds(value: float) -> str:
    return "" if math.isnan(value) else f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def overload_table(seeds: range) -> Table:
    """Ten seconds of overload, and what comes after."""
    rows = []
    for load in overloads():
        end = BEFORE + 10.0
        for policy in POLICIES:
            runs = [play(policy, load, seed) for seed in seeds]
            rows.append(
                [
                    load.name,
                    policy,
                    share(mean(lambda run: run.goodput(BEFORE, BEFORE + FIRST), runs)),
                    share(mean(lambda run: run.goodput(BEFORE, end), runs)),  # noqa: B023 - called at once
                    seconds(mean(lambda run: run.quantile(0.5, BEFORE, end), runs)),  # noqa: B023
                    seconds(mean(lambda run: run.quantile(0.99, BEFORE, end), runs)),  # noqa: B023
                    seconds(mean(lambda run: run.first_no(BEFORE), runs)),
                    percent(mean(lambda run: run.in_time(end + 1.0), runs)),  # noqa: B023
                ]
            )
    head = ["load", "policy", "goodput, first 4 s", "10 s", "p50", "p99", "first refusal", "in time from 1 s after"]
    return "Overload: 10 connections, 10 ms, patience 1 s", head, rows


def fitting_table(seeds: range) -> Table:
    """Load that fits."""
    policies = ("FIFO", "newest first", "the gate")
    rows = []
    for load in fitting():
        row = [load.name]
        for policy in policies:
            runs = [play(policy, load, seed) for seed in seeds]
            row += [percent(mean(Result.in_time, runs)), seconds(mean(lambda run: run.quantile(0.99), runs))]
        row.append(percent(mean(Result.told_no, runs)))
        rows.append(row)
    head = ["load", *(f"{policy}{what}" for policy in policies for what in (": in time", ": p99")), "the gate refused"]
    return "Load that fits: answered in time, p99 of these, refused", head, rows


def limits_table(seeds: range) -> Table:
    """Long leases, impatient clients."""
    ways: dict[str, str | dict[str, Any]] = {
        "FIFO": "FIFO",
        "newest first": "newest first",
        "the gate": "the gate",
        "the gate, unheeding": {"given_up": FOR_EVER},
    }
    rows = []
    for load in limits():
        row = [load.name]
        for policy in ways.values():
            runs = [play(policy, load, seed) for seed in seeds]
            row.append(share(mean(lambda run: run.goodput(BEFORE, run.load.length - AFTER), runs)))
        rows.append(row)
    return "Goodput at the beginning of 3 times the capacity", ["leases and clients", *ways], rows


def variants_table(seeds: range) -> Table:
    """What each constant does."""
    short, long, pooled = (
        overload(3.0, seconds=FIRST, **more)
        for more in ({}, {"lease": 0.1, "patience": 0.5}, {"lease": 0.03, "maxsize": 30, "servers": 5})
    )
    fits = {load.name: load for load in fitting()}
    harmless = [fits[name] for name in fits if name.startswith(("steady 0.99", "steady 0.9, 100", "steady 0.9, 300"))]
    harmless += [fits[name] for name in ("30 at once, 1 s, on 10", "a stall of 0.3 s at 0.6", "lognormal 0.9, 100 ms")]
    harmless += [fits[f"spikes of 5.0 in 0.4, {lease}"] for lease in ("10 ms", "100 ms")]
    rows = []
    for name, settings in VARIANTS.items():
        row = [name]
        for load in (short, long, pooled):
            runs = [play(settings, load, seed) for seed in seeds]
            row.append(share(mean(lambda run: run.goodput(BEFORE, BEFORE + FIRST), runs)))
            if load is short:
                row.append(seconds(mean(lambda run: run.quantile(0.5, BEFORE, BEFORE + FIRST), runs)))
        row += [percent(mean(Result.told_no, [play(settings, load, seed) for seed in seeds])) for load in harmless]
        rows.append(row)
    head = ["variant", "3 times, 10 ms, 1 s", "p50", "100 ms, 0.5 s", "30 ms, 30 on 5 servers"]
    return "One constant changed: goodput, then refused for nothing", [*head, *(load.name for load in harmless)], rows


def processor_table(seeds: range) -> Table:
    """What no policy can help."""
    rows = []
    for cost in (0.0, 0.0001, 0.0002, 0.0003, 0.0005):
        row = [f"{1e6 * cost:.0f} µs"]
        for multiple in (2.0, 3.0, 10.0):
            load = overload(multiple, seconds=FIRST, processor=cost)
            for policy in ("FIFO", "the gate"):
                runs = [play(policy, load, seed) for seed in seeds]
                row.append(share(mean(lambda run: run.goodput(BEFORE, BEFORE + FIRST), runs)))
        rows.append(row)
    head = ["each arrival and answer", *(f"{name}, {m:g} times" for m in (2.0, 3.0, 10.0) for name in ("FIFO", "gate"))]
    return "Goodput where the processor has work too: 10 ms, patience 1 s", head, rows


TABLES: dict[str, Callable[[range], Table]] = {
    "overload": overload_table,
    "fitting": fitting_table,
    "limits": limits_table,
    "variants": variants_table,
    "processor": processor_table,
}


def markdown(table: Table) -> str:
    """As it can stand in a page."""
    title, head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([f"{title}\n", *(f"| {' | '.join(line)} |" for line in lines), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulated", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=TABLES, help="one table")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each case; their mean is shown")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write the plots there instead")
    options = parser.parse_args(arguments)
    if options.plots:
        from .simulated_plots import draw

        draw(options.plots)
        return 0
    for name, table in TABLES.items():
        if options.only in (None, name):
            print(markdown(table(range(1, options.seeds + 1))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
