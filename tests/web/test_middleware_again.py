"""A second pass through the middleware: a retry outside of it, a clone that is dispatched; and mocked requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

import aiohttp_poolscope as poolscope

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler

    from tests.conftest import Database, Serve

SERIALIZATION = "DO $$ BEGIN RAISE EXCEPTION 'again' USING errcode = '40001'; END $$"


@web.middleware
async def again(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Three tries for a 503 or a serialization failure."""
    for _ in range(2):
        try:
            response = await handler(request)
        except psycopg2.errors.SerializationFailure:
            continue
        if response.status != 503:
            return response
    return await handler(request)


def application(dsn: str, *outside: Any, **settings: Any) -> tuple[web.Application, poolscope.PoolScope]:
    app = web.Application(middlewares=outside)
    return app, poolscope.setup(app, dsn, **settings)


def plain(handler: Any) -> Any:
    return handler


MARKS = [plain, poolscope.lazy, poolscope.eager, poolscope.transactional]


@pytest.mark.parametrize("how", ["error", "503"])
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("in_subapp", [False, True])
async def test_a_retry_outside(
    dsn: str, serve: Serve, database: Database, *, mark: Callable[[Any], Any], how: str, in_subapp: bool
) -> None:
    """Each pass has a connection object and, with @transactional, a transaction of its own; the scope counts each."""
    database.sql("CREATE TABLE tries (number int)")
    passes: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        db = request["db"]
        passes.append(db)
        await db.execute("INSERT INTO tries VALUES (%s)", (len(passes),))
        if len(passes) < 3 and how == "error":
            await db.execute(SERIALIZATION)
        if len(passes) < 3:
            raise poolscope.DatabaseUnavailable("away for a moment")
        return web.json_response([db.in_transaction, [each.closed for each in passes]])

    app, scope = application(dsn, again, maxsize=1)
    if in_subapp:
        inner = web.Application(middlewares=[scope.middleware])
        inner.router.add_post("/", mark(handler))
        app.add_subapp("/inner", inner)
    else:
        app.router.add_post("/inner/", mark(handler))
    async with serve(app) as served, served.client.post(served.url / "inner/", data=b"a body") as response:
        transactional = mark is poolscope.transactional
        assert (response.status, await response.json()) == (200, [transactional, [True, True, False]])
        assert (scope.stats().lent, scope.stats().in_use, len({*map(id, passes)})) == (3, 0, 3)
    wrote = [number for (number,) in database.sql("SELECT number FROM tries ORDER BY number")]
    assert wrote == ([3] if transactional else [1, 2, 3])


