"""Four facts: the ten-line middleware that one writes by hand with aiopg, and this package, side by side.

    python -m benchmarks.by_hand.facts          a table, in less than 90 seconds
    python -m benchmarks.by_hand.facts --json   every single run

The PostgreSQL is real and its own; the servers and the load are processes that talk over TCP. Both candidates take
turns, in changing order, so that whatever else the machine does hits both. What is random comes from ``--seed``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import random
import signal
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiopg
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.cli.arrivals import arrivals
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from benchmarks.load.keepalive import Server

BY_HAND, PACKAGE = "by hand", "poolscope"

CONNECTIONS = 10
QUERY = 0.1
"""Seconds a query sleeps in the server: long enough that the connections are scarce, and not the processor."""

CAPACITY = CONNECTIONS / QUERY
OVERLOAD, AFTERWARDS = 2.5, 0.45
"""Requests per second, as parts of the capacity."""

PATIENCE = 1.0
"""Seconds after which a client of the overload gives up."""

WAITING = 20
WATCHED = 2.0
"""Seconds that those who wait for a connection are watched."""

STATEMENT_TIMEOUT = 0.5
SHUTDOWN_TIMEOUT, DRAIN_GRACE, EXIT_LIMIT = 2.0, 1.0, 6.0

Run = dict[str, Any]


def by_hand(dsn: str) -> web.Application:
    """A pool in a cleanup context, and a middleware that gives each request a connection in an ``async with``."""
    app = web.Application()
    pool_key = web.AppKey("pool", aiopg.Pool)
    db_key = web.RequestKey("db", aiopg.Connection)

    async def hold_pool(app: web.Application) -> AsyncIterator[None]:
        async with aiopg.create_pool(dsn, minsize=CONNECTIONS, maxsize=CONNECTIONS) as pool:
            app[pool_key] = pool
            yield

    @web.middleware
    async def with_connection(request: web.Request, handler: Any) -> web.StreamResponse:
        async with request.app[pool_key].acquire() as connection:
            request[db_key] = connection
            response: web.StreamResponse = await handler(request)
            return response

    async def sleep(request: web.Request) -> web.Response:
        async with request[db_key].cursor() as cursor:
            await cursor.execute("SELECT pg_sleep(%s)", (request.query["seconds"],))
        return web.Response(text="done")

    app.middlewares.append(with_connection)
    app.cleanup_ctx.append(hold_pool)
    app.router.add_get("/sleep", sleep)
    return app


def with_package(dsn: str, **settings: Any) -> web.Application:
    """The same service."""
    app = web.Application()
    poolscope.setup(app, dsn, minsize=CONNECTIONS, maxsize=CONNECTIONS, **settings)

    async def sleep(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(%s)", (request.query["seconds"],))
        return web.Response(text="done")

    app.router.add_get("/sleep", sleep)
    return app


def serve(candidate: str, dsn: str, port: int, options: dict[str, Any]) -> None:
    """What a server process does."""
    settings = options.pop("settings", {})
    limit = options.pop("statement_timeout", 30.0)
    if candidate == PACKAGE:
        app = with_package(dsn, statement_timeout=limit, **settings)
    else:
        app = by_hand(f"{dsn}&options=-c%20statement_timeout%3D{limit * 1000:.0f}")
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, **options)


@contextlib.asynccontextmanager
async def running(candidate: str, dsn: str, **options: Any) -> AsyncIterator[Server]:
    """A server process that answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", __spec__.name, "--serve", candidate, dsn, str(port), json.dumps(options)]
    process = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    )
    server = Server(process, port)
    try:
        end = time.monotonic() + 20
        while (await server.ask(0, 1))[0] != "200":
            if time.monotonic() > end or process.returncode is not None:
                raise RuntimeError(f"the service {candidate!r} did not start: {' '.join(command)}")
            await asyncio.sleep(0.05)
        yield server
    finally:
        for wire in server.free:
            wire.transport.abort()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def abandoned(candidate: str, dsn: str, _rng: random.Random) -> Run:
    """Every connection is in a query and others wait; then the clients of those queries leave."""
    async with running(candidate, dsn, handler_cancellation=True) as server:
        holding = [asyncio.create_task(server.ask(60, 60)) for _ in range(CONNECTIONS)]
        await asyncio.sleep(0.5)
        waiting = [asyncio.create_task(server.ask(0, 0.5 + WATCHED)) for _ in range(WAITING)]
        await asyncio.sleep(0.5)
        for task in holding:
            task.cancel()
        left = time.monotonic()
        served = 0
        last = None
        for each in asyncio.as_completed(waiting):
            if (await each)[0] == "200":
                served += 1
                last = time.monotonic() - left
    return {"answered": served, "last_after": last}


