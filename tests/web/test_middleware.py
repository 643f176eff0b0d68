"""The middleware: the connection always comes back (R2), and is never taken where it is not needed (R6, A9)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ServerDisconnectedError, web

import aiohttp_poolscope as poolscope
from tests.conftest import Database, Serve, until

if TYPE_CHECKING:
    from pathlib import Path


async def returns(request: web.Request) -> Any:
    await request["db"].execute("SELECT 1")
    return web.Response()


async def raises(request: web.Request) -> Any:
    await request["db"].execute("SELECT 1")
    raise RuntimeError("a mistake in the handler")


async def raises_http(request: web.Request) -> Any:
    await request["db"].execute("SELECT 1")
    raise web.HTTPConflict


async def returns_http(request: web.Request) -> Any:
    await request["db"].execute("SELECT 1")
    return web.HTTPConflict()


async def returns_nothing(request: web.Request) -> Any:
    await request["db"].execute("SELECT 1")


async def returns_rubbish(request: web.Request) -> Any:
    await request["db"].execute("SELECT 1")
    return {"rubbish": True}


async def leaves_a_transaction(request: web.Request) -> Any:
    await request["db"].execute("BEGIN")
    await request["db"].execute("CREATE TABLE left_over (x int)")
    return web.Response()


async def leaves_a_failed_transaction(request: web.Request) -> Any:
    await request["db"].execute("BEGIN")
    await request["db"].execute("SELECT 1/0")
    return web.Response()


async def leaves_a_cursor(request: web.Request) -> Any:
    cursor = await request["db"].cursor()
    await cursor.execute("SELECT generate_series(1, 1000)")
    await cursor.fetchone()
    return web.Response()


@pytest.mark.filterwarnings("ignore:returning HTTPException object:DeprecationWarning")
@pytest.mark.parametrize(
    ("handler", "status"),
    [
        (returns, 200),
        (raises, 500),
        (raises_http, 409),
        (returns_http, 409),
        (returns_nothing, 500),
        (returns_rubbish, 500),
        (leaves_a_transaction, 200),
        (leaves_a_failed_transaction, 500),
        (leaves_a_cursor, 200),
    ],
)
async def test_the_connection_comes_back(
    dsn: str, serve: Serve, *, cancellation: bool, handler: Any, status: int, database: Database
) -> None:
    """R2: however a handler ends, its connection is free for the next request, and clean."""
    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    app.router.add_get("/next", returns)
    async with serve(app, handler_cancellation=cancellation) as served:
        assert await served.status() == status
        assert scope.stats().in_use == 0
        assert await served.status("/next") == 200
        assert scope.stats().opened == 1
    assert database.sql("SELECT to_regclass('left_over')") == [(None,)]


async def test_a_cancelled_handler_gives_its_connection_back(dsn: str, serve: Serve, database: Database) -> None:
    """R2: cancelled in the middle of a statement, the handler's connection comes back, and the statement ends."""

    async def handler(request: web.Request) -> web.Response:
        asyncio.get_running_loop().call_later(0.05, asyncio.current_task().cancel)  # type: ignore[union-attr]
        await request["db"].execute("SELECT pg_sleep(60)")
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    app.router.add_get("/next", returns)
    async with serve(app) as served:
        with pytest.raises(ServerDisconnectedError):
            await served.status()
        assert scope.stats().in_use == 0
        assert await served.status("/next") == 200
        assert [query for (query,) in database.backends("query") if "pg_sleep" in query] == []


async def test_a_client_that_leaves_gives_its_connection_back(dsn: str, serve: Serve, cancellation: bool) -> None:
    """R2: a client that leaves in the middle of its request costs no connection, in both of aiohttp's modes."""

    async def handler(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(0.2)")
        return web.Response()

    app = web.Application()
    scope = poolscope.setup(app, dsn, maxsize=1)
    app.router.add_get("/", handler)
    app.router.add_get("/next", returns)
    async with serve(app, handler_cancellation=cancellation) as served:
        _, writer = await served.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: scope.stats().in_use)
        writer.close()
        await until(lambda: not scope.stats().in_use, "the connection's return")
        assert await served.status("/next") == 200


async def test_nothing_keeps_a_request_alive(dsn: str, serve: Serve) -> None:
    """When its answer is sent, a request is gone, without help of the garbage collector: its p99 would be yours."""
    requests: list[weakref.ref[web.Request]] = []

    async def handler(request: web.Request) -> web.Response:
        requests.append(weakref.ref(request))
        await request["db"].execute("SELECT 1")
        return web.Response()

    app = web.Application()
    poolscope.setup(app, dsn)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                assert await served.status(headers={"Connection": "close"}) == 200
            await until(lambda: [request() for request in requests] == [None] * 3, "the end of the requests")
        finally:
            gc.enable()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "page.txt").write_text("a page")
    return tmp_path


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/", 405),
        ("GET", "/static/page.txt", 200),
        ("GET", "/static/missing.txt", 404),
        ("GET", "/skipped", 200),
        ("GET", "/exempt", 200),
    ],
)
@pytest.mark.parametrize("acquire", ["auto", "eager"])
async def test_these_take_no_connection(
    dsn: str, serve: Serve, *, folder: Path, method: str, path: str, status: int, acquire: str
) -> None:
    """R6, A9: no route, a wrong method, static files, what is skipped or exempt: with an exhausted pool they answer."""

    async def without(request: web.Request) -> web.Response:
        return web.Response(status=500 if "db" in request else 200)

    @poolscope.no_connection
    async def exempt(request: web.Request) -> web.Response:
        return await without(request)

    app = web.Application()
    scope = poolscope.setup(
        app, dsn, maxsize=1, acquire=acquire, acquire_timeout=0.1, skip=lambda request: request.path == "/skipped"
    )
    app.router.add_get("/", returns)
    app.router.add_get("/skipped", without)
    app.router.add_get("/exempt", exempt)
    app.router.add_static("/static", folder)
    async with serve(app) as served, scope.acquire():
        borrows = scope.stats().borrows
        async with served.client.request(method, served.url / path.lstrip("/")) as response:
            assert response.status == status
        assert await served.status("/") == 503
        assert scope.stats().borrows == borrows + 1


async def test_a_preflight_answered_by_a_middleware_outside_takes_nothing(dsn: str, serve: Serve) -> None:
    """A9: a middleware before ours that answers by itself costs no connection."""

    @web.middleware
    async def preflight(request: web.Request, handler: Any) -> Any:
        return web.Response(status=204) if request.method == "OPTIONS" else await handler(request)

    app = web.Application(middlewares=[preflight])
    scope = poolscope.setup(app, dsn)
    app.router.add_route("*", "/", returns)
    async with serve(app) as served:
        borrows = scope.stats().borrows
        async with served.client.options(served.url) as response:
            assert response.status == 204
        assert scope.stats().borrows == borrows
        assert await served.status() == 200
        assert scope.stats().borrows == borrows + 1


async def test_the_connection_is_there_for_inner_middlewares(dsn: str, serve: Serve) -> None:
    """A middleware inside ours shares the handler's connection, and its transaction."""

    @web.middleware
    async def tenant(request: web.Request, handler: Any) -> Any:
        async with request["db"].transaction() as tx:
            await tx.execute("SET LOCAL application_name = 'tenant 7'")
            return await handler(request)

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=await request["db"].fetchval("SELECT current_setting('application_name')"))

    app = web.Application()
    poolscope.setup(app, dsn)
    app.middlewares.append(tenant)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        assert await served.get() == (200, "tenant 7")
