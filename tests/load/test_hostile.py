"""Clients with bad intentions or bad networks: nothing they hold back holds a connection, nobody else starves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import psycopg2
import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope.cli.arrivals import arrivals
from tests.conftest import Database, Serve, until
from tests.kit.clients import ask, head, read_answer, reset

from .watch import Watch

if TYPE_CHECKING:
    from .conftest import Connect

LARGE = 8 * 1024 * 1024
"""Bytes: more than the buffers of a socket's two ends."""


async def answer(request: web.Request) -> web.Response:
    return web.Response(text=str(await request["db"].fetchval("SELECT 42")))


async def test_bodies_that_dribble_in_hold_no_connection(
    dsn: str, database: Database, serve: Serve, cancellation: bool, connect: Connect
) -> None:
    """A hundred slow uploads on a pool of two: others are served meanwhile, and each upload is answered at its end."""

    async def upload(request: web.Request) -> web.Response:
        length = len(await request.read())
        return web.Response(text=str(await request["db"].fetchval("SELECT %s", (length,))))

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2)
    app.router.add_get("/", answer)
    app.router.add_post("/upload", upload)
    async with serve(app, handler_cancellation=cancellation) as served, Watch(scope, database) as watch:
        slow = [await connect(served, head("/upload", "POST", Content_Length="100")) for _ in range(100)]
        for dribbled in range(1, 21):
            for _, writer in slow:
                writer.write(b".")
            assert await served.get() == (200, "42")
            if dribbled > 1:
                await until(lambda: len(served.runner.server.connections) == 101)  # type: ignore[union-attr]
            assert scope.leases() == ()
        assert watch.most_in_use <= 1
        assert watch.most_waiting == 0
        for number, (reader, writer) in enumerate(slow):
            if number % 2:
                reset(writer)
            else:
                writer.write(b"." * 80)
                got = await read_answer(reader)
                assert (got.status, got.body) == (200, b"100")
                writer.close()
        await watch.calm()


@pytest.mark.parametrize("body", ["response", "stream after release"])
async def test_readers_that_do_not_read_hold_no_connection(
    dsn: str, database: Database, serve: Serve, body: str, connect: Connect
) -> None:
    """Twenty answers stuck in full sockets, a pool of two: others are served meanwhile."""
    sending = 0

    async def large(request: web.Request) -> web.StreamResponse:
        nonlocal sending
        size = await request["db"].fetchval("SELECT %s", (LARGE,))
        sending += 1
        if body == "response":
            return web.Response(body=bytes(size))
        request["db"].release()
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        await response.write(bytes(size))
        return response

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2)
    app.router.add_get("/", answer)
    app.router.add_get("/large", large)
    async with serve(app) as served, Watch(scope, database) as watch:
        stuck = [await connect(served, head("/large")) for _ in range(20)]
        await until(lambda: sending == 20 and scope.stats().in_use == 0)
        for _ in range(20):
            assert await served.get() == (200, "42")
        assert scope.leases() == ()
        got = await read_answer(stuck[0][0])
        assert (got.status, len(got.body)) == (200, LARGE)
        for _, writer in stuck:
            reset(writer)
        await watch.calm()


async def test_half_closed_sockets_leave_nothing_behind(
    dsn: str, database: Database, serve: Serve, cancellation: bool, connect: Connect
) -> None:
    """Clients that send FIN behind their request, and go on listening, get an answer or an end, and hold nothing."""

    async def slow(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(0.02)")
        return web.Response(text="42")

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=2, queue_target=None)
    app.router.add_get("/", answer)
    app.router.add_get("/slow", slow)
    async with serve(app, handler_cancellation=cancellation) as served, Watch(scope, database) as watch:
        clients = [await connect(served, head("/slow")) for _ in range(60)]
        for _, writer in clients:
            writer.write_eof()
        answers = await asyncio.gather(*(read_answer(reader) for reader, _ in clients))
        assert {got.status for got in answers} <= {0, 200}
        assert await served.get() == (200, "42")
        for _, writer in clients:
            writer.close()
        await watch.calm()


async def test_pipelined_requests_are_answered_in_order(
    dsn: str, database: Database, serve: Serve, cancellation: bool, connect: Connect
) -> None:
    """Thirty requests in one packet on each of ten sockets: each its own answer, one connection a socket at most."""
    together: Counter[str] = Counter()

    async def echo(request: web.Request) -> web.Response:
        who = request.match_info["client"]
        together[who] += 1
        assert together[who] == 1
        text = await request["db"].fetchval("SELECT %s", (request.match_info["number"],))
        together[who] -= 1
        return web.Response(text=text)

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=4, queue_target=None)
    app.router.add_get("/{client}/{number}", echo)
    async with serve(app, handler_cancellation=cancellation) as served, Watch(scope, database) as watch:
        clients = [
            await connect(served, b"".join(head(f"/{client}/{number}") for number in range(30))) for client in range(10)
        ]
        for client, (reader, writer) in enumerate(clients):
            for number in range(30 if client else 3):
                got = await read_answer(reader)
                assert (got.status, got.body) == (200, str(number).encode())
            writer.close()  # the first leaves with 27 requests of his under way
        await watch.calm()


