"""The race that empties pools: thousands of clients that leave at random moments, among others that stay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from tests.conftest import Database, Serve, until
from tests.kit.clients import MOMENTS, ask, ask_and_leave, head, read_answer, reset

from .watch import Watch

if TYPE_CHECKING:
    from .conftest import Connect

REQUESTS = int(os.environ.get("POOLSCOPE_STORM", "1500"))
AT_A_TIME = 60
MAXSIZE = 4


async def plain(request: web.Request) -> web.Response:
    return web.Response(text=await request["db"].fetchval("SELECT %s", (token(request),)))


async def sleep(request: web.Request) -> web.Response:
    row = await request["db"].fetchrow("SELECT %s, pg_sleep(%s)", (token(request), 0.04))
    return web.Response(text=row[0])


async def transaction(request: web.Request) -> web.Response:
    async with request["db"].transaction() as tx:
        await entry(tx, request, 1)
        await tx.execute("SELECT pg_sleep(0.005)")
        await entry(tx, request, -1)
    return web.Response(text=token(request))


@poolscope.lazy
async def lazy(request: web.Request) -> web.Response:
    await asyncio.sleep(0.001)
    return await plain(request)


@poolscope.transactional
async def transactional(request: web.Request) -> web.Response:
    await entry(request["db"], request, 1)
    async with request["db"].transaction() as inner:
        await entry(inner, request, -1)
    return web.Response(text=token(request))


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    with contextlib.suppress(ConnectionError):  # the reader has gone: what was borrowed goes back all the same
        await response.prepare(request)
        async for (text,) in request["db"].stream("SELECT %s || repeat('.', 40) FROM generate_series(1, 60)",
                                                  (token(request),), size=20):  # fmt: skip
            await response.write(text.encode())
    return response


async def failing(request: web.Request) -> web.Response:
    with contextlib.suppress(psycopg2.errors.DivisionByZero):
        await request["db"].fetchval("SELECT 1 / 0")
    return await plain(request)


async def early(request: web.Request) -> web.Response:
    text = await request["db"].fetchval("SELECT %s", (token(request),))
    request["db"].release()
    await asyncio.sleep(0.005)
    assert text == await request["db"].fetchval("SELECT %s", (token(request),))
    return web.Response(text=text)


async def two(request: web.Request) -> web.Response:
    """With a connection of its own making."""
    request["db"].release()
    async with scope_of(request).acquire() as db:
        return web.Response(text=await db.fetchval("SELECT %s", (token(request),)))


HANDLERS: tuple[Any, ...] = (plain, sleep, transaction, lazy, transactional, stream, failing, early, two)
SCOPE = web.AppKey("scope", poolscope.PoolScope)


def scope_of(request: web.Request) -> poolscope.PoolScope:
    return request.config_dict[SCOPE]


def token(request: web.Request) -> str:
    return request.match_info["token"]


async def entry(db: Any, request: web.Request, amount: int) -> None:
    await db.execute("INSERT INTO ledger VALUES (%s, %s)", (token(request), amount))


@pytest.mark.parametrize("settings", [{"queue_target": None}, {"queue_target": None, "reset": "full"}, {}],
                         ids=["rollback", "full", "defaults"])  # fmt: skip
async def test_a_storm_of_aborted_requests_leaves_nothing_behind(
    dsn: str, database: Database, serve: Serve, *, cancellation: bool, settings: dict[str, Any], seed: int
) -> None:
    """Clients leave at any moment: whoever stays is answered, with his own answer, and everything comes back."""
    database.sql("CREATE TABLE ledger (token text, amount int)")
    count = REQUESTS if settings == {"queue_target": None} else REQUESTS // 3
    statuses = {200} if settings else {200, 503}  # a queue that stands may shed
    app = web.Application()
    scope = app[SCOPE] = poolscope.setup(
        app, dsn, maxsize=MAXSIZE, acquire_timeout=20, abandon_interval=0.2, **settings
    )
    for handler in HANDLERS:
        app.router.add_get(f"/{handler.__name__}/{{token}}", handler)
    moments: Counter[str] = Counter()
    answered: Counter[int] = Counter()

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(HANDLERS).__name__
        path = f"/{name}/t{number}"
        if rng.random() < 0.3:
            answer = await ask(served.port, path)
            answered[answer.status] += 1
            assert answer.status in statuses, (path, answer)
            if answer.status == 200:
                text = f"t{number}"
                wanted = text if name != "stream" else (text + "." * 40) * 60
                assert answer.body.decode() == wanted, (path, answer)
        else:
            moments[moment := rng.choice(MOMENTS)] += 1
            await ask_and_leave(served.port, path, moment, rng)

    async def clients() -> None:
        while numbers:
            await client(numbers.pop())

    numbers = list(range(count))
    async with serve(app, handler_cancellation=cancellation, access_log=None) as served:
        async with Watch(scope, database) as watch:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_A_TIME):
                    group.create_task(clients())
            await until(lambda: not served.runner.server.connections, "the end of all connections")  # type: ignore[union-attr]
            await watch.calm()
        stats = scope.stats()
        assert watch.samples > 5
        assert sum(stats.wait.counts[1:]) > count / 200  # there were not enough connections
        assert stats.client_gone + stats.cancelled > count / 200, stats  # it was a storm
        assert min(moments[moment] for moment in MOMENTS) > count / 20
        assert answered[200] > (count / 20 if settings else 0)
        assert database.sql("SELECT token FROM ledger GROUP BY token HAVING sum(amount) <> 0 OR count(*) <> 2") == []
        assert await served.get("/plain/after") == (200, "after")


async def test_who_has_left_the_queue_never_runs(
    dsn: str, serve: Serve, cancellation: bool, connect: Connect, seed: int
) -> None:
    """Of those who wait, exactly those who have not left are served."""
    rng = random.Random(seed)
    hold, ran = asyncio.Event(), set()

    async def handler(request: web.Request) -> web.Response:
        ran.add(token(request))
        await hold.wait()
        return web.Response(text=token(request))

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, queue_target=None)
    app.router.add_get("/{token}", handler)
    async with serve(app, handler_cancellation=cancellation) as served:
        first = asyncio.create_task(ask(served.port, "/first"))
        await until(lambda: ran == {"first"})
        waiting = [await connect(served, head(f"/t{number}", Connection="close")) for number in range(150)]
        await until(lambda: scope.stats().waiting == 150)
        staying = set(rng.sample(range(150), 50))
        for number, (_, writer) in enumerate(waiting):
            if number not in staying:
                rng.choice((reset, asyncio.StreamWriter.close))(writer)
        # The server knows that they have left; whether the queue does, depends on when it was swept.
        await until(lambda: len(served.runner.server.connections) == 51)  # type: ignore[union-attr]
        hold.set()
        assert (await first).status == 200
        for number in sorted(staying):
            answer = await read_answer(waiting[number][0])
            waiting[number][1].close()
            assert (answer.status, answer.body.decode()) == (200, f"t{number}")
        assert ran == {"first", *(f"t{number}" for number in staying)}
        stats = scope.stats()
        assert stats.client_gone + stats.cancelled == 100
        assert (stats.in_use, stats.waiting) == (0, 0)
