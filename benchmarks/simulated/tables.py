"""The tables of docs/overload.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from aiohttp_poolscope.gate import Overload

from .loads import AFTER, BEFORE, FIRST, fitting, limits, overload, overloads
from .policies import FOR_EVER, POLICIES, UntilYoung, play
from .world import Result

Table = tuple[str, Sequence[str], list[list[str]]]

VARIANTS: dict[str, Callable[[], Overload]] = {
    **{f"queue_target {target:g}": partial(Overload, target) for target in (0.02, 0.05, 0.1, 0.2, 0.5)},
    **{f"normal: {leases} leases": partial(Overload, normal_wait_in_leases=leases) for leases in (1, 2, 3, 4, 6, 8)},
    **{f"late for {again:g} times that": partial(Overload, stands_after=again) for again in (0.0, 0.5, 1.0, 2.0)},
    **{f"{count} gave up": partial(Overload, given_up=count) for count in (1, 2, 10)},
    "who gives up is not heeded": partial(Overload, given_up=FOR_EVER),
    **{f"a crowd: {room} for each connection": partial(Overload, crowd_in_leases=room) for room in (1, 2, 4, 10)},
    "a crowd makes no room": partial(Overload, crowd_in_leases=FOR_EVER),
    "stands until the oldest is young": UntilYoung,
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
    ways: dict[str, str | Callable[[], Overload]] = {
        "FIFO": "FIFO",
        "newest first": "newest first",
        "the gate": "the gate",
        "the gate, unheeding": VARIANTS["who gives up is not heeded"],
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
    for name, policy in VARIANTS.items():
        row = [name]
        for load in (short, long, pooled):
            runs = [play(policy, load, seed) for seed in seeds]
            row.append(share(mean(lambda run: run.goodput(BEFORE, BEFORE + FIRST), runs)))
            if load is short:
                row.append(seconds(mean(lambda run: run.quantile(0.5, BEFORE, BEFORE + FIRST), runs)))
        row += [percent(mean(Result.told_no, [play(policy, load, seed) for seed in seeds])) for load in harmless]
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
