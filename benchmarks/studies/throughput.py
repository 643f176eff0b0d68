"""How many requests a second: the package, the middleware written by hand, and what other libraries do.

``no pool`` and ``psycopg2 polling`` have a connection for each client, so they play only where clients are few.
``asyncpg, no reset`` is information: how much of the difference is the query that resets a session.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from benchmarks.load import wrk
from benchmarks.services.candidates import CANDIDATES
from benchmarks.services.service import running
from benchmarks.study import Goal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.services.service import Loop
    from benchmarks.study import Bench

STUDY = "throughput"
LOOPS: tuple[Loop, ...] = ("asyncio", "uvloop")
ROUTES = {"SELECT 1": "/one", "20 rows": "/rows", "transfer": "/transfer"}
FEW, MANY = 8, 100
"""Clients: fewer than connections, and ten times as many."""

SECONDS = 1

TURNS = 3
"""How often all take turns in one round, in the cases that have goals: what a processor does in a second varies."""

OWN_CONNECTIONS = ("no pool", "psycopg2 polling")
QUICK = ("poolscope", "by hand", "no pool", "asyncpg")
QUICK_ROUTE = "SELECT 1"


def case(route: str, clients: int, loop: Loop) -> str:
    """The name of a case."""
    return f"{route}, {clients} clients, {loop}"


def players(route: str, clients: int) -> list[str]:
    """Who takes part in a case."""
    left_out = [*(OWN_CONNECTIONS if clients > FEW else ()), *(("asyncpg, no reset",) if route != QUICK_ROUTE else ())]
    return [candidate for candidate in CANDIDATES if candidate not in left_out]


async def measure(bench: Bench) -> None:
    """Start all services of a loop at once, and let them take turns in every case."""
    routes = [QUICK_ROUTE] if bench.quick else list(ROUTES)
    for number in range(bench.rounds):
        cases = [(route, FEW) for route in routes]
        if not bench.quick:  # what has no goal is measured less often
            cases += [(route, MANY) for route in routes if number == 0 or route == QUICK_ROUTE]
        for loop in LOOPS:
            bench.tell(f"{STUDY}: {loop}: starting the services, round {number + 1} of {bench.rounds}")
            async with contextlib.AsyncExitStack() as services:
                urls = {}
                for candidate in QUICK if bench.quick else CANDIDATES:
                    service = await services.enter_async_context(running(candidate, bench.dsn, loop=loop))
                    urls[candidate] = service.url
                await warm_up(urls, [ROUTES[route] for route in routes])
                for route, clients in cases:
                    playing = [candidate for candidate in players(route, clients) if candidate in urls]
                    for turn in range(turns := TURNS if (route, clients) == (QUICK_ROUTE, FEW) else 1):
                        await run_case(bench, number * turns + turn, (route, clients, loop), playing, urls)


async def warm_up(urls: dict[str, str], paths: Sequence[str]) -> None:
    """Have every service work a little, and see that all of them say the same."""
    answers = {candidate: await wrk.warm_up(url, paths) for candidate, url in urls.items()}
    first = next(iter(answers.values()))
    for candidate, found in answers.items():
        if found != first:
            raise RuntimeError(f"{candidate} answers {found}, others {first}")


async def run_case(
    bench: Bench, number: int, what: tuple[str, int, Loop], playing: Sequence[str], urls: dict[str, str]
) -> None:
    """One round of one case."""
    route, clients, _ = what
    for candidate in bench.in_turns(playing, number):
        run = {"study": STUDY, "case": case(*what), "candidate": candidate, "number": number}
        await wrk.measure(bench, urls[candidate] + ROUTES[route], **run, clients=clients, seconds=SECONDS)


def goal(loop: Loop, against: str, bound: float) -> Goal:
    return Goal(STUDY, case("SELECT 1", FEW, loop), "poolscope", "rate", "at least", bound, against=against)


GOALS = (
    goal("asyncio", "by hand", 1.4),
    goal("uvloop", "by hand", 1.2),
    goal("asyncio", "no pool", 1.0),
    goal("uvloop", "no pool", 1.0),
    goal("asyncio", "asyncpg", 1.3),
    goal("asyncio", "psycopg_pool", 1.3),
    goal("asyncio", "psycopg2 polling", 0.85),
)
