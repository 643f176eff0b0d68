"""What comes at a bad moment: a stray task at the end of a request, expire() in the middle, waits that never stop."""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import logs
from aiohttp_poolscope.connection import ScopedConnection
from aiohttp_poolscope.driver import IDLE
from aiohttp_poolscope.errors import PoolExhausted
from aiohttp_poolscope.pool import housekeeper
from tests.conftest import DEADLINE, Database, Serve, until
from tests.kit import clients

PID = "SELECT pg_backend_pid()"


async def test_a_stray_task_on_raw(dsn: str, serve: Serve) -> None:
    """A task left behind with a statement on raw gets an error at the end of the request; the pool is whole."""
    stray: list[asyncio.Task[None]] = []

    async def handler(request: web.Request) -> web.Response:
        db = request["db"]

        async def run() -> None:
            cursor = await db.raw.cursor()
            await cursor.execute("SELECT pg_sleep(30)")

        stray.append(asyncio.ensure_future(run()))
        await until(lambda: db._link.busy, "its statement")
        return web.Response()

    async def other(request: web.Request) -> web.Response:
        return web.Response(text=str(await request["db"].fetchval("SELECT 42")))

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    app.router.add_get("/other", other)
    async with serve(app) as served:
        assert await served.status() == 200
        await until(stray[0].done, "the end of the task")
        assert stray[0].cancelled() or stray[0].exception() is not None
        assert await served.get("/other") == (200, "42")
        assert (scope.stats().in_use, scope.stats().repairing, scope.stats().abandoned) == (0, 0, 1)


async def test_a_stray_task_on_raw_in_its_last_tick(make_scope: Any) -> None:
    """Released in the tick in which a stray task's result is there and not yet fetched, a connection is not clean."""
    async with make_scope(maxsize=1) as scope:
        db = await scope.acquire()
        link = db._link
        cursor = await db.raw.cursor()
        stray = asyncio.ensure_future(cursor.execute("SELECT pg_sleep(0.1)"))
        await asyncio.sleep(0)
        end = time.monotonic() + DEADLINE
        while not link.aio._waiter.done():
            assert time.monotonic() < end
            await asyncio.sleep(0)
        assert link.status == IDLE
        db.release()
        assert await scope.fetchval("SELECT 42") == 42
        await asyncio.wait([stray])
        assert scope._run.pool.gate.violations() == []


async def test_expire_while_a_connection_is_being_opened(make_scope: Any) -> None:
    """A connection that was being opened when expire() was called is replaced when it first comes back."""
    inside, go_on = asyncio.Event(), asyncio.Event()
    pids: list[int] = []

    async def on_connect(db: Any) -> None:
        pids.append(await db.fetchval(PID))
        if len(pids) == 2:
            inside.set()
            await go_on.wait()

    async with make_scope(minsize=1, maxsize=2, on_connect=on_connect) as scope, scope.acquire():
        second = asyncio.ensure_future(scope.fetchval(PID))
        await inside.wait()
        scope.expire()
        go_on.set()
        assert await second == pids[1]
        assert await scope.fetchval(PID) not in pids[:2]


async def test_expire_while_a_connection_is_handed_over(make_scope: Any) -> None:
    """A connection whose waiter is cancelled in the tick in which expire() is called is not lent again."""
    async with make_scope(maxsize=1) as scope:
        first = await scope.acquire()
        old = await first.fetchval(PID)
        waiter = asyncio.ensure_future(scope.fetchval(PID))
        await until(lambda: scope.stats().waiting, "its place in the queue")
        first.release()
        scope.expire()
        waiter.cancel()
        await asyncio.wait([waiter])
        assert waiter.cancelled()
        assert await scope.fetchval(PID) != old