async def test_a_pool_that_has_room_the_second_time(dsn: str, serve: Serve) -> None:
    """A real 503: refused in the queue, then served; afterwards request["db"] is the object that has ended last."""
    left: list[Any] = []

    @web.middleware
    async def outside(request: web.Request, handler: Handler) -> web.StreamResponse:
        first = await handler(request)
        assert first.status == 503
        with pytest.raises(poolscope.ConnectionReleased):
            await request["db"].fetchval("SELECT 1")
        left.append(request["db"])
        held.release()
        second = await handler(request)
        left.append(request["db"])
        with pytest.raises(poolscope.ConnectionReleased):
            await request["db"].fetchval("SELECT 1")
        return second

    async def handler(request: web.Request) -> web.Response:
        left.append(request["db"])
        return web.json_response(await request["db"].fetchval("SELECT 42"))

    app, scope = application(dsn, outside, maxsize=1, acquire_timeout=0.05)
    app.router.add_get("/", handler)
    async with serve(app) as served:
        held = await scope.acquire()
        assert await served.get("/") == (200, "42")
    first, inside, last = left
    assert first is not inside is last


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("first", [True, False], ids=["after a pass", "at once"])
async def test_a_clone_dispatched_outside(dsn: str, serve: Serve, *, mark: Callable[[Any], Any], first: bool) -> None:
    """It carries the connection object of its original along, ended or none, and gets one of its own."""

    @web.middleware
    async def outside(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/new":
            return await handler(request)
        if first:
            await handler(request)
        return await app._handle(request.clone(rel_url="/new"))

    async def new(request: web.Request) -> web.Response:
        return web.json_response([await request["db"].fetchval("SELECT 42"), request["db"].in_transaction])

    async def old(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT 1")
        return web.Response()

    app, scope = application(dsn, outside, maxsize=1)
    app.router.add_get("/old", old)
    app.router.add_get("/new", mark(new))
    async with serve(app) as served, served.client.get(served.url / "old") as response:
        assert (response.status, await response.json()) == (200, [42, mark is poolscope.transactional])
        assert scope.stats().in_use == 0


async def test_a_clone_dispatched_by_a_handler(dsn: str, serve: Serve, database: Database) -> None:
    """It works beside its original, whose transaction it is not in, and which goes on as before."""
    database.sql("CREATE TABLE notes (text text)")

    async def outer(request: web.Request) -> web.Response:
        mine = request["db"]
        await mine.execute("INSERT INTO notes VALUES ('outer')")
        inner = await app._handle(request.clone(rel_url="/inner"))
        assert request["db"] is mine
        async with scope.acquire():
            (lease,) = {lease.path for lease in scope.leases()}
            assert lease == "/outer"
        await mine.execute("INSERT INTO notes VALUES ('outer again')")
        return web.json_response([inner.status, mine.in_transaction], status=409)

    async def inner(request: web.Request) -> web.Response:
        await request["db"].execute("INSERT INTO notes VALUES ('inner')")
        return web.json_response(request["db"].in_transaction)

    app, scope = application(dsn, maxsize=2)
    app.router.add_get("/outer", poolscope.transactional(outer))
    app.router.add_get("/inner", poolscope.transactional(inner))
    async with serve(app) as served, served.client.get(served.url / "outer") as response:
        assert (response.status, await response.json()) == (409, [200, True])
    assert database.sql("SELECT text FROM notes") == [("inner",)]


async def test_a_clone_handed_on(dsn: str, serve: Serve) -> None:
    """A middleware inside that hands on a clone begins no second pass: same connection, same transaction."""

    @web.middleware
    async def renaming(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request.clone(headers={**request.headers, "X-Renamed": "yes"}))

    async def handler(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT 1")
        return web.json_response([request.headers["X-Renamed"], request["db"].in_transaction, scope.stats().in_use])

    app, scope = application(dsn, maxsize=1)
    app.middlewares.append(renaming)
    inner = web.Application(middlewares=[scope.middleware])
    inner.router.add_get("/", poolscope.transactional(handler))
    app.add_subapp("/inner", inner)
    async with serve(app) as served, served.client.get(served.url / "inner/") as response:
        assert (response.status, await response.json()) == (200, ["yes", True, 1])
        assert scope.stats().lent == 1


@pytest.mark.parametrize("request_tag", ["off", "comment", "application_name"])
@pytest.mark.parametrize("mark", [*MARKS, poolscope.no_connection])
@pytest.mark.parametrize("routed", [True, False])
async def test_a_mocked_request(dsn: str, *, mark: Callable[[Any], Any], request_tag: Any, routed: bool) -> None:
    """aiohttp's make_mocked_request is served as any other, sent through the application or the middleware alone."""

    async def handler(request: web.Request) -> web.Response:
        if mark is poolscope.no_connection:
            return web.json_response(["db" in request, 0])
        db = request["db"]
        return web.json_response([db.in_transaction, await db.fetchval("SELECT 42")])

    async def too_slow(request: web.Request) -> web.Response:
        await request["db"].execute("SELECT pg_sleep(60)", timeout=0.01)
        return web.Response()

    handler, failing = mark(handler), mark(too_slow)
    app, scope = application(dsn, maxsize=1, request_tag=request_tag)
    app.router.add_get("/", handler)
    app.router.add_get("/slow", failing)
    app.freeze()

    async def call(path: str, handler: Any) -> Any:
        request = make_mocked_request("GET", path, app=app)
        return await (app._handle(request) if routed else scope.middleware(request, handler))

    async with scope.running():
        response = await call("/", handler)
        wanted = b"[false, 0]" if mark is poolscope.no_connection else None
        transactional = b"true" if mark is poolscope.transactional else b"false"
        assert response.body == (wanted or b"[%s, 42]" % transactional)
        if mark is not poolscope.no_connection:
            assert (await call("/slow", failing)).status == 504
        assert scope.stats().in_use == 0
