"""The load patterns that the tables and the plots show."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from .world import Draw, Load

BEFORE = 2.0
"""Seconds of calm before an overload, so that the gate knows its leases."""

FIRST = 4.0
"""Seconds from the beginning of an overload in which its goodput is taken."""

AFTER = 5.0
"""Seconds of calm after it."""


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
