"""Mistakes that everybody makes once: each is answered with what to write instead."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

import aiohttp_poolscope as poolscope

if TYPE_CHECKING:
    from .conftest import Serve

Mistake = Callable[[poolscope.PoolScope], Awaitable[Any]]


async def without_await(scope: poolscope.PoolScope) -> None:
    db: Any = scope.acquire()
    await db.fetchval("SELECT 1")


async def cursor_without_await(scope: poolscope.PoolScope) -> None:
    async with scope.acquire() as db:
        cursor: Any = db.cursor()
        await cursor.execute("SELECT 1")


async def transaction_without_block(scope: poolscope.PoolScope) -> None:
    async with scope.acquire() as db:
        await db.transaction().fetchval("SELECT 1")


async def in_a_thread(scope: poolscope.PoolScope) -> None:
    await asyncio.to_thread(lambda: asyncio.run(scope.fetchval("SELECT 1")))  # type: ignore[arg-type]


async def borrowed_here_used_in_a_thread(scope: poolscope.PoolScope) -> None:
    async with scope.acquire() as db:
        await asyncio.to_thread(lambda: asyncio.run(db.fetchval("SELECT 1")))


async def outside_of_a_loop(scope: poolscope.PoolScope) -> None:
    await asyncio.to_thread(scope.acquire)


async def shared_in_a_gather(scope: poolscope.PoolScope) -> None:
    async with scope.acquire() as db:
        await asyncio.gather(db.fetchval("SELECT pg_sleep(0.1)"), db.fetchval("SELECT 2"))


async def handed_to_a_task(scope: poolscope.PoolScope) -> None:
    async with scope.acquire() as db:
        later = db.fetchval("SELECT 1")
    await later


async def kept_in_a_transaction(scope: poolscope.PoolScope) -> None:
    async with scope.transaction() as tx:
        later = tx.fetchval("SELECT 1")
    await later


MISTAKES: dict[Mistake, tuple[type[Exception], str]] = {
    without_await: (AttributeError, "async with ....acquire"),
    cursor_without_await: (AttributeError, "await db.cursor"),
    transaction_without_block: (poolscope.PoolScopeError, "inside its 'async with' block"),
    in_a_thread: (poolscope.PoolScopeError, "run_coroutine_threadsafe"),
    borrowed_here_used_in_a_thread: (poolscope.PoolScopeError, "run_coroutine_threadsafe"),
    outside_of_a_loop: (poolscope.PoolScopeError, "outside of any event loop"),
    shared_in_a_gather: (poolscope.ConnectionBusy, r"second connection with scope\.acquire"),
    handed_to_a_task: (poolscope.ConnectionReleased, r"async with scope\.acquire\(\) as db"),
    kept_in_a_transaction: (poolscope.PoolScopeError, "inside its 'async with' block"),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
async def test_the_error_says_what_to_write(make_scope: Any, mistake: Mistake) -> None:
    """The error has the words of a remedy, and the pool is as before."""
    error, words = MISTAKES[mistake]
    async with make_scope() as scope:
        with pytest.raises(error, match=words):
            await mistake(scope)
        assert await scope.fetchval("SELECT 1") == 1
        assert scope.stats().in_use == 0


async def test_a_first_use_in_a_thread(make_scope: Any) -> None:
    """A connection that is still to be borrowed is refused in another loop, and leaves no place in the queue behind."""
    async with make_scope(maxsize=1) as scope:
        db = poolscope.ScopedConnection(scope._run.pool)
        async with scope.acquire():
            with pytest.raises(poolscope.PoolScopeError, match="run_coroutine_threadsafe"):
                await asyncio.to_thread(lambda: asyncio.run(db.fetchval("SELECT 1")))
            assert scope.stats().waiting == 0
        assert await scope.fetchval("SELECT 1") == 1
        assert await db.fetchval("SELECT 2") == 2
        db._end("its end")


async def test_wait_for_around_acquire(make_scope: Any) -> None:
    """It is no mistake: what it gives up on comes back, and what it gets is the caller's."""
    async with make_scope(maxsize=1) as scope:
        db = await asyncio.wait_for(scope.acquire(), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scope.acquire(), 0.02)
        db.release()
        assert await scope.fetchval("SELECT 1") == 1
        assert scope.stats().in_use == 0


def warnings(caplog: Any) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


async def test_the_middleware_is_missing(dsn: str, serve: Serve, caplog: Any) -> None:
    """A context without its middleware is told at the start, with both ways out."""
    app = web.Application()
    app.cleanup_ctx.append(poolscope.PoolScope(dsn).cleanup_ctx)
    async with serve(app):
        (said,) = warnings(caplog)
    assert "request['db'] will not exist" in said
    assert "scope.setup(app)" in said
    assert "skip=" in said


@pytest.mark.parametrize("where", ["app", "sub-application", "nowhere, on purpose"])
async def test_the_middleware_is_where_it_should_be(dsn: str, serve: Serve, caplog: Any, where: str) -> None:
    """In the application, in one of its sub-applications, or left out on purpose: nothing is said."""
    app, inner = web.Application(), web.Application()
    scope = poolscope.PoolScope(dsn, skip=(lambda request: True) if where.startswith("nowhere") else None)
    app.cleanup_ctx.append(scope.cleanup_ctx)
    if where == "app":
        app.middlewares.append(scope.middleware)
    elif where == "sub-application":
        inner.middlewares.append(scope.middleware)
    app.add_subapp("/inner", inner)
    async with serve(app):
        assert warnings(caplog) == []


async def test_the_middleware_is_there_twice(dsn: str, serve: Serve, caplog: Any) -> None:
    """The request still has one connection, and the start says that setup() was enough."""
    app = web.Application()
    scope = poolscope.setup(app, dsn)
    app.middlewares.append(scope.middleware)

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(scope.stats().in_use)

    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.get() == (200, "1")
    assert len(warnings(caplog)) == 1
    assert "more than once: scope.setup(app) has added it already" in warnings(caplog)[0]


async def test_two_scopes_of_one_key(dsn: str, serve: Serve, caplog: Any) -> None:
    """One would hide the other, and each request hold two connections: the start says so."""
    app = web.Application()
    poolscope.setup(app, dsn)
    poolscope.setup(app, dsn)
    async with serve(app):
        assert len(warnings(caplog)) == 2
    assert "give one another key" in warnings(caplog)[0]


async def test_the_context_is_missing(dsn: str, serve: Serve, caplog: Any) -> None:
    """A middleware without its context is a 500, and the log says what is to be added."""
    app = web.Application(middlewares=[poolscope.PoolScope(dsn).middleware])

    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.status() == 500
    assert "append scope.cleanup_ctx to app.cleanup_ctx" in caplog.text


async def test_used_too_early_and_too_late(make_scope: Any, dsn: str) -> None:
    """Before the start the error says how a scope is started, after the end that it is closed."""
    early = poolscope.PoolScope(dsn)
    with pytest.raises(poolscope.PoolScopeError, match=r"not started: use scope\.setup\(app\)"):
        await early.fetchval("SELECT 1")
    async with make_scope() as scope:
        pass
    with pytest.raises(poolscope.ShuttingDown, match="closed"):
        await scope.fetchval("SELECT 1")