async def overload(candidate: str, dsn: str, rng: random.Random) -> Run:
    """More requests than can be served, from clients that give up; then less than half of what can be served."""
    async with running(candidate, dsn) as server:
        during = await open_loop(server, OVERLOAD * CAPACITY, 4.0, rng)
        after = await open_loop(server, AFTERWARDS * CAPACITY, 2.5, rng)
    return {"during": during, "after": after}


async def open_loop(server: Server, rate: float, seconds: float, rng: random.Random) -> Run:
    """Requests at random moments, whether or not the earlier ones have been answered."""
    requests: list[asyncio.Task[tuple[str, float]]] = []
    late: list[float] = []
    loop = asyncio.get_running_loop()
    async for due in arrivals(rate, rng, seconds):
        late.append(loop.time() - due)
        requests.append(asyncio.create_task(server.ask(QUERY, PATIENCE)))
    answers = await asyncio.gather(*requests)
    served = [took for said, took in answers if said == "200"]
    return {
        "asked_per_second": len(requests) / seconds,
        "answered_per_second": len(served) / seconds,
        "median_seconds": statistics.median(served) if served else None,
        "answers": {said: sum(each == said for each, _ in answers) for said in sorted({said for said, _ in answers})},
        "load_late_seconds": statistics.fmean(late),
    }


async def slow_query(candidate: str, dsn: str, _rng: random.Random) -> Run:
    """A query that runs into PostgreSQL's statement_timeout."""
    async with running(candidate, dsn, statement_timeout=STATEMENT_TIMEOUT) as server:
        said, after = await server.ask(60, 10)
    return {"client_sees": said, "after": after}


async def shutdown(candidate: str, dsn: str, _rng: random.Random) -> Run:
    """SIGTERM while a handler is in a query that does not end."""
    settings = {"drain_grace": DRAIN_GRACE} if candidate == PACKAGE else {}
    async with running(candidate, dsn, shutdown_timeout=SHUTDOWN_TIMEOUT, settings=settings) as server:
        stuck = asyncio.create_task(server.ask(600, 600))
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.process.wait(), EXIT_LIMIT)
        took = time.monotonic() - begun
        status = server.process.returncode
        stuck.cancel()
    return {"exited_after": None if status is None else took, "exit_status": status}


Fact = Callable[[str, str, random.Random], Coroutine[Any, Any, Run]]
FACTS: dict[str, Fact] = {each.__name__: each for each in (abandoned, overload, slow_query, shutdown)}


def spread(values: list[float | None], unit: str = "", none: str = "never") -> str:
    """One number, or the smallest and the largest."""
    known = [value for value in values if value is not None]
    shown = list(dict.fromkeys(f"{value:.2g}" if 0 < value < 10 else f"{value:.0f}" for value in sorted(known)))
    text = f"{shown[0]}-{shown[-1]}" if len(shown) > 1 else "".join(shown)
    parts = [f"{text}{unit}"] * bool(known) + [none] * (len(known) < len(values))
    return " or ".join(parts)


