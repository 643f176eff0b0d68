"""Many clients for few connections: how long they wait, and how evenly.

Every client asks again as soon as it is answered, so the mean follows from the rate; the question is how far the
slowest are from it.
"""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING, Any

from benchmarks.load import wrk
from benchmarks.services.service import running
from benchmarks.study import Goal

if TYPE_CHECKING:
    from benchmarks.services.service import Loop
    from benchmarks.study import Bench

STUDY = "contention"
LOOPS: tuple[Loop, ...] = ("asyncio", "uvloop")
CROWDS: dict[int, dict[str, Any]] = {100: {}, 1000: {"queue_target": None}}
"""How many clients, and the settings of poolscope that are not its defaults.

A thousand clients that never stop are a queue that stands: each waits longer than the default ``queue_target``. By
default that is an overload, and most are refused at once so that the others need not wait. Here all shall be served.
"""

CANDIDATES = ("poolscope", "by hand")
SECONDS = {100: 3, 1000: 5}
"""Long enough that the slowest of them come to their end."""

TURNS = 2
"""How often both take turns in one round."""

PATIENCE = 30.0
"""Seconds a client waits, so that the slowest request is measured and not given up."""

FILES = 4096
"""Descriptors that a service with 1000 clients may have, and wrk."""


def case(clients: int, loop: Loop) -> str:
    """The name of a case."""
    return f"SELECT 1, {clients} clients, {loop}"


async def measure(bench: Bench) -> None:
    """Each crowd has services of its own in each round."""
    allow_files()
    for number in range(bench.rounds):
        for loop in LOOPS[:1] if bench.quick else LOOPS:
            for clients, settings in list(CROWDS.items())[: 1 if bench.quick else None]:
                await run_case(bench, number, clients, loop, {"poolscope": settings})


async def run_case(bench: Bench, number: int, clients: int, loop: Loop, settings: dict[str, dict[str, Any]]) -> None:
    """One round of one case."""
    name = case(clients, loop)
    async with contextlib.AsyncExitStack() as services:
        urls = {}
        for candidate in CANDIDATES:
            service = running(candidate, bench.dsn, loop=loop, **settings.get(candidate, {}))
            urls[candidate] = (await services.enter_async_context(service)).url + "/one"
            await wrk.warm_up(urls[candidate], [""])
        load = {"clients": clients, "seconds": SECONDS[clients], "timeout": PATIENCE}
        for turn in range(number * TURNS, (number + 1) * TURNS):
            for candidate in bench.in_turns(CANDIDATES, turn):
                run = {"study": STUDY, "case": name, "candidate": candidate, "number": turn}
                await wrk.measure(bench, urls[candidate], **run, **load)


def allow_files() -> None:
    """Raise the limit that the processes started from here inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < FILES:
        raise RuntimeError(f"1000 clients need {FILES} open files, and the limit is {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


def goals(clients: int) -> tuple[Goal, ...]:
    name = case(clients, "asyncio")
    return (
        Goal(STUDY, name, "poolscope", "p99", "at most", 0.2, against="by hand"),
        Goal(STUDY, name, "poolscope", "p99", "at most", 1.7, by="mean"),
        Goal(STUDY, name, "poolscope", "longest", "at most", 10.0, by="p50"),
        Goal(STUDY, name, "poolscope", "rate", "at least", 1.4, against="by hand"),
    )


GOALS = tuple(goal for clients in CROWDS for goal in goals(clients))
