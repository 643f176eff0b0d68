"""What a request costs when things grow: connections, waiting clients, open sockets, processes, a PgBouncer.

    python -m benchmarks.studies.growth [--rounds 3] [--case "pool size"]    a few minutes

Every service is a process of its own, all of a case are started before its first round, and take turns under wrk.
``cpu``: seconds of the service's processor time for each request, so that what the load takes does not count;
``rate``: requests per second, by wrk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.contrib.embedded import EmbeddedPostgres
from benchmarks.load import wrk
from benchmarks.services.inside import PATIENCE, descriptors
from benchmarks.services.service import START_LIMIT, STOP_LIMIT, Service
from benchmarks.study import Bench, Figures, Goal

if TYPE_CHECKING:
    import random

STUDY = "growth"
CLIENTS, CONNECTIONS, SECONDS = 8, 10, 2
CONNECTIONS_GROW = (10, 50, 100, 200)
WAITERS_GROW = (100, 1_000, 10_000)
ANSWERS = 10_000
"""How many requests are sent at once, again and again, until so many have been answered."""
SOCKETS_GROW = (100, 1_000, 5_000)
AT_ONCE = 50
"""Sockets that are opened at the same time."""

WORKERS_GROW = (1, 2, 4)
CLIENTS_OF_WORKERS = 32
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ASK, ANSWERED = b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n\r\n1"
TICKS = os.sysconf("SC_CLK_TCK")
IN_ENVIRONMENT = "GROWTH_SERVICE"
"""What gunicorn's workers are to serve: it starts them with an environment, and no arguments."""


def named(number: int, what: str) -> str:
    return f"{number:,} {what}"


def make_app(dsn: str, settings: dict[str, Any]) -> web.Application:
    """``/one`` runs SELECT 1; ``/spent`` tells the processor time of this process, and how often it did that."""
    served = 0

    async def one(request: web.Request) -> web.Response:
        nonlocal served
        served += 1
        return web.Response(text=str(await request["db"].fetchval("SELECT 1")))

    @poolscope.no_connection
    async def spent(request: web.Request) -> web.Response:
        return web.json_response([time.process_time(), served])

    app = web.Application()
    poolscope.setup(app, dsn, **settings)
    app.router.add_get("/one", one)
    app.router.add_get("/spent", spent)
    return app


def make_runner(dsn: str, settings: dict[str, Any]) -> web.AppRunner:
    descriptors()
    return web.AppRunner(make_app(dsn, settings), access_log=None, shutdown_timeout=0.5)


async def make_worker() -> web.AppRunner:
    """What each of gunicorn's workers serves."""
    return make_runner(**json.loads(os.environ[IN_ENVIRONMENT]))


