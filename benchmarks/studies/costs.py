"""What the parts cost by themselves: a borrow, a hand-over, the middleware, memory, the import.

    python -m benchmarks.studies.costs                     every case once, in about half a minute
    python -m benchmarks.studies.costs --one CASE CANDIDATE    one run, as JSON

Each run is a process of its own, so that the candidates can take turns. Times are those of the fastest batch of a
run: what the machine does besides can only make one slower.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.services.inside import PATIENCE, ask, running, served, until
from benchmarks.study import Bench, Figures, Goal

from .memory import PLAIN, garbage, growth, memory_of_waiting

if TYPE_CHECKING:
    import random

    from aiohttp import web

STUDY = "costs"
OURS, AIOPG = "poolscope", "aiopg.Pool"

BATCHES, CYCLES = 8, 2_000
IDLE = (1, 10, 50)
WAITERS = (10, 1_000, 10_000)
LIMIT = 90.0
"""Seconds for one run."""

Cycles = Callable[[int], Awaitable[None]]


async def fastest(cycles: Cycles, batch: int = CYCLES) -> float:
    """Seconds for one cycle, in the fastest of some batches."""
    best = float("inf")
    await cycles(batch)
    for _ in range(BATCHES):
        begun = time.perf_counter()
        await cycles(batch)
        best = min(best, time.perf_counter() - begun)
        await asyncio.sleep(0)
    return best / batch


async def borrow_ours(idle: int, dsn: str) -> Figures:
    """``seconds``: the pool lends and takes back, as the middleware has it; ``block``: ``async with acquire()``."""
    from aiohttp_poolscope.connection import ScopedConnection

    async with running(dsn, idle) as scope:
        pool: Any = scope._run.pool
        db = ScopedConnection(pool)

        async def by_the_pool(cycles: int) -> None:
            for _ in range(cycles):
                if not pool.lend(db):
                    raise RuntimeError("there is an idle connection, and it is not lent")
                db._give_back()

        async def by_a_block(cycles: int) -> None:
            for _ in range(cycles):
                async with scope.acquire():
                    pass

        return {"seconds": await fastest(by_the_pool), "block": await fastest(by_a_block)}


async def borrow_aiopg(idle: int, dsn: str) -> Figures:
    """The same with ``acquire()`` and ``release()``, and with ``async with acquire()``."""
    import aiopg

    async with aiopg.create_pool(dsn, minsize=idle, maxsize=idle) as pool:

        async def by_hand(cycles: int) -> None:
            for _ in range(cycles):
                connection = await pool.acquire()
                await pool.release(connection)

        async def by_a_block(cycles: int) -> None:
            for _ in range(cycles):
                async with pool.acquire():
                    pass

        return {"seconds": await fastest(by_hand), "block": await fastest(by_a_block)}


async def hand_over(waiters: int, dsn: str) -> Figures:
    """``seconds`` for a connection to go from one task that gives it back at once to the next that waits.

    First come, first served (``queue_target=None``): with a target, the oldest of 10,000 would be refused.
    """
    settings = {"max_waiting": waiters, "queue_target": None, "acquire_timeout": PATIENCE}
    async with running(dsn, 1, **settings) as scope:
        ended = 0.0

        async def turn() -> None:
            nonlocal ended
            async with scope.acquire():
                pass
            ended = time.perf_counter()

        async def passes() -> float:
            holder = await scope.acquire()
            tasks = [asyncio.create_task(turn()) for _ in range(waiters)]
            await until(lambda: scope.stats().waiting == waiters)
            begun = time.perf_counter()
            holder.release()
            await asyncio.gather(*tasks)
            return ended - begun

        times = max(1, max(WAITERS) // waiters)
        batches = [sum([await passes() for _ in range(times)]) for _ in range(3)]
        return {"seconds": min(batches) / (times * waiters)}


async def through_middleware(kind: str, dsn: str) -> Figures:
    """``seconds`` around a handler that does nothing, for one real request that goes through again and again."""
    import aiopg
    from aiohttp import web

    import aiohttp_poolscope as poolscope

    app = web.Application()
    key = "db"
    found: Figures = {}
    nothing_said = web.Response()

    async def nothing(request: web.Request) -> web.Response:
        return nothing_said

    async def by_hand(request: web.Request, handler: Any) -> web.StreamResponse:
        async with pool.acquire() as connection:
            request[key] = connection
            response: web.StreamResponse = await handler(request)
            return response

    async def bare(request: web.Request, handler: Any) -> web.StreamResponse:
        request[key] = None
        response: web.StreamResponse = await handler(request)
        return response

    scope = poolscope.PoolScope(dsn, minsize=10, maxsize=10, processes=1)
    way: Any = {OURS: scope.middleware, "by hand": by_hand, "none": bare}[kind]

    async def handler(request: web.Request) -> web.Response:
        async def cycles(number: int) -> None:
            for _ in range(number):
                await way(request, nothing)
                del request[key]

        found["seconds"] = await fastest(cycles)
        return web.Response()

    app.router.add_get("/", handler)
    async with scope.running(), aiopg.create_pool(dsn, minsize=10, maxsize=10) as pool, served(app) as address:
        reader, writer = await asyncio.open_connection(*address)
        await ask(reader, writer)
        writer.close()
    return found


async def import_time(name: str, dsn: str) -> Figures:
    """``seconds`` to import a module behind aiohttp and aiopg, or these themselves; the fastest of some processes."""
    before, measured = ("aiohttp.web, aiopg", name) if name == "aiohttp_poolscope" else ("sys", "aiohttp.web, aiopg")
    code = f"import time, {before}; t = time.perf_counter(); import {measured}; print(time.perf_counter() - t)"
    compiled = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # by the first run: what is installed is, too
    runs = [
        subprocess.run([sys.executable, "-c", code], env=compiled, capture_output=True, check=True)  # noqa: ASYNC221
        for _ in range(3)
    ]
    return {"seconds": min(float(run.stdout) for run in runs)}


Measure = Callable[[str], Coroutine[Any, Any, Figures]]

BORROWS: dict[str, dict[str, Measure]] = {
    f"borrow and return, {idle} idle, {loop}": {OURS: partial(borrow_ours, idle), AIOPG: partial(borrow_aiopg, idle)}
    for idle, loop in (*((idle, "asyncio") for idle in IDLE), (10, "uvloop"))
}
REPEATED: dict[str, dict[str, Measure]] = {
    **BORROWS,
    "hand-over": {f"{waiters:,} waiters": partial(hand_over, waiters) for waiters in WAITERS},
    "middleware, no statement": {kind: partial(through_middleware, kind) for kind in (OURS, "by hand", "none")},
    "import": {name: partial(import_time, name) for name in ("aiohttp_poolscope", "aiohttp and aiopg")},
}
# Counted, not timed: the same in every round.
COUNTED: dict[str, dict[str, Measure]] = {
    "a request that waits": {kind: partial(memory_of_waiting, kind) for kind in (OURS, PLAIN)},
    "a million borrows": {OURS: growth},
    "left to the collector": {
        kind: partial(garbage, kind) for kind in ("a statement", "a transaction", "no statement", PLAIN)
    },
}
CASES = REPEATED | COUNTED

GOALS: tuple[Goal, ...] = (
    *(Goal(STUDY, case, OURS, "seconds", "at most", 0.1, against=AIOPG) for case in BORROWS if "asyncio" in case),
    Goal(STUDY, "hand-over", "10,000 waiters", "seconds", "at most", 1.5, against="10 waiters"),
    Goal(STUDY, "middleware, no statement", OURS, "seconds", "at most", 0.3, against="by hand"),
    Goal(STUDY, "import", "aiohttp_poolscope", "seconds", "at most", 0.4, against="aiohttp and aiopg"),
    Goal(STUDY, "a request that waits", OURS, "bytes", "at most", 2, against=PLAIN),
    Goal(STUDY, "a million borrows", OURS, "bytes", "at most", 0.01),
    *(Goal(STUDY, "left to the collector", kind, "objects", "at most", 1) for kind in ("a statement", "no statement")),
)


async def measure(bench: Bench) -> None:
    """Every case; only the borrows where it must be quick."""
    once = dataclasses.replace(bench, rounds=1)
    for case, candidates in CASES.items():
        if bench.quick and (case not in BORROWS or "uvloop" in case):
            continue
        taken = once if case in COUNTED else bench
        await taken.turns(STUDY, case, list(candidates), partial(run_one, bench.dsn, case))


async def run_one(dsn: str, case: str, candidate: str, _: random.Random) -> Figures:
    """One run, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __spec__.name, "--one", case, candidate, "--dsn", dsn),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        async with asyncio.timeout(LIMIT):
            said, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{case}, {candidate}: {errors.decode()[-2000:]}")
    figures: Figures = json.loads(said)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "CANDIDATE"))
    parser.add_argument("--dsn", help="a PostgreSQL (one of its own is started otherwise)")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.dsn is None:
            from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres

            options.dsn = stack.enter_context(EmbeddedPostgres()).dsn
        if options.one is not None:
            case, candidate = options.one
            if case.endswith("uvloop"):
                import uvloop as runner
            else:
                runner = asyncio  # type: ignore[assignment]
            print(json.dumps(runner.run(CASES[case][candidate](options.dsn))))
            return
        bench = Bench(options.dsn, rounds=options.rounds)
        asyncio.run(measure(bench))
        for sample in bench.samples:
            print(f"{sample.case:36}{sample.candidate:20}{json.dumps(sample.figures)}")
        for goal in GOALS:
            ratio = goal.ratio(bench.samples)
            if ratio is not None:
                print(f"{goal.name}: {ratio.median:.3g}, {goal.kind} {goal.bound:g}: {goal.met(ratio)}")


if __name__ == "__main__":
    main()