async def test_waits_that_come_and_go_do_not_stop_the_housekeeper(
    make_scope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short waits, one soon after the other, do not keep the housekeeper from what it does once a second."""
    monkeypatch.setattr(housekeeper, "CALM", 0.2)
    async with make_scope(minsize=2, maxsize=2, leak_threshold=0.1) as scope, scope.acquire():
        end = time.monotonic() + DEADLINE
        while not scope.stats().leaked:
            assert time.monotonic() < end, "the lease was never looked at"
            first = await scope.acquire()
            waiter = asyncio.ensure_future(scope.acquire()._borrow())
            await asyncio.sleep(0)
            first.release()  # before the housekeeper has seen the wait
            (await waiter).release()
            await asyncio.sleep(0.005)


async def test_cancel_abandoned_leaves_background_tasks_alone(dsn: str, serve: Serve) -> None:
    """A task that outlives its handler is not cancelled when the client has left, having had its answer."""
    go_on = asyncio.Event()
    background: list[asyncio.Task[int]] = []
    requests: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        holding = asyncio.Event()

        async def later() -> int:
            async with scope.acquire() as db:
                holding.set()
                await go_on.wait()
                return int(await db.fetchval("SELECT 42"))

        background.append(asyncio.ensure_future(later()))
        requests.append(request)
        await holding.wait()
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, cancel_abandoned=True)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status("/", headers={"Connection": "close"}) == 200
        await until(lambda: requests[0].transport is None, "the end of its connection")
        scope._run._housekeeper.sweep(time.monotonic())
        go_on.set()
        assert await background[0] == 42


async def test_cancel_abandoned_cancels_once(dsn: str, serve: Serve) -> None:
    """The handler of a GET whose client has left is cancelled once, and can clean up on its connection."""
    inside, cleaning, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    said: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        try:
            inside.set()
            await request["db"].execute("SELECT pg_sleep(30)")
        except asyncio.CancelledError as error:
            said.append(str(error))
            cleaning.set()
            await go_on.wait()
            said.append(await request["db"].fetchval("SELECT 42"))
            raise
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1, cancel_abandoned=True)
    app.router.add_get("/", handler)
    async with serve(app) as served, asyncio.timeout(DEADLINE):
        with clients.client(served.port, clients.head()):
            await inside.wait()
        await cleaning.wait()
        for _ in range(2):
            scope._run._housekeeper.sweep(time.monotonic())
            await asyncio.sleep(0)
        go_on.set()
        await until(lambda: not scope.stats().in_use, "the end of the handler")
        assert said == ["the client has left", 42]


async def test_a_borrow_that_is_thrown_away(make_scope: Any) -> None:
    """A coroutine that is closed while it waits, as those are that nobody ends, leaves no place in the queue behind."""
    async with make_scope(maxsize=1) as scope:
        async with scope.acquire():
            waiting = scope.acquire().__await__()
            next(waiting)
            assert scope.stats().waiting == 1
            waiting.close()
            assert (scope.stats().waiting, scope.stats().cancelled) == (0, 1)
        assert await scope.fetchval("SELECT 1") == 1


async def test_a_dead_lease_does_not_stop_the_housekeeper(make_scope: Any, database: Database) -> None:
    """While a holder has a connection that has died, the pool is refilled and swept as ever."""
    async with make_scope(minsize=2, maxsize=3) as scope, scope.acquire() as db:
        await until(lambda: scope.stats().size == 2)
        database.kill()
        await until(lambda: db.closed)
        scope._run._housekeeper.sweep(time.monotonic())
        await until(lambda: scope.stats().idle == 1, "the refill")


async def test_the_pools_own_work_is_no_requests(make_scope: Any, dsn: str) -> None:
    """Connections are opened in the pool's context: what a request has set is neither seen nor kept there."""
    seen: list[str] = []
    whose = contextvars.ContextVar("whose", default="nobody's")

    async def on_connect(db: Any) -> None:
        seen.append(whose.get())

    async with make_scope(minsize=0, maxsize=1, connect_at_start=False, on_connect=on_connect) as scope:
        whose.set("a request's")
        assert await scope.fetchval("SELECT 1") == 1
        assert seen == ["nobody's"]


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_wait_ends_although_the_housekeeper_had(
    make_scope: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whoever waits starts it again: a filter of the user's log that raises may have ended it."""
    async with make_scope(maxsize=1, acquire_timeout=0.3) as scope, scope.acquire():
        sweeper = scope._run._housekeeper
        ended = sweeper._task
        if how == "cancelled":
            ended.cancel()
        else:
            monkeypatch.setattr(housekeeper.logger, "exception", None)
            monkeypatch.setattr(sweeper, "sweep", None)
            sweeper.wake()
        await asyncio.wait([ended], timeout=5)
        assert ended.cancelled() or ended.exception() is not None
        monkeypatch.undo()
        with pytest.raises(PoolExhausted):
            async with asyncio.timeout(5):
                await scope.acquire()


async def test_a_sweep_that_fails_is_not_the_last(
    make_scope: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in one sweep is logged, and the same housekeeper goes on."""
    async with make_scope(maxsize=1) as scope:
        sweeper = scope._run._housekeeper
        task, sweep, swept = sweeper._task, sweeper.sweep, asyncio.Event()
        monkeypatch.setattr(logs, "_limiter", logs.LogLimiter())
        monkeypatch.setattr(sweeper, "sweep", None)
        await until(lambda: "a sweep failed" in caplog.text, "a sweep that fails")
        monkeypatch.setattr(sweeper, "sweep", lambda now: (sweep(now), swept.set()))
        await asyncio.wait_for(swept.wait(), DEADLINE)
        assert sweeper._task is task


async def test_in_a_crowd_the_oldest_request_makes_room(make_scope: Any) -> None:
    """Two for each connection may wait; one more refuses the oldest at once, but none whose work has begun."""
    async with make_scope(maxsize=1, acquire_timeout=5) as scope:
        pool = scope._open_pool()
        holder = await scope.acquire()
        pool.gate.crowded = True
        begun = asyncio.ensure_future(scope.acquire()._borrow())
        requests = []
        for _ in range(3):
            db = ScopedConnection(pool)
            db.running = False
            requests.append((db, asyncio.ensure_future(db._ensure())))
            await asyncio.sleep(0)
        with pytest.raises(PoolExhausted, match="the longest waiting are refused"):
            await asyncio.wait_for(asyncio.shield(requests[0][1]), 2)
        assert (pool.gate.waiting, scope.stats().shed) == (3, 1)
        holder.release()
        (await begun).release()
        for db, borrowed in requests[1:]:
            await borrowed
            db._end("its request")