async def serve(dsn: str, settings: dict[str, Any]) -> None:
    """What a service process does."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    runner = make_runner(dsn, settings)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(f"ready {runner.addresses[0][1]}", flush=True)
    await ended.wait()
    await runner.cleanup()


@contextlib.asynccontextmanager
async def process(command: list[str], announced: bytes, **options: Any) -> AsyncIterator[Service]:
    """Start a program that prints where it listens, behind ``announced``; it ends with the block."""
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=Path(__file__).parents[2],
        **options,
    )
    assert program.stdout is not None
    read: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(START_LIMIT):
            line = said = await program.stdout.readline()
            while announced not in line:
                line = await program.stdout.readline()
                said += line
                if not line:
                    raise RuntimeError(f"{command[0]} did not start: {said.decode()}")
        read = asyncio.create_task(program.stdout.read())
        yield Service(program, int(line.partition(announced)[2].split()[0]))
    finally:
        if program.returncode is None:
            program.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await program.wait()
        except TimeoutError:
            program.kill()
            await program.wait()
        if read is not None:
            await read


@contextlib.asynccontextmanager
async def running(dsn: str, connections: int = CONNECTIONS, **settings: Any) -> AsyncIterator[Service]:
    """A service of one process, warmed up."""
    settings |= {"minsize": connections, "maxsize": connections, "processes": 1}
    command = [__spec__.name, "--serve", dsn, "--settings", json.dumps(settings)]
    async with process(command, b"ready ") as service:
        await wrk.warm_up(service.url, ["/one"])
        yield service


@contextlib.asynccontextmanager
async def with_workers(dsn: str, workers: int) -> AsyncIterator[Service]:
    """A service of several processes: gunicorn and its workers."""
    settings = {"minsize": CONNECTIONS, "maxsize": CONNECTIONS, "processes": workers}
    environ = {**os.environ, IN_ENVIRONMENT: json.dumps({"dsn": dsn, "settings": settings})}
    command = ["gunicorn", "--workers", str(workers), "--worker-class", "aiohttp.GunicornWebWorker"]
    command += ["--graceful-timeout", "5", "--bind", "127.0.0.1:0", f"{__spec__.name}:make_worker"]
    async with process(command, b"Listening at: http://127.0.0.1:", env=environ) as service:
        for _ in range(4):  # its workers share the requests, and not evenly
            await wrk.warm_up(service.url, ["/one"], clients=CLIENTS * workers)
        yield service


async def spent(service: Service) -> tuple[float, int]:
    """Seconds of processor time so far, and requests served."""
    async with ClientSession() as session, session.get(f"{service.url}/spent") as response:
        cpu, served = await response.json()
        return cpu, served


async def loaded(service: Service) -> Figures:
    """Under wrk: the cost of a request in the middle of the run, when every client has connected."""
    async with asyncio.TaskGroup() as group:
        run = group.create_task(wrk.load(f"{service.url}/one", clients=CLIENTS, seconds=SECONDS))
        await asyncio.sleep(SECONDS * 0.2)
        before = await spent(service)
        await asyncio.sleep(SECONDS * 0.7)
        after = await spent(service)
        figures = await run
    return {"cpu": each(before, after), "rate": figures["rate"], "p99": figures["p99"]}


async def all_at_once(service: Service, clients: Sequence[Client]) -> Figures:
    """Every client asks before one is answered. (wrk cannot: it asks as soon as one of its clients is connected.)"""
    before = await spent(service)
    for _ in range(ANSWERS // len(clients)):
        await answered(clients)
    return {"cpu": each(before, await spent(service))}


async def answered(clients: Sequence[Client]) -> None:
    """Each of them asks, and then each is answered."""
    for _, writer in clients:
        writer.write(ASK)
    for reader, _ in clients:
        await reader.readuntil(ANSWERED)


def each(before: tuple[float, int], after: tuple[float, int]) -> float:
    """Processor time for each request in between."""
    return (after[0] - before[0]) / (after[1] - before[1])


async def loaded_workers(service: Service) -> Figures:
    """Under wrk: processor time of all workers, as the system counts it, in hundredths of a second."""
    before = used(service)
    figures = await wrk.load(f"{service.url}/one", clients=CLIENTS_OF_WORKERS, seconds=SECONDS)
    requests = figures["rate"] * SECONDS
    return {"cpu": (used(service) - before) / requests, "rate": figures["rate"], "p99": figures["p99"]}


def used(service: Service) -> float:
    """Processor time of a process' children in seconds."""
    pid = service.process.pid
    total = 0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        user, system = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
        total += int(user) + int(system)
    return total / TICKS


@contextlib.asynccontextmanager
async def sockets(service: Service, number: int) -> AsyncIterator[list[Client]]:
    """Clients that have been answered once, and stay connected."""
    clients: list[Client] = []
    try:
        while len(clients) < number:
            some = min(AT_ONCE, number - len(clients))
            opened = [asyncio.open_connection("127.0.0.1", service.port) for _ in range(some)]
            clients += await asyncio.gather(*opened)
            await answered(clients[-some:])
        yield clients
    finally:
        for _, writer in clients:
            writer.close()


Run = Callable[[], Coroutine[Any, Any, Figures]]