async def test_a_flood_is_refused_at_once(dsn: str, database: Database, serve: Serve, cancellation: bool) -> None:
    """Of three hundred requests on a stuck pool of two with room for five, 293 hear 503 while the others wait."""
    hold = asyncio.Event()

    async def stuck(request: web.Request) -> web.Response:
        await hold.wait()
        return await answer(request)

    app = web.Application()
    scope = poolscope.setup(app, dsn, minsize=2, maxsize=2, max_waiting=5, queue_target=None, acquire_timeout=60)
    app.router.add_get("/", stuck)
    async with serve(app, handler_cancellation=cancellation) as served, Watch(scope, database) as watch:
        flood = [asyncio.create_task(ask(served.port, "/")) for _ in range(300)]
        await until(lambda: sum(task.done() for task in flood) == 293, "the refusal of 293")
        assert not hold.is_set()
        stats = scope.stats()
        assert (stats.in_use, stats.waiting, stats.refused) == (2, 5, 293)
        for task in flood:
            if task.done():
                got = task.result()
                assert got.status == 503
                assert int(got.headers["retry-after"]) >= 1
                assert json.loads(got.body)["code"] == "queue-full", got
        hold.set()
        await asyncio.wait(flood)
        assert Counter(task.result().status for task in flood) == {200: 7, 503: 293}
        await watch.calm()


async def test_an_overload_is_over_when_it_is_over(dsn: str, database: Database, serve: Serve, seed: int) -> None:
    """Three times the capacity for two seconds: some are served in time, and all who come right after."""
    rng = random.Random(seed)
    lease, maxsize, patience, duration = 0.02, 2, 1.0, 2.0
    capacity = maxsize / lease
    in_time: Counter[int] = Counter()

    async def work(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(%s)", (lease,))
        return web.Response(text="42")

    async def impatient() -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(patience):
                in_time[(await ask(served.port, "/")).status] += 1

    app = web.Application()
    scope = poolscope.setup(app, dsn, minsize=maxsize, maxsize=maxsize)
    app.router.add_get("/", work)
    async with serve(app, access_log=None) as served, Watch(scope, database) as watch:
        begun = time.monotonic()
        clients = [asyncio.create_task(impatient()) async for _ in arrivals(3 * capacity, rng, duration)]
        took = time.monotonic() - begun
        after = []
        for _ in range(20):
            after.append(asyncio.create_task(ask(served.port, "/")))
            await asyncio.sleep(2 / capacity)
        assert [(await each).status for each in after] == [200] * 20
        await asyncio.wait(clients)
        # Not of the time it took: where the machine has other work, clients come later, too, and work takes longer.
        assert in_time[200] > capacity * duration * 0.25, (in_time, took)
        assert in_time[503] > 0  # the others have heard so, and not waited for nothing
        await watch.calm()
    print(len(clients), took, dict(in_time), in_time[200] / took / capacity)


@pytest.mark.usefixtures("many_descriptors")
async def test_a_socket_for_every_waiter_and_more(dsn: str, serve: Serve, database: Database, connect: Connect) -> None:
    """Above a thousand open sockets, statements and their errors work as ever."""

    async def failing(request: web.Request) -> web.Response:
        try:
            await request["db"].fetchval("SELECT 1 / 0")
        except psycopg2.errors.DivisionByZero:  # the kind that aiopg's select() could never deliver
            return web.Response(text="failed")
        raise AssertionError

    app = web.Application()
    scope = poolscope.setup(app, dsn, minsize=0, maxsize=3, connect_at_start=False)
    app.router.add_get("/failing", failing)
    app.router.add_get("/", answer)
    async with serve(app) as served:
        idle = [await connect(served, b"GET") for _ in range(550)]
        await until(lambda: len(served.runner.server.connections) == 550)  # type: ignore[union-attr]
        assert idle[-1][1].get_extra_info("socket").fileno() > 1023
        assert await served.get("/failing") == (200, "failed")
        assert scope._run is not None
        assert [slot.link.raw.fileno() > 1023 for slot in scope._run.pool.gate.slots] == [True]
        assert await served.get() == (200, "42")