def rows(runs: dict[str, dict[str, list[Run]]]) -> list[tuple[str, ...]]:
    """The table: what, by hand, with the package."""

    def both(fact: str, show: Callable[[list[Run]], str]) -> list[str]:
        return [show(runs[fact][candidate]) for candidate in (BY_HAND, PACKAGE)] if fact in runs else ["", ""]

    def in_time(run: Run) -> float:
        return round(100 * run["after"]["answered_per_second"] / run["after"]["asked_per_second"])

    still = f"still running after {EXIT_LIMIT:g} s"
    table = [
        (
            "abandoned",
            f"{CONNECTIONS} clients leave their query, {WAITING} wait: answered within {WATCHED:g} s",
            *both("abandoned", lambda found: spread([run["answered"] for run in found])),
        ),
        (
            "abandoned",
            "  ... the last of them after",
            *both("abandoned", lambda found: spread([run["last_after"] for run in found], " s")),
        ),
        (
            "overload",
            f"overload, {OVERLOAD * CAPACITY:.0f}/s asked of {CAPACITY:.0f}/s: answered in time",
            *both("overload", lambda found: spread([run["during"]["answered_per_second"] for run in found], "/s")),
        ),
        (
            "overload",
            f"  ... and once it has fallen to {AFTERWARDS * CAPACITY:.0f}/s: answered in time",
            *both("overload", lambda found: spread([in_time(run) for run in found], " %")),
        ),
        (
            "slow_query",
            f"query beyond statement_timeout ({STATEMENT_TIMEOUT:g} s): the client sees",
            *both("slow_query", lambda found: " or ".join(sorted({run["client_sees"] for run in found}))),
        ),
        (
            "shutdown",
            f"SIGTERM, a handler stuck in a query (shutdown_timeout {SHUTDOWN_TIMEOUT:g} s): exit after",
            *both("shutdown", lambda found: spread([run["exited_after"] for run in found], " s", still)),
        ),
    ]
    return [row[1:] for row in table if row[0] in runs]


def tell(progress: str) -> None:
    """What is being measured, to whoever watches."""
    if sys.stderr.isatty():
        print(progress.ljust(60), end="\r", file=sys.stderr)


async def measure(names: list[str], rounds: int, seed: int) -> dict[str, Any]:
    runs: dict[str, dict[str, list[Run]]] = {name: {BY_HAND: [], PACKAGE: []} for name in names}
    with EmbeddedPostgres(settings={"max_connections": 100}) as server:
        for number in range(rounds):
            for name in names:
                for candidate in (BY_HAND, PACKAGE) if number % 2 == 0 else (PACKAGE, BY_HAND):
                    tell(f"round {number + 1} of {rounds}: {name}, {candidate}")
                    rng = random.Random(f"{seed} {number} {name}")
                    runs[name][candidate].append(await FACTS[name](candidate, server.dsn, rng))
        tell("")
        versions = {"Python": platform.python_version(), "PostgreSQL": server.version}
    versions |= {name: importlib.metadata.version(name) for name in ("aiohttp", "aiopg")}
    return {"versions": versions, "machine": f"{platform.machine()}, {os.cpu_count()} processors", "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the ten hand-written lines against this package.")
    parser.add_argument("facts", nargs="*", metavar="fact", help=f"{', '.join(FACTS)} (all)")
    parser.add_argument("--rounds", type=int, default=2, help="how often (2)")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments at which requests come (1)")
    parser.add_argument("--json", action="store_true", help="print every run as JSON")
    options = parser.parse_args()
    if unknown := set(options.facts) - FACTS.keys():
        parser.error(f"no such fact: {', '.join(sorted(unknown))}")
    found = asyncio.run(measure(options.facts or list(FACTS), options.rounds, options.seed))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    table = [("", BY_HAND, PACKAGE), *rows(found["runs"])]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{', '.join(f'{name} {version}' for name, version in found['versions'].items())}; {found['machine']}")
    loads = [run["during"]["load_late_seconds"] for runs in found["runs"].get("overload", {}).values() for run in runs]
    if max(loads, default=0.0) > 0.05:
        print("The machine was too busy for the load to come on time: measure overload again.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5]))
    else:
        main()