@dataclass
class Case:
    """Services that are up, and how each is loaded."""

    bench: Bench
    dsn: str
    stack: contextlib.AsyncExitStack
    runs: dict[str, Run] = field(default_factory=dict)

    async def start(self, service: contextlib.AbstractAsyncContextManager[Service]) -> Service:
        return await self.stack.enter_async_context(service)

    def leave_out(self, what: str, why: str) -> None:
        self.bench.notes.setdefault("left out", {})[f"{STUDY}: {what}"] = why

    async def pool_size(self) -> None:
        for number in CONNECTIONS_GROW:
            self.runs[named(number, "connections")] = partial(loaded, await self.start(running(self.dsn, number)))

    async def waiters(self) -> None:
        # First come, first served: with a target, the oldest of a queue this long would be refused.
        settings = {"max_waiting": max(WAITERS_GROW), "queue_target": None, "acquire_timeout": PATIENCE}
        service = await self.start(running(self.dsn, **settings))
        possible = [number for number in WAITERS_GROW if self.may_open(number, named(number, "requests"))]
        clients = await self.stack.enter_async_context(sockets(service, max(possible)))
        for number in possible:
            self.runs[named(number, "requests")] = partial(all_at_once, service, clients[:number])

    async def open_sockets(self) -> None:
        if not self.may_open(sum(SOCKETS_GROW), "open sockets"):
            return
        for number in SOCKETS_GROW:
            service = await self.start(running(self.dsn))
            await self.stack.enter_async_context(sockets(service, number))
            self.runs[named(number, "idle sockets")] = partial(loaded, service)

    def may_open(self, number: int, what: str) -> bool:
        possible = descriptors()
        if number + 100 > possible:
            self.leave_out(what, f"a process may have {possible} descriptors")
        return number + 100 <= possible

    async def workers(self) -> None:
        if importlib.util.find_spec("gunicorn") is None:
            self.leave_out("workers", "gunicorn is not installed")
            return
        for number in WORKERS_GROW:
            service = await self.start(with_workers(self.dsn, number))
            self.runs[named(number, "worker" if number == 1 else "workers")] = partial(loaded_workers, service)

    async def pgbouncer(self) -> None:
        try:
            from tests.kit.bouncer import PROGRAM, WANTED, PgBouncer
        except ImportError as error:
            self.leave_out("PgBouncer", str(error))
            return
        if PROGRAM is None:
            self.leave_out("PgBouncer", WANTED)
            return
        bouncer = self.stack.enter_context(PgBouncer(self.dsn, default_pool_size=CONNECTIONS))
        self.runs["direct"] = partial(loaded, await self.start(running(self.dsn)))
        self.runs["PgBouncer"] = partial(loaded, await self.start(running(bouncer.dsn, pgbouncer=True)))


CASES = {
    "pool size": Case.pool_size,
    "waiters": Case.waiters,
    "open sockets": Case.open_sockets,
    "workers": Case.workers,
    "PgBouncer": Case.pgbouncer,
}

# An idle connection or socket is in nobody's way; some of the bound is for the processor's caches. 10,000 requests at
# once are 60 MB that no cache holds: the hand-over itself is flat, which is a goal of costs.py.
GOALS: tuple[Goal, ...] = (
    Goal(STUDY, "pool size", "200 connections", "cpu", "at most", 1.2, against="10 connections"),
    Goal(STUDY, "waiters", "10,000 requests", "cpu", "at most", 2, against="100 requests"),
    Goal(STUDY, "open sockets", "5,000 idle sockets", "cpu", "at most", 1.3, against="100 idle sockets"),
)


async def measure(bench: Bench, only: str | None = None) -> None:
    """Every case; none where it must be quick."""
    if bench.quick:
        return
    connections = sum(CONNECTIONS_GROW) + 50
    with EmbeddedPostgres(settings={"max_connections": connections}) as server:
        for name, begin in CASES.items():
            if only in (None, name):
                async with contextlib.AsyncExitStack() as stack:
                    bench.tell(f"{STUDY}: {name}: starting")
                    case = Case(bench, server.dsn, stack)
                    await begin(case)
                    if case.runs:
                        await bench.turns(STUDY, name, list(case.runs), partial(run_one, case.runs))


async def run_one(runs: dict[str, Run], candidate: str, _: random.Random) -> Figures:
    return await runs[candidate]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", metavar="DSN", help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--case", choices=CASES)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve, options.settings))
        return
    bench = Bench("", rounds=options.rounds)
    asyncio.run(measure(bench, options.case))
    for sample in bench.samples:
        print(f"{sample.case:18}{sample.candidate:20}{json.dumps(sample.figures)}")
    for goal in GOALS:
        ratio = goal.ratio(bench.samples)
        if ratio is not None:
            print(f"{goal.name}: {ratio.median:.3g}, {goal.kind} {goal.bound:g}: {goal.met(ratio)}")
    print(json.dumps(bench.notes))


if __name__ == "__main__":
    main()
